"""Samples become shards, and a folder of shards appears whole."""
