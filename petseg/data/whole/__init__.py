"""Pictures at their own size: their cache, and crops of them."""
