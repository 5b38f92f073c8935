"""When a served page is made again, by a clock that the test moves on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.reporting import serve
from jobs.reporting.serve import MARK, LivePage, fingerprint
from jobs.runs.trial import Submission, Sweep
from tests.jobs.written_trials import beat, finish, sweep_of


@dataclass
class World:
    """A sweep whose page is a text that says how often it was made."""

    sweep: Sweep
    now: float = 1000.0
    render_s: float = 0.0
    made: list[dict[str, Any]] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    status: str = "running"
    error: Exception | None = None

    def find(self, name: str, runs_dir: Path) -> Sweep:
        assert (Path(name), runs_dir) == (self.sweep.folder, self.sweep.folder.parent)
        if self.error:
            raise self.error
        return self.sweep

    def glance(self, sweep: Sweep) -> Any:
        self.asked.append(self.now)
        return SimpleNamespace(rows=[SimpleNamespace(status=self.status)])

    def render(self, sweep: Sweep, records: object, **how: Any) -> str:
        self.now += self.render_s
        self.made.append(how)
        return f"page {len(self.made)} of {MARK}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(sweep_of(tmp_path / "runs" / "lab", 2))
    monkeypatch.setattr(serve, "time", SimpleNamespace(monotonic=lambda: world.now))
    monkeypatch.setattr(serve, "find_runs", world.find)
    monkeypatch.setattr(serve, "glance", world.glance)
    monkeypatch.setattr(serve, "read_records", lambda sweep, rows: rows)
    monkeypatch.setattr(serve, "render_page", world.render)
    return world


def test_a_page_is_made_with_its_shards_and_carries_its_version(world: World) -> None:
    page = LivePage(world.sweep.folder, "data/shards")
    version, content = page.look()
    assert world.made == [{"shards": "data/shards", "live": MARK}]
    assert content == f"page 1 of {version}".encode()
    assert len(version) == 16


def test_a_folder_is_looked_at_every_two_seconds_and_a_page_made_after_changes_only(world: World) -> None:
    page = LivePage(world.sweep.folder)
    first = page.look()
    world.now += 1.9
    finish(world.sweep.trials[0])
    assert page.look() == first
    world.now += 0.1
    second = page.look()
    assert second[1].startswith(b"page 2 ")
    assert second[0] != first[0]
    world.now += 2.0
    assert page.look() == second
    assert len(world.made) == 2


def test_other_trials_states_are_asked_for_every_thirty_seconds(world: World) -> None:
    """A job may be gone, or a trial stalled, without a change of any file."""
    page = LivePage(world.sweep.folder)
    page.look()
    world.asked.clear()
    world.status = "stalled"
    for _ in range(15):
        world.now += 2.0
        page.look()
    assert world.asked == [1030.0] * 2  # once for the change, and once for the page
    assert len(world.made) == 2


def test_a_page_that_takes_long_is_made_less_often(world: World) -> None:
    page = LivePage(world.sweep.folder)
    page.look()
    world.render_s = 10.0
    world.now += 2.0
    finish(world.sweep.trials[0])
    page.look()  # until 1012
    finish(world.sweep.trials[1])
    world.now += 29.9
    assert page.look()[1].startswith(b"page 2 ")
    world.now += 0.1
    assert page.look()[1].startswith(b"page 3 ")


def test_a_trouble_is_told_once_and_again_after_it_was_over(world: World, caplog: pytest.LogCaptureFixture) -> None:
    page = LivePage(world.sweep.folder)
    first = page.look()
    troubles = [ValueError("a"), ValueError("a"), OSError("b"), None, OSError("b")]
    with caplog.at_level(logging.WARNING):
        for world.error in troubles:
            world.now += 2.0
            assert page.look() == first
    told = ["ValueError: a", "OSError: b", "OSError: b"]
    assert caplog.messages == [f"the page stays as it was: {one}" for one in told]


def test_the_first_page_raises_its_trouble(world: World) -> None:
    world.error = ValueError("no sweep")
    with pytest.raises(ValueError, match=r"^no sweep$"):
        LivePage(world.sweep.folder)


def touch_metrics(sweep: Sweep) -> None:
    (sweep.trials[1].folder / "metrics.jsonl").write_text("{}\n")


def rewrite_in_place(sweep: Sweep) -> None:
    path = sweep.trials[0].folder / "config.json"
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def add_folder(sweep: Sweep) -> None:
    (sweep.folder / "trials" / "new").mkdir()


def submit(sweep: Sweep) -> None:
    sweep.add_submissions([Submission(sweep.trials[0].id, "1", "local", "")])


def grow_sweep(sweep: Sweep) -> None:
    with (sweep.folder / "sweep.json").open("a") as file:
        file.write("\n")


def write_log(sweep: Sweep) -> None:
    (sweep.folder / "logs").mkdir()
    (sweep.folder / "logs" / "1_0_log.out").write_text("x")


def write_checkpoint(sweep: Sweep) -> None:
    (sweep.trials[0].folder / "checkpoints" / "step-1").mkdir(parents=True)


def write_aside(sweep: Sweep) -> None:
    (sweep.trials[0].folder / ".result.json.tmp").write_text("{")


@pytest.mark.parametrize(
    ("change", "is_seen"),
    [
        (touch_metrics, True), (rewrite_in_place, True), (add_folder, True), (submit, True), (grow_sweep, True),
        (write_log, False), (write_checkpoint, False), (write_aside, False),
        (lambda sweep: beat(sweep.trials[0], 1, 1, 5.0), False),
    ],
)  # fmt: skip
def test_changes_that_a_page_shows(tmp_path: Path, change: Callable[[Sweep], None], is_seen: bool) -> None:
    sweep = sweep_of(tmp_path / "lab", 2)
    before = fingerprint(sweep.folder)
    assert fingerprint(sweep.folder) == before
    change(sweep)
    assert (fingerprint(sweep.folder) != before) == is_seen


def test_single_runs_lie_in_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    before = fingerprint(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    assert fingerprint(tmp_path) != before
    (tmp_path / "sweep.json").write_text("{}")
    assert fingerprint(tmp_path)  # its trials have no folder yet
