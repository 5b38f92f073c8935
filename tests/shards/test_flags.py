"""Words of a command line as a dataclass: what is understood, what is complained of, and how help is laid out."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from shards.command.flags import _module_name, _typed_name, _unboxed, help_text, join_help, parse


@dataclass(frozen=True)
class Inner:
    """More of it."""

    rate: float = 0.5
    """How
    fast."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What both have."""

    kind: Literal["a", "b"] = "a"
    """Of two
    kinds."""


@dataclass(frozen=True, kw_only=True)
class Wishes(Base):
    """Some wishes."""

    folder: Path
    """Where it
    lies."""
    count: int = 3
    """How many."""
    inner: Inner = field(default_factory=Inner)
    known: int = field(default=1, metadata={"help": "as it was"})
    """Not this."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"--count is {self.count}: too few")


@pytest.fixture(autouse=True)
def started_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="x.wishes.__main__")))


def test_words_become_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--folder", "a b", "--inner.rate", "2", "--kind", "b"]
    wanted = Wishes(folder=Path("a b"), inner=Inner(2.0), kind="b")
    assert parse(Wishes, words, None) == wanted
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    assert parse(Wishes, None, None) == wanted
    assert parse(Wishes, ["a b", "--kind", "b", "--inner.rate", "2"], None, positional=True) == wanted
    assert parse(Wishes, ["--count", "7"], None, default=wanted) == Wishes(
        folder=Path("a b"), inner=Inner(2.0), kind="b", count=7
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--folder x --count two", "--count 'two': must be a whole number ("),
        ("--folder x --inner.rate fast", "--inner.rate 'fast': must be a number ("),
        ("--folder x --conut 2", "unrecognized options: --conut, 2; did you mean --count? ("),
        ("--folder x --kind c", "invalid choice 'c' for argument '--kind'. Expected one of ('a', 'b') ("),
        ("--folder", "missing value for argument '--folder'. Expected 1 values ("),
        ("--count 2", "missing from python -m x.wishes: --folder PATH Where it lies. (required) ("),
    ],
)
@pytest.mark.parametrize("columns", [None, "40"])
def test_what_is_not_understood_is_one_line(
    words: str, said: str, columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        parse(Wishes, words.split(), None)
    assert str(error.value) == f"{said}`python -m x.wishes --help` shows all options)"
    assert os.environ.get("COLUMNS") == columns
    assert capsys.readouterr() == ("", "")


def test_a_rule_of_ours_is_told_in_its_own_words() -> None:
    with pytest.raises(ValueError, match=r"^--count is -1: too few$"):
        parse(Wishes, ["--folder", "x", "--count", "-1"], None)


def test_a_box_is_unwrapped_and_each_flag_that_is_near_told_once() -> None:
    rule = "─" * 10
    lines = ["Bad words", "in   it.", rule, "Perhaps:", "--one A", "more", "--two.b B", "--one C", rule, "--no"]
    box = "\n".join(["╭─ Error ──╮", *(f"│ {line:10} │" for line in lines), "╰──────────╯"])
    more = "(`python -m x.wishes --help` shows all options)"
    assert _unboxed(box) == f"bad words in it; did you mean --one or --two.b? {more}"
    assert _unboxed(box.replace("Perhaps", "For help")) == f"bad words in it {more}"


def test_help_shows_the_description_as_it_is_and_in_short_only_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = {}
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as ended:
            parse(Wishes, [flag], "What it does,\nin words.\n\npython -m x.wishes --folder {description}")
        assert ended.value.code == 0
        shown[flag] = capsys.readouterr().out
        usage, above = shown[flag].split("\n\n", maxsplit=1)
        assert usage.startswith("usage: python -m x.wishes [-h] ")
        assert above.startswith("What it does, in words.\n\n    python -m x.wishes --folder {")
    assert "Where it lies. (required)" in shown["--help"]
    assert "Where it lies." not in shown["-h"]
    assert "--folder" in shown["-h"]


def test_all_help_is_shown_where_both_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = []
    for flags in (["-h", "--help"], ["--help"]):
        with pytest.raises(SystemExit):
            parse(Wishes, flags, None)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_one_of_several_kinds_is_chosen_by_its_name() -> None:
    kinds = Inner | Base
    assert parse(kinds, ["inner", "--rate", "2"], None) == Inner(2.0)
    assert parse(kinds, ["base", "--kind", "b"], None) == Base(kind="b")
    assert Inner.__dataclass_fields__["rate"].metadata["help"] == "How fast."


def test_each_field_has_its_docstring_as_one_line() -> None:
    join_help(Wishes)
    fields = Wishes.__dataclass_fields__
    helps = {name: one.metadata.get("help") for name, one in fields.items()}
    assert helps == {
        "kind": "Of two kinds.", "folder": "Where it lies.", "count": "How many.", "inner": None, "known": "as it was",
    }  # fmt: skip
    assert Inner.__dataclass_fields__["rate"].metadata["help"] == "How fast."
    join_help(7)
    join_help(Wishes(folder=Path()))  # of types alone


def test_prose_is_wrapped_and_examples_stay_lines_that_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "36")
    text = """First line
    goes on here and then on.

    python x.py --a b c \\
        --d
    python x.py --first one two --third
    accelerate launch --x

    List:
      one: what
        it is, in many words of prose
      two: b
    Last.
    """
    assert help_text(text).split("\n") == [
        "First line goes on here and then", "on.", "",
        "    python x.py --a b c     --d", "    python x.py --first one two \\", "        --third",
        "    accelerate launch --x", "",
        "List:", "  one: what it is, in many words", "    of prose", "  two: b", "Last.",
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [22, 23])
def test_an_example_is_broken_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    example = "python x.py --a b"  # 17 letters, 4 before them, and 2 columns that stay free
    monkeypatch.setenv("COLUMNS", str(columns))
    whole = [f"    {example}"]
    assert help_text(example).split("\n") == (whole if columns == 23 else ["    python x.py \\", "        --a b"])


def test_a_command_is_called_as_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _typed_name() == _module_name() == "python -m x.wishes"
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="shards.pack")))
    assert _typed_name() == "python -m shards.pack"
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace())
    monkeypatch.setattr(sys, "argv", ["my jobs/sweep.py", "--x"])
    assert (_module_name(), _typed_name()) == (None, "python 'my jobs/sweep.py'")
