"""Damage is found, named and repaired."""
