"""Where samples come from: Oxford-IIIT Pet, or drawn pictures."""
