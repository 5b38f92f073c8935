"""Numbers and pictures made of masks."""
