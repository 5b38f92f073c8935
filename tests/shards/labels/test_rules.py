"""The class table is read as it is written, and what is wrong in it is named."""

import re
from pathlib import Path
from typing import Any

import pytest

from shards.classes import ClassTable, distinct_colours
from shards.labels.rules import LabelRules, hex_of, load_rules, rules_of

GOOD = """
name = "streets"
attribution = "ours"
ignore = [255, 254]
[[class]]
name = "road"
values = [0, 7]
display = "#804080"
[[class]]
name = "café"
values = [300]
rest = true
"""


def test_values(tmp_path: Path) -> None:
    (tmp_path / "classes.toml").write_text(GOOD)
    rules = load_rules(tmp_path / "classes.toml")
    assert rules.indices() == {0: 0, 7: 0, 300: 1, 255: 255, 254: 255}
    assert not rules.by_colour
    assert rules.rest == 1
    assert rules.table().names == ("road", "café")
    assert rules.table().classes[0].colour == (128, 64, 128)
    assert rules.table().values == {"road": 0, "café": 1, "ignored": 255}
    assert rules_of(rules.content()) == rules


def test_colours() -> None:
    rules = rules_of({"ignore": ["#000000"], "class": [{"name": "a", "colours": ["#800000", "#800001"]}]})
    assert rules.indices() == {0: 255, 0x800000: 0, 0x800001: 0}
    assert rules_of(rules.content()) == rules


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "is no TOML"),
        ("", r"1 to 254 \[\[class\]\] tables are needed"),
        ("classes = 1\n[[class]]\nname = 'a'", "unknown key 'classes'"),
        ("[[class]]\nvalue = 1", "it needs a name"),
        ("[[class]]\nname = 'a'\nvalue = 1", "class 'a' has the unknown key 'value'"),
        ("[[class]]\nname = 'a'\nvalues = ['1']", "class 'a': values has '1'"),
        ("[[class]]\nname = 'a'\nvalues = [-1]", "class 'a': values has -1"),
        ("[[class]]\nname = 'a'\ncolours = [3]", "class 'a': values are numbers, and colours texts"),
        ("[[class]]\nname = 'a'\ndisplay = 3", "class 'a': display is 3"),
        ("[[class]]\nname = 'ignored'", "which is taken"),
        ("name = ' x'\n[[class]]\nname = 'a'", "name is ' x' and attribution '': both are texts"),
        ("name = 3\n[[class]]\nname = 'a'", "name is 3 and attribution '': both are texts"),
        ("attribution = 3\n[[class]]\nname = 'a'", "name is 'pictures' and attribution 3: both are texts"),
        ("[[class]]\nname = ' a'", "without spaces around"),
        ("[[class]]\nname = 'a'\nvalues = [1]\n[[class]]\nname = 'b'\nvalues = [1]", "the value 1 is there 2 times"),
        ("[[class]]\nname = 'a'\n[[class]]\nname = 'a'", "the name a is there 2 times"),
        ("ignore = [1]\n[[class]]\nname = 'a'\nvalues = [0, 1]", "the value 1 is there 2 times"),
        ("ignore = ['#0000ff']\n[[class]]\nname = 'a'\ncolours = ['#0000FF']", "the colour #0000ff is there 2 times"),
        ("[[class]]\nname = 'a'\nvalues = [1]\ncolours = ['#0000FF']", "some classes have values and others colours"),
        ("ignore = [1]\n[[class]]\nname = 'a'\ncolours = ['#000000']", "some classes have values and others colours"),
        (
            "[[class]]\nname = 'a'\ncolours = ['#000000']\n[[class]]\nname = 'b'\nvalues = [1]",
            "some classes have values and others colours",
        ),
        (
            "ignore = ['#000000']\n[[class]]\nname = 'a'\nvalues = [1]",
            "ignore has colours, and the classes have values",
        ),
        ("[[class]]\nname = 'a'\nrest = true\n[[class]]\nname = 'b'\nrest = true", "two classes have rest = true"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.toml.*{message}"):
        load_rules(tmp_path / "classes.toml")


def test_a_missing_table_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"classes\.toml is missing: `--classes auto` writes"):
        load_rules(tmp_path / "classes.toml")


def test_a_table_is_the_same_to_its_reader() -> None:
    rules = rules_of({"class": [{"name": f"c{number}", "values": [number]} for number in range(150)]})
    assert isinstance(rules.table(), ClassTable)
    assert len({one.colour for one in rules.table().classes}) > 140


def rules_with(**entry: Any) -> LabelRules:
    return rules_of({"class": [{"name": "a", **entry}]})


def test_a_value_or_a_colour_need_not_be_a_list() -> None:
    assert rules_with(values=7).classes[0].values == (7,)
    assert rules_with(colours="#0102fF").classes[0].colours == ((1, 2, 255),)
    rules = rules_of({"ignore": 9, "class": [{"name": "a", "values": 1}]})
    assert rules.ignore_values == (9,)


@pytest.mark.parametrize("value", [0, 65_535])
def test_the_smallest_and_the_largest_value(value: int) -> None:
    assert rules_with(values=[value]).indices() == {value: 0}


@pytest.mark.parametrize("value", [65_536, True, 1.0, "#12345", "#1234567", "#12345g", "123456", None, [1]])
def test_what_is_neither_a_value_nor_a_colour(value: object) -> None:
    message = f"class 'a': values has {value!r}: a number from 0 to 65535, or a colour such as \"#808080\""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rules_with(values=[value])
    with pytest.raises(ValueError, match=r"^ignore has "):
        rules_of({"ignore": [value], "class": [{"name": "a"}]})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"values": ["#000000"]}, "class 'a': values are numbers, and colours texts such as \"#808080\""),
        ({"colours": ["#000000", 3]}, "class 'a': values are numbers, and colours texts such as \"#808080\""),
        ({"rest": 1}, "class 'a': rest is true or false"),
        ({"display": "red"}, "class 'a': display has 'red': a number from 0 to 65535, or a colour such as \"#808080\""),
        ({"display": 7}, "class 'a': display is 7, not a colour such as \"#808080\""),
        ({"x": 1, "b": 2}, "class 'a' has the unknown key 'b': colours, display, name, rest, values"),
    ],
)
def test_what_is_wrong_with_a_class(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rules_with(**entry)


@pytest.mark.parametrize("entry", [3, "a", None, {"values": [1]}])
def test_a_class_without_a_name(entry: object) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'a class is {entry!r}: it needs a name')}$"):
        rules_of({"class": [entry]})


def test_a_table_has_as_many_classes_as_masks_have_values() -> None:
    entries = [{"name": f"c{number}", "values": [number]} for number in range(254)]
    assert len(rules_of({"class": entries}).classes) == 254
    for classes in ([], [*entries, {"name": "more"}], {}, None, entries[0]):
        with pytest.raises(ValueError, match=r"^1 to 254 \[\[class\]\] tables are needed$"):
            rules_of({"class": classes})


def test_what_a_table_need_not_say() -> None:
    rules = rules_of({"class": [{"name": "a"}, {"name": "b", "display": "#010203"}]})
    assert (rules.name, rules.attribution, rules.ignore_values, rules.ignore_colours) == ("pictures", "", (), ())
    assert [(one.values, one.colours, one.is_rest) for one in rules.classes] == [((), (), False)] * 2
    assert [one.display for one in rules.classes] == [distinct_colours(2)[0], (1, 2, 3)]
    assert rules.rest == 255  # no class is marked: what nothing covers is ignored
    assert rules_of({"attribution": "ours", **rules.content(), "name": "x"}).name == "x"


def test_a_table_is_told_to_the_manifest_as_it_is_written() -> None:
    rules = rules_of(
        {
            "name": "streets",
            "attribution": "ours",
            "ignore": ["#ffffff"],
            "class": [
                {"name": "road", "colours": ["#804080", "#804081"], "display": "#010203"},
                {"name": "x", "rest": True},
            ],
        }
    )
    assert rules.content() == {
        "name": "streets",
        "attribution": "ours",
        "ignore": ["#ffffff"],
        "class": [
            {"name": "road", "display": "#010203", "colours": ["#804080", "#804081"]},
            {"name": "x", "display": hex_of(distinct_colours(2)[1]), "rest": True},
        ],
    }
    assert rules.indices() == {0xFFFFFF: 255, 0x804080: 0, 0x804081: 0}
    assert rules.rest == 1


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "classes.toml"
    path.write_text("[[class]]\nname = 'a'\nrest = 3\n")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: class 'a': rest is true or false$"):
        load_rules(path)
    path.write_text("[[class]\n")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is no TOML \(.*line 1.*\)$"):
        load_rules(path)
