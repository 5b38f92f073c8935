"""A sweep's folder that an earlier petseg wrote (tests/jobs/old_sweep) opens, is measured, and goes on.

It holds two finished trials of the same seed, one that was interrupted after its first epoch, and one whose loss was
not finite; the shard set is drawn again, to the same hash.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs import clean, logs, report, status, sweep, usage
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import Sweep
from petseg import evaluate
from petseg.run_folder.layout import load_result, read_metrics
from shards.command import FAILED, OK, run_command
from shards.pack import PackConfig, pack

WRITTEN = Path(__file__).with_name("old_sweep")
DONE, DONE_TOO, CUT_SHORT, NOT_FINITE = "0882af0e7e", "caca28d118", "5b0518fa7f", "cd3aa18b6c"
PATHS = "/home/me"


@pytest.fixture
def old(tmp_path: Path) -> Sweep:
    """The folder, as if it had always been here."""
    pack(PackConfig(out=tmp_path / "set", synthetic=30, image_size_px=64, samples_per_shard=12, workers=1))
    folder = tmp_path / "runs" / "old"
    shutil.copytree(WRITTEN, folder)
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".out"):
            path.write_text(path.read_text().replace(PATHS, str(tmp_path)))
    return load_sweep(folder)


def test_commands_open_it(old: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(old.folder)
    assert run_command(status.main, [folder, "--json"]) == FAILED
    shown = {row["id"]: row for row in json.loads(capsys.readouterr().out)["trials"]}
    assert {name: row["state"] for name, row in shown.items()} == {
        DONE: "done", DONE_TOO: "done", CUT_SHORT: "interrupted", NOT_FINITE: "failed"
    }  # fmt: skip
    assert "the loss is not finite" in shown[NOT_FINITE]["note"]
    assert run_command(report.main, [folder, "--format", "csv"]) == OK
    assert ",elastic,0.3752" in capsys.readouterr().out
    assert run_command(report.main, [folder]) == OK
    assert "0.3752" in (old.folder / "report.html").read_text()
    for command, *flags in ((usage.main,), (clean.main, "--dry-run"), (logs.main, NOT_FINITE)):
        assert run_command(command, [folder, *flags]) == OK


def test_its_weights_are_measured(old: Sweep, tmp_path: Path) -> None:
    folder = old.folder / "trials" / DONE
    flags = ["--split", "val", "--pictures", "1", "--shards", str(tmp_path / "set"), "--no-native"]
    assert run_command(evaluate.main, [str(folder), *flags]) == OK
    result = load_result(folder)
    assert result is not None
    measured = json.loads((folder / "evaluate-val.json").read_text())["metrics"]
    assert measured["val/dice"] == pytest.approx(result.metrics["val/dice"], abs=1e-6)


def test_the_same_sweep_goes_on_in_it(old: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of its trials have not changed: only those without a result run, from a checkpoint if there is one."""
    monkeypatch.chdir(tmp_path)
    fixed = {
        "data.shards": tmp_path / "set", "model.width": 2, "data.image_size_px": 32, "train.epochs": 2,
        "train.batch_size": 8, "tracking.wandb": "disabled", "tracking.overlays": 1,
    }  # fmt: skip
    settings = [word for name, value in fixed.items() for word in ("--set", f"{name}={value}")]
    axes = ["--axis", "model.arch=unet", "--axis", "augment.policy=none,elastic", "--axis", "train.seed=0,1"]
    before = {name: (old.folder / "trials" / name / "result.json").read_bytes() for name in (DONE, DONE_TOO)}
    cut_short = old.folder / "trials" / CUT_SHORT
    (first,) = read_metrics(cut_short)
    flags = ["--name", "old", "--runs-dir", str(tmp_path / "runs"), "--cluster", "debug"]
    assert run_command(sweep.main, [*flags, *axes, *settings]) == OK
    again = load_sweep(old.folder)
    assert {trial.id for trial in again.trials} == {DONE, DONE_TOO, CUT_SHORT, NOT_FINITE}
    assert all(trial.result() for trial in again.trials)
    assert {name: (old.folder / "trials" / name / "result.json").read_bytes() for name in before} == before
    assert read_metrics(cut_short)[0] == first
    assert len(read_metrics(cut_short)) == 2
