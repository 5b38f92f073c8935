"""A model measured on a split, and the protocol of the numbers."""
