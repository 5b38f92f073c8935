"""What a network learns: how the labels of a shard set become classes."""

TARGET_NAME = "target.json"  # in the folder of a run whose target is not the one implied by its shard set
