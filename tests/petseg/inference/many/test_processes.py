"""What processes of one prediction tell each other; another process is stood in for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from petseg.inference.many.processes import PATIENCE, Processes, meet, part

FIRST, SECOND, ALONE = Processes(0, 2, 0), Processes(1, 2, 1), Processes(0, 1, 0)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch.distributed is asked for, but for broadcasts."""
    found: list[Any] = []
    monkeypatch.setattr(dist, "barrier", lambda: found.append("barrier"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: found.append("destroy"))
    monkeypatch.setattr(dist, "init_process_group", lambda *words, **more: found.append((*words, more)))
    return found


def sends(monkeypatch: pytest.MonkeyPatch, received: Any = None) -> list[Any]:
    """What is sent; a process that is not the first one receives this."""
    sent: list[Any] = []

    def broadcast(values: list[Any], src: int) -> None:
        sent.append((list(values), src))
        if received is not None:
            values[:] = [received]

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    return sent


def never() -> Any:
    pytest.fail("only the first process makes it")


def fails(kind: type[Exception]) -> Any:
    def make() -> Any:
        raise kind("no such folder")

    return make


def test_the_first_process_tells_the_others_what_it_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = sends(monkeypatch)
    assert FIRST.from_first(lambda: [1, 2]) == [1, 2]
    assert FIRST.from_first(list) == []
    assert sent == [([([1, 2], None)], 0), ([([], None)], 0)]
    sends(monkeypatch, ([1, 2], None))
    assert SECOND.from_first(never) == [1, 2]


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_what_the_first_process_could_not_make_is_an_error_of_all(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    sent = sends(monkeypatch)
    with pytest.raises(ValueError, match=r"^no such folder$"):
        FIRST.from_first(fails(kind))
    assert sent == [([(None, "no such folder")], 0)]
    for problem in ("no such folder", ""):
        sends(monkeypatch, (None, problem))
        with pytest.raises(ValueError, match=rf"^{problem}$"):
            SECOND.from_first(never)


def test_a_process_alone_asks_nobody(monkeypatch: pytest.MonkeyPatch, events: list[Any]) -> None:
    sent = sends(monkeypatch)
    assert ALONE.from_first(lambda: 7) == 7
    with pytest.raises(OSError, match="no such folder"):
        ALONE.from_first(fails(OSError))
    ALONE.wait()
    part(ALONE)
    assert (sent, events) == ([], [])
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]


def test_processes_share_pictures_and_meet_at_the_end(events: list[Any]) -> None:
    assert [one.share([0, 1, 2, 3, 4]) for one in (FIRST, SECOND)] == [[0, 2, 4], [1, 3]]
    SECOND.wait()
    part(SECOND)
    assert events == ["barrier", "destroy"]


def test_a_launch_says_who_a_process_is(monkeypatch: pytest.MonkeyPatch, events: list[Any]) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert meet() == ALONE
    assert events == []
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert meet() == Processes(rank=5, world_size=8, local_rank=1)
    assert events == [("gloo", {"timeout": PATIENCE})]
    assert timedelta(days=1) < PATIENCE


def test_each_process_of_a_node_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [SECOND.device(name) for name in ("auto", "cpu", "cuda:1")] == ["cpu", "cpu", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [Processes(9, 16, local).device("auto") for local in (0, 2, 4)] == ["cuda:0", "cuda:2", "cuda:1"]
    assert [SECOND.device(name) for name in ("cpu", "cuda:2")] == ["cpu", "cuda:2"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert SECOND.device("auto") == "cpu"
