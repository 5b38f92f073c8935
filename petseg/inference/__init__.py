"""A run's model outside its run: one file of weights that carries everything, and masks of any picture."""
