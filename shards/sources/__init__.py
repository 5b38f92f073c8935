"""Sources of samples: any files that patterns pair, COCO, and a published set with its own layout."""
