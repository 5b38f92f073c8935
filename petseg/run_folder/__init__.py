"""What the folder of a run holds: layout, checkpoints, and the attempts that wrote it."""
