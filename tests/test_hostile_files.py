"""All commands look at a stranger's files: nothing runs, nothing outside changes, and no terminal or browser obeys."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from jobs.cancel import main as cancel
from jobs.chain import main as chain
from jobs.clean import main as clean
from jobs.doctor import main as doctor
from jobs.logs import main as logs
from jobs.report import main as report
from jobs.reporting.serve import ReportServer
from jobs.retry import main as retry
from jobs.status import main as status
from jobs.sweep import main as sweep
from jobs.usage import main as usage
from jobs.wandb_sync.trials import Target, plan_replays
from petseg.evaluate import main as evaluate
from shards.command import CANCELLED, run_command
from tests.hostile_files import FOREIGN, HTML, SPOILS, canary, surroundings, trials
from tests.jobs.reporting.written_sweep import DICE, Lab, finish

DOCUMENTED = {0, 2, 3, 4, 75}
SECRET = "the secret of another file"
LONGEST_S = 60  # a FIFO that is opened is waited for without end

Command = tuple[Callable[[list[str]], int], tuple[str, ...]]
LOOKS: dict[str, Command] = {
    "status": (status, ()),
    "status --json": (status, ("--json",)),
    "report": (report, ()),
    "report csv": (report, ("--format", "csv")),
    "report md": (report, ("--format", "md")),
    "report json": (report, ("--format", "json")),
    "report parquet": (report, ("--format", "parquet")),
    "usage": (usage, ()),
    "usage --json": (usage, ("--json",)),
    "clean": (clean, ("--older-than", "0m")),
    "cancel": (cancel, ()),
    "retry": (retry, ("--failed", "--dry-run")),
    "retry --cause": (retry, ("--cause", "gpu_memory", "--dry-run")),
}


@pytest.fixture(autouse=True)
def nobody_waits() -> Iterator[None]:
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a command waits for what never comes"))
    signal.alarm(LONGEST_S)
    yield
    signal.alarm(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A healthy sweep of three trials."""
    (tmp_path / "shards").mkdir()
    lab = Lab(tmp_path / "runs" / "lab", tmp_path / "shards", {"model.arch": ["unet"], "train.seed": [0, 1, 2]})
    plan = lab.plan()
    for trial in plan.trials:
        finish(trial, DICE[trial.axes["model.arch"], "none"][trial.axes["train.seed"]])
    return lab.folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    made = tmp_path / "outside"
    made.mkdir()
    (made / "secret").write_text(f"{SECRET}\n" * 3)
    Image.new("RGB", (8, 8)).save(made / "picture.png")
    return made


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command to a documented end; what it and its processes said, which no terminal obeys."""

    def run_it(main: Callable[[list[str]], int], *words: object, codes: set[int] = DOCUMENTED) -> str:
        try:
            code = run_command(main, [str(word) for word in words])
        except SystemExit as error:  # of the command line's own parser
            code = int(str(error.code))
        captured = capfd.readouterr()
        said = captured.out + captured.err
        assert code in codes, said
        assert "bug:" not in said
        assert "Traceback" not in captured.err
        assert not [char for char in said if (ord(char) < 32 and char not in "\n\t") or char in "\x7f\x9b\u202e"]
        assert SECRET not in said
        return said

    return run_it


@pytest.mark.parametrize("command", LOOKS)
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_run_folder(run: Callable[..., str], folder: Path, outside: Path, spoil: str, command: str) -> None:
    SPOILS[spoil](folder, outside)
    before = surroundings(outside)
    main, words = LOOKS[command]
    run(main, folder, *words)
    assert surroundings(outside) == before
    assert not canary(outside).exists()
    page = folder / "report.html"
    if page.is_file() and not page.is_symlink():
        text = page.read_text()
        assert HTML not in text
        assert "\x1b" not in text
        assert SECRET not in text


PLANS: dict[str, Command] = {
    "sweep --dry-run": (sweep, ("--dry-run", "--no-probe")),
    "chain train --dry-run": (chain, ("train", "report", "--dry-run", "--no-probe")),
    "chain report": (chain, ("report", "--cluster", "debug")),
    "doctor": (doctor, ("--cluster", "local", "--only", "config,shards,splits,mixing,folder")),
}


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.slow] * (name == "chain report")) for name in PLANS]
)
@pytest.mark.parametrize("spoil", SPOILS)
def test_what_would_be_run_in_a_run_folder(
    run: Callable[..., str], folder: Path, outside: Path, spoil: str, command: str
) -> None:
    SPOILS[spoil](folder, outside)
    before = surroundings(outside)
    main, words = PLANS[command]
    axes = ("--axis", "model.arch=unet", "--axis", "augment.policy=none", "--axis", "train.seed=0,1,2,3")
    shards = ("--set", f"data.shards={folder.parents[1] / 'shards'}")
    run(main, *words, *axes, *shards, "--name", folder.name, "--runs-dir", folder.parent)
    assert surroundings(outside) == before
    assert not canary(outside).exists()


@pytest.mark.parametrize("spoil", SPOILS)
def test_the_page_of_a_run_folder_as_it_is_served(
    run: Callable[..., str], folder: Path, outside: Path, spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, str] = {}

    def fetched_and_stopped(self: ReportServer) -> None:
        thread = threading.Thread(target=ThreadingHTTPServer.serve_forever, args=(self, 0.01))
        thread.start()
        try:
            for path in ("/", "/version"):
                with urllib.request.urlopen(self.url.replace("/?", f"{path}?"), timeout=LONGEST_S) as reply:
                    got[path] = reply.read().decode()
        finally:
            self.shutdown()
            thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(ReportServer, "serve_forever", fetched_and_stopped)
    SPOILS[spoil](folder, outside)
    before = surroundings(outside)
    said = run(report, folder, "--serve", codes={2, 3, CANCELLED})
    assert ("as it runs: http://127.0.0.1:" in said) == bool(got)
    assert surroundings(outside) == before
    assert not canary(outside).exists()
    for text in got.values():
        assert HTML not in text
        assert "\x1b" not in text
        assert SECRET not in text


@pytest.mark.parametrize("spoil", SPOILS)
def test_the_logs_of_a_run_folder(run: Callable[..., str], folder: Path, outside: Path, spoil: str) -> None:
    words = trials(folder)[1].name
    SPOILS[spoil](folder, outside)
    before = surroundings(outside)
    for flags in ((), ("--follow",), ("--lines", "0")):
        run(logs, folder, words, *flags)
    assert surroundings(outside) == before
    assert not canary(outside).exists()


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_sync_would_send(folder: Path, outside: Path, spoil: str) -> None:
    """It reads all that it sends, and names no file outside of the folder."""
    SPOILS[spoil](folder, outside)
    before = surroundings(outside)
    sent = ""
    with contextlib.suppress(ValueError, OSError):
        plan = plan_replays(folder, Target("http://127.0.0.1:1", artifacts="all"), again=True)
        sent = json.dumps([(replay.about, replay.summary, replay.artifacts) for replay in plan.replays], default=str)
    assert SECRET not in sent
    assert str(outside) not in sent.replace(str(folder), "")
    assert surroundings(outside) == before
    assert not canary(outside).exists()


@pytest.mark.parametrize("spoil", SPOILS)
def test_the_evaluation_of_a_run(run: Callable[..., str], folder: Path, outside: Path, spoil: str) -> None:
    trial = trials(folder)[0]
    SPOILS[spoil](folder, outside)
    before = surroundings(outside)
    run(evaluate, trial, codes={2, 3})
    assert surroundings(outside) == before
    assert not canary(outside).exists()


def test_the_sound_trials_of_a_spoiled_sweep_are_shown(run: Callable[..., str], folder: Path, outside: Path) -> None:
    SPOILS["wrong_types"](folder, outside)
    said = run(status, folder)
    assert "1 done" in said
    assert "damaged" in said
    run(report, folder, codes={0})
    healthy = [path.name for path in trials(folder)][2]
    assert healthy in (folder / "report.html").read_text()


def test_cells_are_no_formulas(run: Callable[..., str], folder: Path, outside: Path) -> None:
    SPOILS["foreign_text"](folder, outside)
    rows = list(csv.reader(run(report, folder, "--format", "csv").splitlines()))
    cells = [cell for row in rows for cell in row]
    assert any("cmd|" in cell for cell in cells)
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "-c"))]
    table = run(report, folder, "--format", "md")
    assert "<script" not in table
    assert "<img" not in table


def test_pipes_of_a_run_folder_are_not_submitted_again(run: Callable[..., str], folder: Path, outside: Path) -> None:
    SPOILS["commands_as_shards"](folder, outside)
    trial = trials(folder)[0]
    (trial / "result.json").unlink()
    (trial / "state.json").write_text(json.dumps({"status": "failed", "error": "OSError: x", "job_id": "91"}))
    line = {"trial": trial.name, "job_id": "91", "cluster": "local", "log": "logs/91_0_log.out"}
    (folder / "submissions.jsonl").write_text(json.dumps(line) + "\n")
    launch = {"cluster": "debug", "resources": {"gpus_per_node": 0}, "max_parallel": 1, "trials_per_job": 1}
    (folder / "launch.json").write_text(json.dumps(launch))
    assert "--allow-pipe" in run(retry, folder, "--failed", "--even-so", codes={2})
    assert not canary(outside).exists()


def test_pipes_of_a_sweep_file_are_not_run_by_a_look(run: Callable[..., str], tmp_path: Path) -> None:
    path, seen = tmp_path / "theirs.yaml", tmp_path / "manifest.json"
    pipe = f"pipe:touch {tmp_path}/{{}}"  # the manifest is asked for first
    path.write_text(f"parameters: {{data.shards: {{value: '{pipe}'}}, train.seed: {{values: [0, 1]}}}}")
    assert "--allow-pipe" in run(sweep, "--sweep", path, "--dry-run", "--runs-dir", tmp_path, codes={2})
    assert not seen.exists()
    run(sweep, "--sweep", path, "--dry-run", "--runs-dir", tmp_path, "--set", f"data.shards={pipe}", codes={2})
    assert seen.exists()  # asked for on the command line


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", "a/b", "-x", ".hidden", "a\x1b[2J", ""])
def test_names_of_sweeps_stay_within_the_folder_of_runs(run: Callable[..., str], tmp_path: Path, name: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(json.dumps({"name": name, "parameters": {"train.seed": {"values": [0, 1]}}}))
    before = surroundings(tmp_path)
    assert "name" in run(sweep, "--sweep", path, "--runs-dir", tmp_path / "runs", "--cluster", "local", codes={2})
    if name:
        words = ("--name", name) if not name.startswith("-") else (f"--name={name}",)
        assert "--name" in run(sweep, "--runs-dir", tmp_path / "runs", *words, "--cluster", "local", codes={2})
    assert surroundings(tmp_path) == before


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    "content",
    [
        BOMB,
        "a: &a [*a]\nparameters: {train.seed: {values: [0]}}",
        "[" * 50_000,
        "!!python/object/apply:os.system ['touch canary']",
        "parameters: {train.seed: {values: [!!python/name:os.system '']}}",
        f"parameters: {{{json.dumps(FOREIGN)}: {{values: [0]}}}}",
        "parameters: [1]",
        "\x00\x01",
    ],
)
def test_a_sweep_file(run: Callable[..., str], tmp_path: Path, content: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(content)
    before = surroundings(tmp_path)
    said = run(sweep, "--sweep", path, "--dry-run", "--runs-dir", tmp_path / "runs", codes={2})
    assert len(said) < 2000
    assert surroundings(tmp_path) == before


def test_a_sweep_file_that_is_a_fifo(run: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "theirs.yaml")
    assert "FIFO" in run(sweep, "--sweep", tmp_path / "theirs.yaml", "--dry-run", codes={2})


def test_nobody_is_cancelled_where_nobody_can_be_asked(run: Callable[..., str], folder: Path) -> None:
    trial = trials(folder)[0]
    (trial / "result.json").unlink()
    state = {"status": "running", "host": "another-host", "job_id": "91"}
    (trial / "state.json").write_text(json.dumps(state))
    line = {"trial": trial.name, "job_id": "91", "cluster": "local", "log": "logs/91_0_log.out"}
    (folder / "submissions.jsonl").write_text(json.dumps(line) + "\n")
    assert "--yes" in run(cancel, folder, codes={2})
