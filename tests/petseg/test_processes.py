"""Runs of one, two and four processes: the same keys per step, and a ledger that closes after any kill."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from safetensors.torch import load_file

from petseg.data.plan import EpochOrder, global_batch
from petseg.data.store import open_store
from petseg.data.tars import TarReader
from petseg.run_folder.checkpoint import list_checkpoints
from petseg.run_folder.layout import RESULT_NAME, VAL_MASKS_NAME, load_result, read_metrics
from shards.command import FAILED
from shards.manifest import key_hash, load_manifest
from tests.petseg.tensors import assert_same_tensors

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("recording_train.py")


def launch(processes: int, shards: Path, folder: Path, stop: str = "", **flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT]
    if processes > 1:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
        command = [sys.executable, *launcher, "--num_processes", str(processes), SCRIPT]
    env = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "STOP": stop, "RECORD_TO": str(folder),
        "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    values = {
        "data.shards": shards, "data.image-size-px": 64, "data.threads": 1, "data.shuffle-window-shards": 1,
        "data.cache-dir": folder / "cache", "model.width": 4, "train.batch-size": 8, "train.epochs": 2,
        "train.log-every": 1, "tracking.overlays": 0, "out": folder / "run", "world-size": processes, **flags,
    }  # fmt: skip
    arguments = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    return subprocess.run(
        [*command, *arguments, "--train.no-test"],
        cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def planned(shards: Path, epoch: int) -> list[set[int]]:
    """Hashes of the keys of each step of an epoch, straight from the plan."""
    reader = TarReader(open_store(str(shards)), "train", 64)
    order = EpochOrder(reader.shard_sizes, 1, 0, epoch)
    steps = [global_batch(order, 8, step) for step in range(4)]
    hashes = [{key_hash(reader.key(int(i))) for i in batch} for batch in steps]
    reader.close()
    return hashes


@pytest.mark.slow
def test_kills_and_other_world_sizes_change_no_steps_keys(pet_shards: Path, tmp_path: Path) -> None:
    stopped = launch(2, pet_shards, tmp_path, stop="SIGTERM:1:1:1")
    assert "saved up to epoch 0 and 2 steps" in stopped.stderr
    killed = launch(4, pet_shards, tmp_path, stop="SIGKILL:0:2:2")
    assert killed.returncode != 0
    assert [row["epoch"] for row in read_metrics(tmp_path / "run")] == [1]
    assert "after epoch 0 of 2 and 2 steps" in killed.stderr
    ended = launch(1, pet_shards, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert load_result(tmp_path / "run") is not None
    assert [row["data/coverage"] for row in read_metrics(tmp_path / "run")] == [1.0, 1.0]

    consumed: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for path in tmp_path.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            consumed[row["world"], row["epoch"], row["step"]] += row["hashes"]
    plan = {epoch: planned(pet_shards, epoch) for epoch in (1, 2)}
    whole = {
        2: [(1, 0), (1, 1)],
        4: [(1, 2), (1, 3), (2, 0), (2, 1), (2, 2)],
        1: [(2, 0), (2, 1), (2, 2), (2, 3)],  # the killed epoch is done again from its start
    }
    assert set(consumed) == {(world, *place) for world, places in whole.items() for place in places}
    for (world, epoch, step), hashes in consumed.items():
        if (world, epoch, step) == (4, 2, 2):  # the others may have been killed before they wrote
            assert set(hashes) <= plan[epoch][step]
            continue
        assert sorted(hashes) == sorted(plan[epoch][step])


@pytest.mark.slow
def test_four_processes_resume_with_the_same_bits(pet_shards: Path, tmp_path: Path) -> None:
    """DDP lays its gradients out anew after the first step of a process, and four sums depend on the layout."""
    folders = {name: tmp_path / name for name in ("calm", "stopped")}
    for folder in folders.values():
        folder.mkdir()
    assert launch(4, pet_shards, folders["calm"]).returncode == 0
    stopped = launch(4, pet_shards, folders["stopped"], stop="SIGTERM:1:1:2")
    assert "saved up to epoch 0 and 3 steps" in stopped.stderr
    assert launch(4, pet_shards, folders["stopped"]).returncode == 0
    weights = [list_checkpoints(folder / "run" / "checkpoints")[-1].folder for folder in folders.values()]
    calm, resumed = ((folder / "model.safetensors").read_bytes() for folder in weights)
    assert hashlib.sha256(calm).digest() == hashlib.sha256(resumed).digest()


@pytest.mark.slow
def test_statistics_are_averaged_over_ranks_and_each_rank_gets_its_own_back(pet_shards: Path, tmp_path: Path) -> None:
    """Two ranks hold 10 and 30 in the first BatchNorm buffer, 11 and 31 in the second, and so on."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *launcher, Path(__file__).with_name("ranks_by_value.py"), pet_shards, tmp_path / "run"]
    subprocess.run(command, cwd=REPOSITORY, env=env, timeout=300, check=True)
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    count = len(seen[0]["averaged"])
    assert count > 20  # the model's statistics and their averages
    for rank, first in enumerate((10.0, 30.0)):
        assert seen[rank]["averaged"] == [20.0 + number for number in range(count)]
        assert seen[rank]["restored"] == [first + number for number in range(count)]


@pytest.mark.slow
def test_ranks_with_graphs_end_with_the_weights_of_ddp(pet_shards: Path, tmp_path: Path) -> None:
    """Batches of 7 in two ranks, so shares of 4 and 3; one rank captures its passes, the other one cannot."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for way in ("ddp", "graphs"):
        script = [Path(__file__).with_name("graphed_ranks.py"), pet_shards, tmp_path / way, way]
        done = subprocess.run(
            [sys.executable, *launcher, *script],
            cwd=REPOSITORY, env=env, timeout=300, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("training goes on without CUDA graphs" in done.stderr) == (way == "graphs")
    ddp, graphed = (list_checkpoints(tmp_path / way / "checkpoints")[-1].folder for way in ("ddp", "graphs"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert_same_tensors(*(load_file(folder / name) for folder in (ddp, graphed)))


@pytest.mark.slow
def test_damage_that_one_rank_meets_stops_all_with_one_message(pet_shards: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(pet_shards, tmp_path / "broken"))
    shard = load_manifest(broken).of_split("train")[1]
    (broken / shard.name).unlink()
    done = launch(2, broken, tmp_path, **{"train.log-every": 2})
    assert done.returncode != 0
    failures = [line for line in done.stderr.splitlines() if line.startswith("failed:")]
    assert len(failures) == 2
    assert failures[0] == failures[1]
    assert "samples of split train are unreadable (data.max_lost_samples allows 0)" in failures[0]
    assert f"{shard.name} is missing: find all damage with" in done.stderr
    assert done.stderr.count(f"exitcode: {FAILED}") or done.stderr.count(f"exitcode  : {FAILED}")


@pytest.mark.slow
def test_two_processes_keep_the_same_masks_as_one(pet_shards: Path, tmp_path: Path) -> None:
    flags = {"train.epochs": 1}
    assert launch(1, pet_shards, tmp_path, **flags).returncode == 0
    run = tmp_path / "run"
    alone = (run / VAL_MASKS_NAME).read_bytes()
    for name in (RESULT_NAME, VAL_MASKS_NAME):  # its weights are measured again, and nothing is trained
        (run / name).unlink()
    ended = launch(2, pet_shards, tmp_path, **flags)
    assert ended.returncode == 0, ended.stderr
    result = load_result(run)
    assert result is not None
    assert result.world_size == 2
    assert (run / VAL_MASKS_NAME).read_bytes() == alone
