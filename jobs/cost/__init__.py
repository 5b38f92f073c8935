"""What a sweep will cost, and what it has used."""
