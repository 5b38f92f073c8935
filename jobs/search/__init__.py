"""Searches that choose trials by the results of earlier ones."""
