"""Train and measure segmentation models on a petseg shard set."""

__version__ = "0.1.0"
