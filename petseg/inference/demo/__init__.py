"""A page on loopback that shows what models make of the pictures that somebody drops on it."""
