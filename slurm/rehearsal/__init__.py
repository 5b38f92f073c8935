"""A private, real Slurm cluster on this machine: `python -m slurm.rehearsal`."""
