"""The state of each trial: liveness, Slurm's states, and the cause of a failure."""
