"""Runs sent to wandb after they were trained."""
