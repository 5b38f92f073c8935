"""The client's process: the commands that it takes, how it opens a run, and the pipes to and from it."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO, cast

import pytest
import wandb

from petseg.run_folder.layout import write_metrics
from petseg.tracking import client, process
from petseg.tracking.arrival import LossListener
from petseg.tracking.process import Answer, WandbProcess
from tests.petseg.tracking.test_client import Noted, settings_of


@pytest.fixture
def answers() -> Iterator[tuple[int, Callable[[], list[Answer]]]]:
    """A descriptor to answer by, and what was answered; loggers have their handlers of before afterwards."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    before = list(logging.getLogger("wandb").handlers)

    def read() -> list[Answer]:
        try:
            return [json.loads(line) for line in os.read(reader, 1 << 16).splitlines()]
        except BlockingIOError:
            return []

    yield writer, read
    logging.getLogger("wandb").handlers = before
    for number in (reader, writer):
        os.close(number)


def lines(*commands: dict[str, Any]) -> io.StringIO:
    return io.StringIO("".join(json.dumps(command) + "\n" for command in commands))


def begin_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"begin": vars(settings_of(folder, **changes))}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    """The runs that are opened."""
    opened: list[Noted] = []

    def open_run(settings: Any) -> Noted:
        if settings.id == "refused":
            raise RuntimeError("https://me:secret@host says no")
        opened.append(Noted(starting_step=3))
        vars(opened[-1]).update(url="https://host/run", project_url="https://a:b@host/pets", resumed=True)
        return opened[-1]

    monkeypatch.setattr(client, "open_run", open_run)
    return opened


END = {"end": {"summary": {"ended": "finished"}, "exit_code": 0}}


def test_each_command_is_carried_out_and_answered(tmp_path: Path, answers: Any, runs: list[Noted]) -> None:
    write_metrics([{"epoch": epoch, "val/dice": 0.5} for epoch in (1, 2, 3, 4)], tmp_path)
    client.serve(lines({"rows": {}}, END, begin_of(tmp_path), {"rows": {}}, END, {"rows": {}}), answers[0])
    assert answers[1]() == [{"begun": 3, "url": "", "project_url": "", "resumed": False}, {"ended": 2}]
    (run,) = runs
    assert list(run.rows) == [3, 4]
    assert run.ended == [0]


def test_rows_are_sent_as_soon_as_they_are_there_to_the_address_that_is_answered(
    tmp_path: Path, answers: Any, runs: list[Noted]
) -> None:
    seen: list[list[int]] = []

    def commands() -> Iterator[str]:
        yield from lines(begin_of(tmp_path, mode="online"))
        for epoch in (3, 4):
            write_metrics([{"epoch": one, "val/dice": 0.5} for one in range(1, epoch + 1)], tmp_path)
            yield from lines({"rows": {}})
            seen.append(list(runs[0].rows))

    client.serve(cast(TextIO, commands()), answers[0])
    assert seen == [[3], [3, 4]]
    where = {"url": "https://host/run", "project_url": "https://host/pets", "resumed": True}
    assert answers[1]() == [{"begun": 3, **where}]


def test_signals_are_the_trainings_and_answers_do_not_mix_with_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    names = {name: name for name in ("SIGINT", "SIGTERM", "SIGUSR2", "SIG_IGN")}
    streams = {name: SimpleNamespace(fileno=lambda name=name: name) for name in ("stdin", "stdout", "stderr")}
    duplicates = {"dup": lambda one: f"copy of {one}", "dup2": lambda *what: events.append(what)}
    monkeypatch.setattr(client, "signal", SimpleNamespace(signal=lambda *what: events.append(what), **names))
    monkeypatch.setattr(client, "sys", SimpleNamespace(**streams))
    monkeypatch.setattr(client, "os", SimpleNamespace(**duplicates))
    monkeypatch.setattr(client, "serve", lambda *what: events.append(what))
    client.main()
    ignored = [(name, "SIG_IGN") for name in ("SIGINT", "SIGTERM", "SIGUSR2")]
    assert events == [*ignored, ("stderr", "stdout"), (streams["stdin"], "copy of stdout")]


def test_a_run_whose_training_died_gets_its_rows_and_is_marked_as_failed(
    tmp_path: Path, answers: Any, runs: list[Noted]
) -> None:
    write_metrics([{"epoch": 3, "val/dice": 0.5}], tmp_path)
    client.serve(lines(begin_of(tmp_path)), answers[0])
    assert list(runs[0].rows) == [3]
    assert (runs[0].summary["ended"], runs[0].ended) == ("failed", [1])


def test_an_error_is_answered_without_secrets_and_ends_the_run(tmp_path: Path, answers: Any, runs: list[Noted]) -> None:
    client.serve(lines(begin_of(tmp_path, id="refused"), {"rows": {}}, END), answers[0])
    assert answers[1]() == [{"error": "RuntimeError", "text": "https://host says no"}]
    assert runs == []


def test_rows_that_the_client_gives_up_are_answered_at_once(tmp_path: Path, answers: Any, runs: list[Noted]) -> None:
    client.serve(lines(), answers[0])
    log = logging.getLogger("wandb")
    log.warning("wandb: WARNING 403 of https://me:secret@host: data will not be synced. See more")
    log.warning("something else")
    log.info("data will not be synced")
    assert answers[1]() == [{"error": "LostRows", "text": "403 of https://host: data will not be synced"}]


def test_a_loss_is_told_by_its_first_sentence() -> None:
    told: list[str] = []
    listener = LossListener(told.append)
    assert listener.level == logging.WARNING
    for text in ("wandb: WARNING run x: data will not be synced. More", "data will not be synced", "all is well"):
        listener.emit(logging.makeLogRecord({"msg": text}))
    assert told == ["run x: data will not be synced", "data will not be synced"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], WandbProcess]]:
    """program(text): a client that is this shell script; it is ended afterwards."""
    begun: list[WandbProcess] = []

    def start(text: str, on_answer: Callable[[Answer], None] | None = None) -> WandbProcess:
        script = tmp_path / "client.sh"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(process, "sys", SimpleNamespace(executable=str(script)))
        begun.append(WandbProcess(on_answer))
        return begun[-1]

    yield start
    for one in begun:
        one.close()


def test_an_answer_is_waited_for_by_its_word_or_until_an_error(program: Any, tmp_path: Path) -> None:
    told: list[Answer] = []
    said = [{"other": 1}, {"begun": 2}, {"error": "E", "text": "t"}]
    (tmp_path / "said").write_text("".join(json.dumps(answer) + "\n" for answer in said))
    one = program(f"cat {tmp_path}/said; exec sleep 600", told.append)
    one.send(begin={"id": "x"})
    assert one.wait_for("begun", 60.0) == {"begun": 2}
    assert one.wait_for("ended", 60.0) == {"error": "E", "text": "t"}
    assert one.wait_for("ended", 0.01) is None
    one.kill()
    assert one.wait_for("ended", 60.0) == {"error": "RuntimeError", "text": "its client has ended"}
    one.send(end={})  # to nobody
    one.close()
    assert [next(iter(answer)) for answer in told] == ["other", "begun", "error", "error"]


def test_a_client_that_is_closed_is_no_error(program: Any) -> None:
    told: list[Answer] = []
    program("exec sleep 600", told.append).close()
    assert told == []


def test_a_client_starts_without_the_service_of_another(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "another's")
    monkeypatch.setenv("WANDB_API_KEY", "kept")
    facts = "$WANDB_SERVICE-$WANDB_API_KEY-$*-$(ps -o sid= $$ | tr -d ' ')-$$"
    answer = program(f'echo "{{\\"ended\\": \\"{facts}\\"}}"; exec sleep 600').wait_for("ended", 60.0)
    service, key, *words, session, own = answer["ended"].split("-")
    assert (service, key, "-".join(words)) == ("", "kept", "-m petseg.tracking.client")
    assert session == own  # Ctrl-C does not reach it


def test_half_a_command_is_none(program: Any) -> None:
    """A client that reads nothing, and a pipe that holds 64 kB."""
    one = program("exec sleep 600")
    one.send(rows={"x": "x" * 200_000})
    assert one.wait_for("ended", 60.0) == {"error": "RuntimeError", "text": "its client has ended"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What wandb is asked for when a run is opened."""
    found: dict[str, Any] = {"metrics": []}

    class Run:
        def __init__(self) -> None:
            self.config = SimpleNamespace(update=lambda *words, **more: found.update(config=(*words, more)))

        def define_metric(self, name: str, **more: Any) -> None:
            found["metrics"].append((name, more))

    monkeypatch.setattr(wandb, "setup", lambda: None)
    monkeypatch.setattr(wandb, "termsetup", lambda *_: None)
    monkeypatch.setattr(wandb, "Settings", lambda **values: values)
    monkeypatch.setattr(wandb, "init", lambda **values: found.update(init=values) or Run())
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "before")
    return found


def test_a_trainings_run_is_opened_with_the_load_of_its_process(tmp_path: Path, asked: dict[str, Any]) -> None:
    settings = settings_of(
        tmp_path, mode="online", name="a label", group="lab", tags=("a", "b"), config={"x": 1}, watched_pid=77,
        program="jobs/sweep.py", commit="c0ffee", remote="git@host:x", init_timeout_s=9.0, finish_timeout_s=8.0,
    )  # fmt: skip
    opened = client.open_run(settings)
    opened.define_metric("x")  # it is the run of the client
    assert asked["metrics"].pop() == ("x", {})
    begun = asked["init"]
    assert begun.pop("settings") == {
        "silent": True, "console": "off", "save_code": False, "disable_git": True, "program": "jobs/sweep.py",
        "git_commit": "c0ffee", "git_remote_url": "git@host:x", "init_timeout": 9.0, "finish_timeout": 8.0,
        "finish_timeout_raises": True, "x_stats_pid": 77,
    }  # fmt: skip
    assert begun == {
        "project": "pets", "entity": "lab", "id": "run1", "name": "a label", "group": "lab", "job_type": "train",
        "tags": ["a", "b"], "config": {"x": 1}, "dir": str(tmp_path), "mode": "online", "resume": "allow",
    }  # fmt: skip
    assert asked["config"] == ({"x": 1}, {"allow_val_change": True})
    by_epoch = [(name, {"step_metric": "epoch"}) for name in ("train/*", "val/*", "test/*", "perf/*")]
    assert asked["metrics"] == [("epoch", {}), ("step", {}), *by_epoch]
    kept = [os.environ[f"WANDB_{name}_DIR"] for name in ("CACHE", "DATA")]
    assert kept == [f"{tmp_path}/wandb/{name}_dir" for name in ("cache", "data")]


def test_a_replay_says_nothing_of_the_machine_that_it_runs_on(tmp_path: Path, asked: dict[str, Any]) -> None:
    for host in ("node1", ""):
        client.open_run(settings_of(tmp_path, host=host, entity=""))
        begun = asked["init"]
        where = {name: begun["settings"][name] for name in ("host", "x_disable_stats", "x_disable_meta")}
        assert where == {"host": host or None, "x_disable_stats": True, "x_disable_meta": True}
        assert begun["settings"]["x_save_requirements"] is False
        assert "x_stats_pid" not in begun["settings"]
        assert [begun["settings"][name] for name in ("git_commit", "git_remote_url")] == [None, None]
        assert [begun[name] for name in ("name", "entity", "group", "mode", "resume")] == [
            "run1", None, None, "offline", None,
        ]  # fmt: skip
