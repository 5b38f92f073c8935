"""Whatever happens to a sweep, it ends, and with the same numbers to the bit as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.runs.trial import Trial
from petseg.run_folder.attempts import read_attempts
from petseg.run_folder.checkpoint import list_checkpoints
from shards.pack import pack
from slurm.rehearsal.cluster import Cluster, rehearse
from slurm.rehearsal.settings import Site
from tests.chaos.storm import Storm
from tests.scenes import Scenes

SECONDS = float(os.environ.get("STORM_SECONDS", "60"))
SEED = int(os.environ.get("STORM_SEED", "1"))
CLOCKS = {"host", "train_s", "images_per_s", "data_wait", "headroom", "mfu", "peak_memory_mb"}


@pytest.fixture
def cluster(slurm_daemons: None, runs_disk: Path) -> Iterator[Cluster]:
    """One of its own: nodes die here. It comes after the disk, which its nodes have to see."""
    with rehearse(Site(nodes=2, cpus=4, gpus=0)) as cluster:
        yield cluster


@pytest.fixture
def runs_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that can be filled, where the user may mount one; else an ordinary folder, and the disk stays as it is."""
    folder = tmp_path / "runs"
    folder.mkdir()
    if os.geteuid() != 0:
        yield folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "petseg-storm", str(folder)], check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome(trial: Trial) -> dict[str, object]:
    """All that a trial found out: its numbers, its best weights, its pictures' counts; nothing of when and where."""
    result = json.loads((trial.folder / "result.json").read_text())
    rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in trial.metrics()]
    newest = list_checkpoints(trial.folder / "checkpoints")[-1]
    (best,) = (c for c in list_checkpoints(trial.folder / "checkpoints") if c.step == newest.state["best"]["step"])
    return {
        "result": {name: value for name, value in result.items() if name not in CLOCKS},
        "rows": rows,
        "weights": sha256(best.folder / "model.safetensors"),
        "last": sha256(newest.folder / "model.safetensors"),
        "per_image": (trial.folder / "per_image.npz").stat().st_size,
    }


def pack_twelve(folder: Path) -> Path:
    """A shard set of scenes of twelve classes at 96 x 64 pixels: 20 to train on, 6 of val."""
    scenes = Scenes(folder / "scenes")
    classes = (f'[[class]]\nname = "class {value}"\nvalues = [{value}]\n' for value in range(12))
    scenes.table.write_text('name = "twelve"\nignore = [200]\n' + "".join(classes))
    for number in range(26):
        cells = np.random.default_rng(number).permutation([*range(12), 200, 0, 1, 2, 3, 4]).astype(np.uint8)
        mask = cells.reshape(3, 6).repeat(22, 0)[:64].repeat(16, 1)
        picture, _ = scenes.add(f"scene_{number}", "train" if number < 20 else "val", mask=mask)
        Image.fromarray(np.stack([mask * 20, 255 - mask * 20, mask * 5], axis=2)).save(picture, quality=95)
    pack(scenes.config(folder / "twelve"))
    return folder / "twelve"


def flags(data: dict[str, object], runs: Path, *more: str) -> list[str]:
    settings = {
        **data, "model.width": 4, "train.epochs": 8, "train.log_every": 1,
        "train.batch_size": 4, "train.mixed_precision": "no", "train.save_every_min": 0.02, "tracking.overlays": 1,
    }  # fmt: skip
    words = ["--runs-dir", str(runs), "--partition", "low", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "1"]
    words += ["--timeout-min", "30", "--axis", "augment.policy=elastic_crop", *more]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    return words


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.long
def test_a_storm_changes_nothing(pet_shards: Path, tmp_path: Path, runs_disk: Path, cluster: Cluster) -> None:
    """Two sweeps on pets, and one on crops of scenes of twelve classes."""
    pets = {"data.shards": pet_shards, "data.image_size_px": 64}
    crops = {"data.shards": pack_twelve(tmp_path), "data.image_size_px": "32x64", "data.fit": "crop"}
    crops |= {"data.rare_crops": 0.5, "train.loss": "ce_dice", "train.class_weights": "frequency"}
    single = ("--axis", "train.seed=0")
    together = ("--axis", "train.seed=1")  # two trials side by side in a job, and in calm weather each in one
    side_by_side = ("--trials-per-job", "2", "--trials-at-once", "2")
    pair = ("--nodes", "2", "--tasks-per-node", "2", "--axis", "model.arch=unet", "--axis", "train.seed=2,3")
    ends = {}
    for weather, runs in (("calm", tmp_path / "calm"), ("storm", runs_disk)):
        runs.mkdir(exist_ok=True)
        joined = (*together, *side_by_side) if weather == "storm" else together
        storms = [
            Storm(cluster, flags(data, runs, "--name", name, *more), runs / name, seed)
            for seed, (name, data, more) in enumerate(
                (("single", crops, single), ("together", pets, joined), ("pair", pets, pair)), start=3 * SEED
            )
        ]
        for storm in storms:
            storm.launch()
        if weather == "storm":
            with ThreadPoolExecutor(len(storms)) as pool:
                list(pool.map(lambda storm: storm.blow(SECONDS, every_s=5), storms))
        for storm in storms:
            storm.calm_down(240)
        ends[weather] = {trial.id: trial for storm in storms for trial in storm.sweep().trials}
    assert sum(storm.happened.total() for storm in storms) >= 5
    assert ends["calm"].keys() == ends["storm"].keys()
    assert len(ends["calm"]) == 6
    for identifier, calm in ends["calm"].items():
        assert outcome(ends["storm"][identifier]) == outcome(calm), identifier
    attempts = [len(read_attempts(trial.folder)) for trial in ends["storm"].values()]
    assert max(attempts) > 1, "the storm hit nothing"
