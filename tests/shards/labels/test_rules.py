"""The class table is read as it is written, and what is wrong in it is named."""

from pathlib import Path

import pytest

from shards.classes import ClassTable
from shards.labels.rules import load_rules, rules_of

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
