"""What runs on the login node when trials are submitted."""
