"""torch.compile in training: which passes run compiled, where compiled code is kept, and whether it pays."""
