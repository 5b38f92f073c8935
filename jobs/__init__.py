"""What is run: sweeps, their trials, their status and their report."""
