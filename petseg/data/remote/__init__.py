"""Shard sets far away, and how their files get here."""
