"""What a network learns: how the labels of a shard set become classes."""
