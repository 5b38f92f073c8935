"""Dice in parts of the val pictures: groups, classes."""
