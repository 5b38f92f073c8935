"""Photos to tar shards, and proof that they are whole."""
