"""A training run in one process: its parts, which are built once, and its progress, which changes."""
