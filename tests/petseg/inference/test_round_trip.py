"""From shards to mask files: their mean Dice is the native Dice of petseg.evaluate, by one process and by four."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import petseg
from petseg.predict import main
from shards.command import run_command
from shards.index import load_index
from shards.manifest import load_manifest
from shards.pack import PackConfig, pack
from tests.petseg.inference.test_predictor import FITS, dice_of, native_samples, trained
from tests.scenes import encode

REPOSITORY = Path(__file__).parents[3]
CLASSES = 12
SPLITS = (("train", 12), ("val", 4), ("test", 7))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Drawn pets, and pictures of 12 classes of several shapes, at native size."""
    root = tmp_path_factory.mktemp("sets")
    longer = {"synthetic_longer_side_px": 100, "samples_per_shard": 8, "workers": 1}
    pack(PackConfig(out=root / "pets", synthetic=20, seed=1, **longer))
    table = [f'[[class]]\nname = "{f"class{k}" if k else "background"}"\nvalues = [{k}]\n' for k in range(CLASSES)]
    (root / "classes.toml").write_text("".join(['name = "twelve"\n', *table]))
    rng = np.random.default_rng(0)
    for split, count in SPLITS:
        for number in range(count):
            labels = rng.integers(0, CLASSES, (4, 6), np.uint8).repeat(9 + number, 0).repeat(8, 1)
            picture = np.dstack([labels * 20, 255 - labels * 20, labels])
            for kind, image in (("JPEG", picture), ("PNG", labels)):
                path = root / kind / split / f"{split}{number}.{'jpg' if kind == 'JPEG' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(Image.fromarray(image), kind))
    images, masks = f"{root}/JPEG/{{split}}/{{key}}.jpg", f"{root}/PNG/{{split}}/{{key}}.png"
    files = {"images": images, "masks": masks, "classes": str(root / "classes.toml")}
    pack(PackConfig(out=root / "twelve", samples_per_shard=4, workers=1, **files))
    return {2: root / "pets", CLASSES: root / "twelve"}


@pytest.mark.slow
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_the_dice_of_mask_files_is_that_of_evaluate(
    sets: dict[int, Path], tmp_path: Path, classes: int, fit: str
) -> None:
    shards = sets[classes]
    weights = trained(shards, fit, tmp_path / "run")
    metrics = json.loads((weights.parent / "evaluate-test.json").read_text())["metrics"]
    tars = [shards / shard.name for shard in load_manifest(shards).of_split("test")]
    keys = [sample.key for tar in tars for sample in load_index(shards, tar.name)]
    samples, model = native_samples(shards), petseg.load(weights)
    words = [*map(str, tars), "--weights", str(weights), "--batch-size", "3", "--out"]
    assert run_command(main, [*words, str(tmp_path / "one")]) == 0
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
    command = [sys.executable, *launcher, "--num_processes", "4", "petseg/predict.py", *words, str(tmp_path / "four")]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "four").glob("rows-*"))) == 4
    for out in ("one", "four"):
        masks = [np.asarray(Image.open(tmp_path / out / "masks" / f"{key}.png")) for key in keys]
        dice = dice_of(model, masks, samples, pets=classes == 2)
        assert dice == pytest.approx(metrics["test/native/dice"], abs=1e-6)
    assert dice > 0
