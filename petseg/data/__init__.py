"""From shard set to batches: what is read when, and how."""
