"""What the commands of a rehearsal do and say; with a cluster that only notes it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.rehearsal import __main__ as rehearsal
from slurm.rehearsal.answers import Answer
from slurm.rehearsal.cluster import Cluster
from slurm.rehearsal.settings import Site


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands do."""
    done: list[Any] = []

    def note(name: str, result: object = None) -> Callable[..., object]:
        return lambda *words, **options: done.append((name, *words, *options.values())) or result

    monkeypatch.setattr(
        rehearsal.rehearsal_cluster, "start", note("start", Cluster(Path("/r"), ("node1", "node2"), {}))
    )
    monkeypatch.setattr(rehearsal.rehearsal_cluster, "stop", note("stop"))
    monkeypatch.setattr(rehearsal, "break_node", note("break"))
    monkeypatch.setattr(rehearsal, "heal_node", note("heal"))
    monkeypatch.setattr(rehearsal, "require_running", note("require"))
    monkeypatch.setattr(rehearsal, "set_answers", note("answers"))
    return done


ROOT = ["--root", "/r"]


@pytest.mark.parametrize(
    ("words", "done", "messages"),
    [
        (
            ["start", "--nodes", "3", "--cpus", "5", "--gpus", "1", "--accounting", "--partitions", "a", "b", "--conf",
             "a.MaxTime=3", "--slow", "squeue=1", "--lose", "sbatch=always", "--fail", "sinfo=first-1:no"],
            [("start", Site(3, 5, 1, True, ("a", "b"), {"a.MaxTime": "3"}, (
                Answer("sinfo", 0, "first-1", "fail", "no"), Answer("sbatch", 0, "always", "lose"), Answer("squeue", 1)
            )))],
            ['idle: node1 node2; next: eval "$(python -m slurm.rehearsal env)"'],
        ),
        (["stop"], [("stop",)], []),
        (["break", "node1", "--silent"], [("break", "node1", False)], None),
        (["heal", "node1"], [("heal", "node1")], ["node1 is back"]),
        (
            ["disturb", "--fail", "squeue=always", "--slow", "sinfo=1"],
            [("require",), ("answers", (Answer("squeue", fails="always"), Answer("sinfo", 1)))],
            ["disturbed: squeue, sinfo; a shell may need `hash -r`"],
        ),
        (["disturb"], [("require",), ("answers", ())], ["all commands answer again"]),
    ],
)  # fmt: skip
def test_what_each_command_does(
    verbs: list[Any], words: list[str], done: list[Any], messages: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert rehearsal.main([*words, *ROOT]) == 0
    assert verbs == [(name, Path("/r"), *rest) for name, *rest in done]
    if messages is not None:
        assert caplog.messages == messages


def test_a_broken_node_is_told_with_the_way_back(verbs: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        rehearsal.main(["break", "node1", *ROOT])
    assert verbs == [("break", Path("/r"), "node1", True)]
    (message,) = caplog.messages
    assert message.startswith("node1 is broken; next: python")
    assert message.endswith(" -m slurm.rehearsal heal node1 --root /r")


def test_variables_are_printed_for_a_shell(
    verbs: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "a b"
    assert rehearsal.main(["env", "--root", str(root)]) == 0
    assert capsys.readouterr().out == (
        f"export SLURM_CONF='{root}/etc/slurm.conf'\nexport GLOO_SOCKET_IFNAME=lo\nexport PATH='{root}/bin':\"$PATH\"\n"
    )


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, False),
        ({"nodes": 7}, False),
        ({"conf": ("A=1",)}, True),
        ({"slow": ("squeue=1",)}, True),
        ({"partitions": ("day",)}, True),
    ],
)
def test_a_cluster_that_runs_already_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], changes: bool
) -> None:
    monkeypatch.setattr(rehearsal, "is_running", lambda root: root == tmp_path)
    run = rehearsal.Run(root=tmp_path, **options)
    command = ["sh", "-c", f"[ $SLURM_CONF = {tmp_path}/etc/slurm.conf ] && exit 7"]
    if changes:
        message = rf"^a cluster runs in {tmp_path}, and is configured as it is: choose another --root, or "
        with pytest.raises(ValueError, match=message):
            rehearsal._run(run, command)
    else:
        assert rehearsal._run(run, command) == 7


def test_else_the_command_has_a_cluster_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Site] = []

    @contextlib.contextmanager
    def rehearse(site: Site) -> Iterator[Cluster]:
        asked.append(site)
        yield Cluster(tmp_path, ("node1",), {"PATH": os.environ["PATH"], "A": "5"})

    monkeypatch.setattr(rehearsal.rehearsal_cluster, "rehearse", rehearse)
    words = ["run", "--nodes", "1", "--root", str(tmp_path), "--", "sh", "-c", "exit $A", "--", "x"]
    assert rehearsal.main(words) == 5
    assert asked == [Site(nodes=1)]
