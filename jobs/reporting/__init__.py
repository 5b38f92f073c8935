"""The report of a sweep: the comparison of its groups, and the page, tables and wandb Report that show it."""
