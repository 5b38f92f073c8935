"""A file that one process cannot read is an error on all of them."""

from __future__ import annotations

from typing import Any, cast

import pytest
from accelerate import Accelerator

from petseg.training import given_weights

BOTH = "data.border 'bg', not 'fg', model.width 0, not 8"
HERE = cast(Accelerator, None)  # the exchange is stood in for


def others_say(monkeypatch: pytest.MonkeyPatch, *others: str) -> None:
    monkeypatch.setattr(given_weights, "gather_object", lambda own: [*others[:1], *own, *others[1:]])


def test_what_was_read_is_returned_where_all_could_read(monkeypatch: pytest.MonkeyPatch) -> None:
    others_say(monkeypatch, "", "")
    assert given_weights._on_all(HERE, lambda: 7) == 7


@pytest.mark.parametrize("others", [("it is damaged", ""), ("", "it is damaged")])
def test_a_problem_of_another_process_is_raised_here_too(
    monkeypatch: pytest.MonkeyPatch, others: tuple[str, str]
) -> None:
    others_say(monkeypatch, *others)
    with pytest.raises(ValueError, match=r"^it is damaged$"):
        given_weights._on_all(HERE, lambda: 7)


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_a_problem_of_this_process_is_raised_once_all_know_it(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    told: list[list[str]] = []

    def gather(own: list[str]) -> list[str]:
        told.append(own)
        return ["", *own]

    monkeypatch.setattr(given_weights, "gather_object", gather)

    def read() -> Any:
        raise kind("gone")

    with pytest.raises(ValueError, match=r"^gone$"):
        given_weights._on_all(HERE, read)
    assert told == [["gone"]]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"data.border": "fg", "model.width": 8, "model.encoder": ""}, "model.encoder '', not 'resnet18'"),
        (
            {"data.border": "bg", "model.width": 0, "model.encoder": "resnet18"},
            "data.border 'bg', not 'fg', model.width 0, not 8",
        ),
    ],
)
def test_each_fact_that_differs_is_named(found: dict[str, object], said: str) -> None:
    wanted: dict[str, object] = {"data.border": "fg", "model.width": 8, "model.encoder": "resnet18"}
    given_weights._require_same("the teacher", wanted | {"more": 1}, wanted)
    with pytest.raises(ValueError, match=rf"^the teacher does not fit this run: it has {said}$"):
        given_weights._require_same("the teacher", found, wanted)
