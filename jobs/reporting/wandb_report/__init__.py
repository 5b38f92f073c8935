"""The report as a wandb Report."""
