"""What a config needs of the hardware: memory, operations, and how much of it a run uses."""
