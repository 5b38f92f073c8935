"""Dice in parts of the val pictures: breeds, groups, classes."""
