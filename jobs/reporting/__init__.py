"""What the runs of a sweep say: the comparison of its groups, and the page, tables and wandb Report that show it."""
