"""The class table of a set: what one can hold, and what is refused."""

from __future__ import annotations

import pytest

from shards.classes import (
    MAX_CLASSES,
    MAX_NAME_LENGTH,
    ClassEntry,
    ClassTable,
    distinct_colours,
    is_colour,
    name_problem,
    table_of_json,
)


def content_of(*names: object, **changes: object) -> dict:
    """A table as JSON has it."""
    classes = [{"name": name, "value": value, "colour": [value % 256, 0, 255]} for value, name in enumerate(names)]
    return {"classes": classes, "ignore_value": 255, **changes}


def test_a_table_is_read_as_it_stands() -> None:
    table = table_of_json(content_of("sky", "road"))
    assert table == ClassTable((ClassEntry("sky", 0, (0, 0, 255)), ClassEntry("road", 1, (1, 0, 255))), 255)
    assert (len(table), table.names, table.values) == (2, ("sky", "road"), {"sky": 0, "road": 1, "ignored": 255})


def test_the_most_classes_and_the_longest_name_are_taken() -> None:
    table = table_of_json(content_of("x" * MAX_NAME_LENGTH, *map(str, range(MAX_CLASSES - 1))))
    assert len(table) == 254
    with pytest.raises(ValueError, match=r"^it has 255 classes: 1 to 254 are possible$"):
        table_of_json(content_of(*map(str, range(MAX_CLASSES + 1))))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (content_of(), "it has 0 classes: 1 to 254 are possible"),
        (content_of("a", ignore_value=254), "its ignore value is 254, not 255"),
        (content_of("a", ignore_value=255.0), "its ignore value is 255.0, not 255"),
        (content_of("a", "a"), "two of its classes have one name"),
        (content_of("b", "ignored"), "a class is named 'ignored', which is taken or cannot be shown"),
        ({"classes": [{"name": "a", "value": False, "colour": [0, 0, 0]}], "ignore_value": 255},
         "class 'a' has the value False, not 0"),
        ({"classes": [{"name": "a", "value": 1, "colour": [0, 0, 0]}], "ignore_value": 255},
         "class 'a' has the value 1, not 0"),
        ({"classes": [{"name": "a", "value": 0, "colour": [0, 0]}], "ignore_value": 255},
         "class 'a' has the colour (0, 0)"),
        ({"classes": [{"name": "a", "value": 0}], "ignore_value": 255},
         "its class table is damaged (KeyError('colour'))"),
        ({"classes": []}, "its class table is damaged (KeyError('ignore_value'))"),
    ],
)  # fmt: skip
def test_a_table_that_no_reader_could_use_is_told_why(content: dict, problem: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        table_of_json(content)
    assert str(error.value) == problem


@pytest.mark.parametrize("name", ["", " ", "a ", "\ta", "x" * (MAX_NAME_LENGTH + 1), 7, None])
def test_a_name_has_letters_and_no_spaces_around_them(name: object) -> None:
    assert name_problem(name) == f"a class is named {name!r}: 1 to 60 characters, without spaces around them"


@pytest.mark.parametrize("name", ["ignored", "a\nb", "a\x1bb", "a\u202eb"])
def test_a_name_can_be_shown_and_is_not_taken(name: str) -> None:
    assert name_problem(name) == f"a class is named {name!r}, which is taken or cannot be shown"


def test_names_with_spaces_and_umlauts_are_good() -> None:
    assert name_problem("traffic light, grün") == ""


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ([0, 128, 255], True), ((0, 0, 0), True), ([0, 0], False), ([0, 0, 0, 0], False), ([0, 0, 256], False),
        ([-1, 0, 0], False), ([0, 0, True], False), ([0, 0, 1.0], False), ("abc", False), (None, False),
    ],
)  # fmt: skip
def test_a_colour_is_three_bytes(value: object, is_one: bool) -> None:
    assert is_colour(value) == is_one


def test_colours_to_show_classes_in_stay_the_same_and_differ() -> None:
    """Reports and sheets of one set are compared: a class keeps its colour, however many there are."""
    assert distinct_colours(4) == [(242, 109, 109), (19, 69, 191), (98, 128, 57), (242, 24, 215)]
    colours = distinct_colours(MAX_CLASSES)
    assert colours[:4] == distinct_colours(4)
    assert len(set(colours)) == MAX_CLASSES
    assert all(map(is_colour, colours))
