"""Targets for tests that need no shard set."""

from petseg.targets.pets import rules_of
from petseg.targets.target import Target
from shards.classes import ClassEntry, distinct_colours

TRIMAP = {"pet": 1, "background": 2, "border": 3}


def pets_target(name: str) -> Target:
    """pet or trimap."""
    names, rules = rules_of(name, TRIMAP, ())
    colours = distinct_colours(len(names))
    classes = tuple(ClassEntry(one, value, colours[value]) for value, one in enumerate(names))
    return Target(name, classes, rules, next(iter(rules)), labels=TRIMAP)


PET = pets_target("pet")
