"""Files that a disk, an editor or a kill has damaged: each command names them, says what to do, and reports no bug."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import cancel, clean, logs, report, retry, status, sweep, usage
from jobs.design.expansion import expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import load_spec
from jobs.runs.sweep_file import load_sweep, save_sweep
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trial_state import TrialState
from jobs.runs.trials import plan_sweep
from petseg import evaluate
from petseg.training.loop import train
from shards.command import WRONG_USE, run_command
from shards.manifest import load_manifest

Main = Callable[[Sequence[str]], int]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "list": lambda data: b"[]",
    "object": lambda data: b"{}",
    "noise": lambda data: bytes(range(128, 256)) * 4,
}
OF_SWEEP = ("sweep.json", "launch.json", "submissions.jsonl")
OF_TRIAL = (
    "config.json", "state.json", "result.json", "lives.json", "heartbeat.json", "metrics.jsonl", "per_image.npz",
    "val_masks.npz", "calibration.json", "evaluate-val.json", "overrides.json", "overlay_masks.npz",
    "run_name.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(pet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a sweep of one finished trial, evaluated; leave it as it is."""
    runs = tmp_path_factory.mktemp("damaged")
    file = runs / "s.yaml"
    values = {
        "data.shards": str(pet_shards), "data.image_size_px": 64, "data.threads": 1, "model.width": 4,
        "train.epochs": 1, "train.batch_size": 16, "train.test": False, "tracking.overlays": 1,
    }  # fmt: skip
    axes = {"train.seed": {"values": [0]}}
    content = {"name": "s", "parameters": {name: {"value": value} for name, value in values.items()} | axes}
    file.write_text(json.dumps(content))
    spec = load_spec(file)
    cells = expand(spec)
    planned = plan_sweep(spec, cells, ShardSets({str(pet_shards): load_manifest(pet_shards)}), runs / "s")
    (trial,) = planned.trials
    trial.folder.mkdir(parents=True)
    save_sweep(planned)
    train(cells[0].config, trial.folder)
    assert run_command(evaluate.main, [str(trial.folder), "--split", "val"]) == 0
    trial.write_state(TrialState("done", job_id="7", host="here"))
    (trial.folder / "overrides.json").write_text('{"train.accumulation_steps": 2}')
    (runs / "s" / "launch.json").write_text(json.dumps({"cluster": "local", "resources": {}}))
    planned.add_submissions([Submission(trial.id, "7", "local", str(runs / "log"))])
    (runs / "log").write_text("trained\n")
    return runs


def commands(runs: Path, trial: str) -> dict[str, tuple[Main, list[str]]]:
    where = ["--runs-dir", str(runs)]
    return {
        "status": (status.main, ["s", *where]),
        "report": (report.main, ["s", *where]),
        "usage": (usage.main, ["s", *where]),
        "logs": (logs.main, ["s", trial, *where]),
        "retry": (retry.main, ["s", trial, "--dry-run", *where]),
        "cancel": (cancel.main, ["s", "--yes", *where]),
        "clean": (clean.main, ["s", "--dry-run", *where]),
        "sweep": (sweep.main, ["--sweep", str(runs / "s.yaml"), "--cluster", "local", "--dry-run", *where]),
    }


def evaluation(runs: Path, trial: str) -> tuple[Main, list[str]]:
    return evaluate.main, [str(runs / "s" / "trials" / trial), "--split", "val"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*OF_SWEEP, *OF_TRIAL])
def test_each_command_names_the_file_and_reports_no_bug(
    finished: Path, tmp_path: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = Path(shutil.copytree(finished, tmp_path / "runs"))
    (trial,) = (runs / "s" / "trials").iterdir()
    path = (trial if name in OF_TRIAL else runs / "s") / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    wanted = commands(runs, trial.name)
    if name == "config.json":  # the others are not read by it
        wanted["evaluate"] = evaluation(runs, trial.name)
    for command, (main, argv) in wanted.items():
        code = run_command(main, argv)
        said = "".join(capfd.readouterr())
        assert "bug:" not in said, (command, said)
        assert "Traceback" not in said, (command, said)
        assert "Expecting value" not in said or name in said, (command, said)
        assert "codec can't decode" not in said or name in said, (command, said)
        if code and command not in ("retry", "logs"):  # these refuse a finished trial as well
            assert name in said, (command, said)


@pytest.mark.parametrize("name", ["config.json", "sweep.json", "overrides.json"])
def test_what_a_command_cannot_do_without_is_wrong_use_with_a_next_step(
    finished: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Path(shutil.copytree(finished, tmp_path / "runs"))
    (trial,) = (runs / "s" / "trials").iterdir()
    path = (trial if name in OF_TRIAL else runs / "s") / name
    path.write_bytes(path.read_bytes()[:5])
    needs = {"config.json": "evaluate", "overrides.json": "sweep"}.get(name, "status")
    if name == "overrides.json":
        (trial / "result.json").unlink()
    main, argv = (commands(runs, trial.name) | {"evaluate": evaluation(runs, trial.name)})[needs]
    assert run_command(main, argv) == WRONG_USE
    said = capsys.readouterr().err
    assert f"error: {path} is damaged (" in said
    assert "delete" in said


def test_a_submission_behind_half_a_line_is_not_lost(tmp_path: Path) -> None:
    """A launcher was killed as it wrote the line, and the next one goes on."""
    sweep = Sweep(tmp_path, "s", {}, "0", "x", ())
    one = Submission("a", "1", "slurm", "1.out")
    (tmp_path / "submissions.jsonl").write_text('{"trial": "z", "jo')
    sweep.add_submissions([one])
    sweep.add_submissions([replace(one, trial="b")])
    assert [found.trial for found in sweep.all_submissions()] == ["a", "b"]


def test_a_line_in_the_middle_that_is_damaged_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = Sweep(tmp_path, "s", {}, "0", "x", ())
    one = Submission("a", "1", "slurm", "1.out")
    sweep.add_submissions([one])
    with (tmp_path / "submissions.jsonl").open("a") as file:
        file.write("{}\n")
    sweep.add_submissions([replace(one, trial="b")])
    assert [found.trial for found in sweep.all_submissions()] == ["a", "b"]
    assert f"{tmp_path / 'submissions.jsonl'}:2 is damaged" in caplog.text


def test_a_submission_that_the_disk_does_not_take_leaves_no_half_a_line(
    small_disk: Callable[[int], Path],
) -> None:
    folder = small_disk(16 * 1024)
    sweep = Sweep(folder, "s", {}, "0", "x", ())
    one = Submission("a", "1", "slurm", "1.out")
    sweep.add_submissions([one])
    with pytest.raises(OSError, match=r"No space left on device: '.*submissions\.jsonl'"):
        sweep.add_submissions([replace(one, trial="b", log="x" * 32 * 1024)])
    sweep.add_submissions([replace(one, trial="c")])
    assert [found.trial for found in sweep.all_submissions()] == ["a", "c"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_sweep_file_of_another_editor(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\nparameters:\n  train.seed: {values: [0, 1]}\n", encoding=encoding)
    if encoding == "utf-8-sig":
        assert load_spec(path).axes["train.seed"]
    else:
        with pytest.raises(ValueError, match=r"s\.yaml is not UTF-8 \(.*\): save the sweep file as UTF-8"):
            load_spec(path)


def test_the_sweep_is_sound_before(finished: Path) -> None:
    (trial,) = load_sweep(finished / "s").trials
    assert trial.result() is not None
