"""jobs/predict.py: pictures shared by jobs, on this machine and on a real Slurm, again and again until none is left."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.predict import main
from jobs.runs.parts import PICTURES_NAME, drop_part, load_parts, plan_parts, write_pictures
from petseg.inference.many.inputs import Input
from petseg.predict import main as predict
from shards.command import run_command
from shards.files import NotRegular
from slurm.rehearsal.cluster import Cluster

SMALL = ["--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1", "--timeout-min", "10"]
SLURM = ["--partition", "gpu", *SMALL]
OLD_SWEEP = Path(__file__).with_name("old_sweep")  # with a trial that has finished


@pytest.fixture
def sweep(tmp_path: Path) -> str:
    shutil.copytree(OLD_SWEEP, tmp_path / "runs" / "old")
    return str(tmp_path / "runs" / "old")


def names_of(out: Path) -> Counter[str]:
    """How often each picture was predicted."""
    lines = [line for path in out.glob("rows-*.jsonl") for line in path.read_text().splitlines()]
    return Counter(json.loads(line)["name"] for line in lines)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def masks_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "masks").rglob("*.png"))}


def draw(folder: Path, count: int, size: int = 40) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        pixels = rng.integers(0, 256, (size, size + number % 7, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def queue() -> list[str]:
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()


def pid_of(out: Path, task: int) -> int:
    """The process of an array's task. Jobs of the rehearsal know it by another pid: they have a namespace of theirs."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes().split(b"\0")
            ours = os.fsencode(out) in command and command.startswith(os.fsencode(sys.executable))
            if ours and {b"SLURM_PROCID=0", f"SLURM_ARRAY_TASK_ID={task}".encode()} <= set(environment):
                return int(process.name)
    raise AssertionError(f"no process of task {task}")


@pytest.mark.parametrize(("items", "parts", "sizes"), [(10, 3, [3, 3, 4]), (2, 5, [1, 1]), (0, 3, []), (4, 1, [4])])
def test_parts_are_nearly_equal_and_keep_the_order(tmp_path: Path, items: int, parts: int, sizes: list[int]) -> None:
    pictures = [Input(str(number), f"{number}.png") for number in range(items)]
    planned = [own for _, own in plan_parts(tmp_path, pictures, parts)]
    assert [len(own) for own in planned] == sizes
    assert [one for own in planned for one in own] == pictures


def test_a_part_that_is_a_link_is_not_emptied(tmp_path: Path) -> None:
    ((part, items),) = plan_parts(tmp_path / "out", [Input("a", "a.png")], 1)
    elsewhere = tmp_path / "elsewhere" / PICTURES_NAME
    write_pictures(items, elsewhere)
    part.folder.parent.mkdir(parents=True)
    part.folder.symlink_to(elsewhere.parent)
    with pytest.raises(NotRegular):
        drop_part(part)
    assert elsewhere.exists()
    part.folder.unlink()
    write_pictures(items, part.folder / PICTURES_NAME)
    drop_part(part)
    assert not part.folder.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lab"], "name the pictures with --source"),
        (["--source", "a"], "name either a sweep, whose winner predicts, or a file with --weights"),
        (["lab", "--source", "a", "--weights", "w.safetensors"], "name either a sweep"),
        (["lab", "--source", "a", "--gpus", "2"], "take --gpus 1 (or 0) and --nodes 1, and more --parts"),
        (["lab", "--source", "a", "--parts", "0"], "--parts 0: must be at least 1"),
    ],
)
def test_wrong_use_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweeps_winner_predicts_on_this_machine(
    sweep: str, pet_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Masks and summary as petseg.predict writes them; the same command again does only what is missing."""
    photos = draw(tmp_path / "photos", 5)
    (photos / "bad.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    words = [sweep, "--source", str(pet_shards), str(photos), "--out", str(out), "--coco", "--parts", "2", *SMALL]
    words += ["--cluster", "local"]
    assert run_command(main, [*words, "--dry-run"]) == 0
    assert "66 pictures, 0 done, 0 in 0 queued or running jobs, 66 to submit in 2 jobs" in capfd.readouterr().out
    assert not out.exists()
    assert run_command(main, words) == 1
    assert "not read: " in capfd.readouterr().out
    assert set(names_of(out).values()) == {1}
    assert len(rows_of(out)) == 66

    one = tmp_path / "one"
    weights = ["--weights", str(out / "winner.safetensors")]
    assert run_command(predict, [str(pet_shards), str(photos), *weights, "--out", str(one), "--coco"]) == 1
    assert masks_of(out) == masks_of(one)
    assert (out / "coco.json").read_bytes() == (one / "coco.json").read_bytes()
    drop = [{**row, "seconds": ""} for row in rows_of(out)]
    assert drop == [{**row, "seconds": ""} for row in rows_of(one)]

    assert run_command(main, words) == 1
    assert "66 done, 0 in 0 queued or running jobs, 0 to submit" in capfd.readouterr().out
    (out / "masks" / "0003.png").unlink()
    draw(tmp_path / "more", 1)
    (tmp_path / "more" / "0000.png").rename(photos / "bad.jpg")
    assert run_command(main, [*words, "--again"]) == 0
    assert "2 to submit" in capfd.readouterr().out
    assert names_of(out)["0003"] == names_of(out)["bad"] == 2
    assert set((names_of(out) - Counter(["0003", "bad"])).values()) == {1}

    assert run_command(predict, [str(pet_shards), str(photos), *weights, "--out", str(out), "--coco"]) == 2
    assert "sweep differ" in capfd.readouterr().err


@pytest.mark.slurm
@pytest.mark.slow
def test_a_killed_task_is_taken_up_by_the_next_command(
    sweep: str, on_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = draw(tmp_path / "photos", 400, size=64), tmp_path / "out"
    words = [sweep, "--source", str(photos), "--out", str(out), "--parts", "2", "--batch-size", "1", *SLURM]
    assert run_command(main, [*words, "--dry-run"]) == 0
    assert "#SBATCH --array=0-1%2" in capsys.readouterr().out
    assert run_command(main, words) == 0
    first, second = load_parts(out).trials
    assert run_command(main, words) == 0  # all is under way
    assert "400 in 2 queued or running jobs, 0 to submit" in capsys.readouterr().out
    wait_for(lambda: (out / f"rows-{first.id}.jsonl").exists(), "the first part begins")
    os.kill(pid_of(out, 0), signal.SIGKILL)
    wait_for(lambda: not queue(), "the jobs end")
    assert second.state().status == "done"
    assert not (out / "summary.csv").exists()
    done = sum(names_of(out).values())
    assert 200 < done < 400
    assert run_command(main, words) == 0
    shown = capsys.readouterr().out
    assert f"part {first.id} interrupted: " in shown
    assert f"{done} done, 0 in 0 queued or running jobs, {400 - done} to submit" in shown
    wait_for(lambda: not queue(), "the new jobs end")
    assert len(rows_of(out)) == 400  # written by the last job
    assert run_command(main, words) == 0
    assert "400 done" in capsys.readouterr().out
    counts = names_of(out)
    assert len(counts) == 400
    assert sum(counts.values()) <= 402  # of the batch whose line the kill has cut off
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.slurm
def test_a_cancelled_task_saves_and_its_rest_is_submitted_again(
    sweep: str, on_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = draw(tmp_path / "photos", 400, size=64), tmp_path / "out"
    words = [sweep, "--source", str(photos), "--out", str(out), "--parts", "1", "--batch-size", "1", *SLURM]
    assert run_command(main, words) == 0
    (part,) = load_parts(out).trials
    wait_for(lambda: (out / f"rows-{part.id}.jsonl").exists(), "the part begins")
    subprocess.run(["scancel", "--signal=TERM", *queue()], check=True, timeout=30)
    wait_for(lambda: part.state().status == "interrupted", "it saves")
    subprocess.run(["scancel", "--me"], check=True, timeout=30)
    wait_for(lambda: not queue(), "the job ends")
    done = sum(names_of(out).values())
    capsys.readouterr()
    assert run_command(main, words) == 0
    assert f"{done} done, 0 in 0 queued or running jobs, {400 - done} to submit" in capsys.readouterr().out
    wait_for(lambda: not queue(), "the rest is done")
    assert names_of(out) == Counter(f"{number:04}" for number in range(400))
    assert len(rows_of(out)) == 400
