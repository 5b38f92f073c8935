"""Near-identical pictures that lie in two splits: how they are found, and the note of them beside the set."""
