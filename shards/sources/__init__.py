"""Sources of samples: Oxford-IIIT Pet, drawn pets, any files that patterns pair, COCO."""
