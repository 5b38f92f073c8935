"""The folder of a run: its files, its checkpoints, and the attempts that wrote them."""
