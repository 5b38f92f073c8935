"""Sweep files and flags become axes, axes become configs."""
