"""Views of metrics.jsonl: wandb and TensorBoard."""
