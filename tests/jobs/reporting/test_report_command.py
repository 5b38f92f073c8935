"""The command: the page, tables, the terminal."""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import report, status
from jobs.launch.lock import launcher_lock
from jobs.runs.trial import Sweep
from shards.command import OK, WRONG_USE, run_command
from tests.jobs.reporting.written_sweep import DICE, Lab, finish, place

REPOSITORY = Path(__file__).parents[3]


def test_command_writes_the_page_and_shows_the_leaderboard(
    finished: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(report.main, ["lab", "--runs-dir", str(tmp_path / "runs")]) == OK
    shown = capsys.readouterr().out
    assert "lab: 12 done, 0 failed" in shown
    assert "0.9010 [0.8" in shown
    assert "no difference shown" in shown
    assert "arch, averaged over policy: unet beats resnet34_unet by 0.0305 [" in shown
    assert "unet · none against unet · elastic: no difference shown (0.0010 [" in shown
    assert "What policy does depends on arch" in shown
    assert str(finished.folder / "report.html") in shown
    other = tmp_path / "new" / "page.html"
    assert run_command(report.main, [str(finished.folder), "--out", str(other)]) == OK
    assert other.read_bytes() == (finished.folder / "report.html").read_bytes()
    assert [path.name for path in other.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("form", ["md", "csv", "json"])
def test_leaderboard_in_other_formats_has_the_same_rows(
    finished: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert run_command(report.main, [str(finished.folder), "--format", form]) == OK
    shown = capsys.readouterr().out
    out = tmp_path / f"board.{form}"
    assert run_command(report.main, [str(finished.folder), "--format", form, "--out", str(out)]) == OK
    assert out.read_text() == shown
    assert not (finished.folder / "report.html").exists()
    if form == "md":
        lines = [line for line in shown.splitlines() if line.startswith("|")]
        rows = [dict(zip(lines[0].split(" | "), line.split(" | "), strict=True)) for line in lines[2:]]
        assert [(row["model.arch"], row["augment.policy"]) for row in rows] == list(DICE)
        assert [row["rank"] for row in rows] == ["1-2", "1-2", "3-4", "3-4"]
        return
    rows = json.loads(shown)["rows"] if form == "json" else list(csv.DictReader(io.StringIO(shown)))
    assert [(row["model.arch"], row["augment.policy"]) for row in rows] == list(DICE)
    assert [float(row["val_dice"]) for row in rows] == pytest.approx([0.901, 0.900, 0.880, 0.860])
    assert [int(row["rank_worst"]) for row in rows] == [2, 2, 4, 4]
    assert [row["finding"] or None for row in rows] == [None, "no difference shown", "apart", "apart"]
    assert all(float(row["val_dice_low"]) < float(row["val_dice"]) < float(row["val_dice_high"]) for row in rows)
    assert rows[0]["interval_covers"] == "seeds and pictures"


def test_command_without_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(report.main, ["nothing", "--runs-dir", str(tmp_path)]) == WRONG_USE
    assert capsys.readouterr().err.startswith("error: no sweep in")


def test_report_does_not_wait_for_torch(finished: Sweep) -> None:
    script = (
        "import sys; from jobs.report import main; main([sys.argv[1]]); "
        "assert not {'torch', 'wandb'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(finished.folder)]
    subprocess.run(command, check=True, timeout=120, cwd=REPOSITORY, capture_output=True)


@pytest.fixture
def of_another_user(finished: Sweep, small_disk: Callable[[int], Path]) -> Path:
    """The sweep where it may be read and not written: on a disk that is mounted so, since root may write any folder."""
    disk = small_disk(50_000_000)
    shutil.copytree(finished.folder, disk / "lab")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=30)
    return disk / "lab"


def test_the_sweep_of_another_user_is_reported_elsewhere(
    of_another_user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lab = str(of_another_user)
    assert run_command(report.main, [lab]) == WRONG_USE
    said = f"{lab}/report.html cannot be written (Read-only file system): --out report.html writes it into this folder"
    assert said in capsys.readouterr().err
    assert run_command(report.main, [lab, "--out", "report.html"]) == OK
    assert (tmp_path / "report.html").exists()
    assert run_command(status.main, [lab]) == OK
    with pytest.raises(ValueError, match=r"only its owner submits"), launcher_lock(of_another_user):
        pass


@pytest.mark.parametrize(("seeds", "covers"), [([0], "pictures"), ([0, 1], "seeds and pictures")])
def test_the_leaderboard_says_what_its_intervals_cover(
    lab: Lab, capsys: pytest.CaptureFixture[str], seeds: list[int], covers: str
) -> None:
    """One seed says nothing of another training run."""
    lab.axes["train.seed"] = seeds
    for trial in (sweep := lab.plan()).trials:
        finish(trial, DICE[place(trial)][trial.axes["train.seed"]])
    assert run_command(report.main, [str(sweep.folder), "--format", "json"]) == OK
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["interval_covers"] for row in rows] == [covers] * 4
