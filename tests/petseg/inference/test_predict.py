"""python -m petseg.predict: any inputs, whole outputs, resumed after a kill, shared by processes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_api

import petseg
from petseg.best import main as best
from petseg.config import RunConfig
from petseg.inference.many.inputs import list_inputs
from petseg.inference.many.outputs import Journal, OutputFolder
from petseg.predict import main
from petseg.training.loop import train
from shards.command import CANCELLED, run_command
from shards.index import load_index
from shards.manifest import load_manifest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def weights(pet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from petseg.config.values import with_values

    folder = tmp_path_factory.mktemp("run")
    values = {
        "data.shards": str(pet_shards), "data.image_size_px": 32, "data.threads": 1, "model.width": 4,
        "train.epochs": 2, "train.batch_size": 8, "train.test": False, "tracking.overlays": 0,
    }  # fmt: skip
    train(with_values(RunConfig(), values), folder)
    assert run_command(best, [str(folder), "--out", str(folder / "w.safetensors")]) == 0
    return folder / "w.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven pictures of several sizes and kinds in three folders, a broken one, and files that are no pictures."""
    rng = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / "photos" / ("", "a", "a/b")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def words_of(weights: Path, out: Path, *paths: object, **flags: object) -> list[str]:
    words = [*map(str, paths), "--weights", str(weights), "--out", str(out)]
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return words


def summary(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "summary.csv").read_text())))


def files_of(out: Path) -> dict[str, bytes]:
    """The outputs but for the journals and the seconds."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in summary(out)]
    return {name: one for name, one in found.items() if "rows-" not in name} | {"summary.csv": repr(rows).encode()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools, by numpy
def test_polygons_in_coco_json(weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run_command(main, words_of(weights, out, photos, polygons=True)) == 2
    assert "add --coco" in capsys.readouterr().err
    assert run_command(main, words_of(weights, out, photos, coco=True, polygons=True)) == 0
    document = json.loads((out / "coco.json").read_text())
    assert document["annotations"]
    for one in document["annotations"]:
        image = document["images"][one["image_id"] - 1]
        size = image["height"], image["width"]
        mask = coco_api.decode(coco_api.merge(coco_api.frPyObjects(one["segmentation"], *size)))
        with Image.open(out / "masks" / f"{Path(image['file_name']).relative_to(photos).with_suffix('')}.png") as file:
            assert np.array_equal(mask == 1, np.asarray(file) == one["category_id"])
    assert run_command(main, words_of(weights, out, photos, coco=True)) == 2
    assert "differ" in capsys.readouterr().err


def test_all_outputs_of_a_folder(weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = {"overlays": True, "cutouts": True, "probabilities": True, "coco": True}
    assert run_command(main, words_of(weights, out, photos, batch_size=3, **flags)) == 0
    rows = summary(out)
    assert sorted(row["name"] for row in rows) == ["0", "3", "6", "a/1", "a/4", "a/b/2", "a/b/5"]
    model = petseg.load(weights)
    document = json.loads((out / "coco.json").read_text())
    assert [one["file_name"] for one in document["images"]] == [row["path"] for row in rows]
    assert [one["name"] for one in document["categories"]] == ["pet"]
    areas = {one["image_id"]: one["area"] for one in document["annotations"]}
    for number, row in enumerate(rows, start=1):
        result = model.predict(row["path"])
        with Image.open(out / "masks" / f"{row['name']}.png") as mask:
            assert np.array_equal(np.asarray(mask), result.mask)
            assert mask.getpalette()[:6] == [v for one in model.header.classes for v in one.colour]
        arrays = np.load(out / "probabilities" / f"{row['name']}.npz", allow_pickle=False)
        assert np.allclose(arrays["probabilities"], result.probabilities, atol=1e-6)
        assert arrays["classes"].tolist() == ["background", "pet"]
        assert (int(row["height"]), int(row["width"])) == result.mask.shape
        assert float(row["share_pet"]) == pytest.approx((result.mask == 1).mean(), abs=1e-6)
        assert float(row["confidence"]) == pytest.approx(result.confidence, abs=1e-5)
        assert areas.get(number, 0) == (result.mask == 1).sum()
        for kind in ("overlays", "cutouts"):
            with Image.open(out / kind / f"{row['name']}.png") as drawn:
                assert drawn.size == (result.mask.shape[1], result.mask.shape[0])


def test_bad_files_are_named_skipped_and_tried_again(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photos / "a" / "bad.jpg"
    bad.write_bytes((photos / "0.jpg").read_bytes()[:300])
    out = tmp_path / "out"
    words = words_of(weights, out, photos)
    assert run_command(main, words) == 1
    shown = capsys.readouterr().out
    assert f"7 pictures in {out}\n" in shown
    assert f"not read: {bad}: not a readable picture" in shown
    assert [row["name"] for row in summary(out) if row["error"]] == ["a/bad"]
    (out / "masks" / "0.png").unlink()
    bad.write_bytes((photos / "0.jpg").read_bytes())
    kept = (out / "masks" / "3.png").stat().st_mtime_ns
    assert run_command(main, words) == 0
    assert "8 pictures in" in capsys.readouterr().out
    assert (out / "masks" / "0.png").exists()
    assert (out / "masks" / "3.png").stat().st_mtime_ns == kept


def test_pictures_and_weights_must_both_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--weights", "w.safetensors"], [str(tmp_path), "--weights"]):
        assert run_command(main, [*words, "--out", str(tmp_path / "out")]) == 2
        assert "name the pictures, or a folder with them, before --weights" in capsys.readouterr().err


def test_another_command_on_the_same_folder_is_refused(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_command(main, words_of(weights, out, photos)) == 0
    assert run_command(main, words_of(weights, out, photos, tta="flips")) == 2
    assert "holds the outputs of another command (tta differ)" in capsys.readouterr().err
    assert run_command(main, words_of(weights, photos, photos)) == 2
    assert "has files of something else: choose another folder" in capsys.readouterr().err


def test_one_command_at_a_time_writes_into_a_folder(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with OutputFolder(out, ("masks",), coco="none").locked():
        assert run_command(main, words_of(weights, out, photos)) == 2
        assert f"--out {out}: another command is writing there" in capsys.readouterr().err
    assert run_command(main, words_of(weights, out, photos)) == 0


def test_what_a_kill_left_half_written_is_removed(weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_command(main, words_of(weights, out, photos)) == 0
    strays = [out / "masks" / "a" / ".1.png.0123456789ab.tmp", out / ".summary.csv.0123456789ab.tmp"]
    kept = out / "masks" / "a" / "own.tmp"
    for path in (*strays, kept):
        path.write_bytes(b"half")
    assert run_command(main, words_of(weights, out, photos)) == 0
    assert not any(path.exists() for path in strays)
    assert kept.exists()


def test_shards_patterns_and_lists(
    weights: Path, photos: Path, pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = load_manifest(pet_shards).of_split("test")[0].name
    assert run_command(main, words_of(weights, tmp_path / "tar", pet_shards / shard)) == 0
    keys = [sample.key for sample in load_index(pet_shards, shard)]
    assert [row["name"] for row in summary(tmp_path / "tar")] == keys
    assert run_command(main, words_of(weights, tmp_path / "glob", f"{photos}/**/*.png")) == 0
    assert sorted(row["name"] for row in summary(tmp_path / "glob")) == ["3", "a/1", "a/b/5"]
    monkeypatch.chdir(photos)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"a/1.png\n{photos}/0.jpg\n\nabsent.png\n"))
    assert run_command(main, words_of(weights, tmp_path / "list", "-")) == 1
    assert [row["name"] for row in summary(tmp_path / "list")] == ["a/1", f"{photos}/0".lstrip("/"), "absent"]


def test_names_stay_in_the_folder_and_stand_for_one_picture(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (photos / "0.png").write_bytes((photos / "3.png").read_bytes())
    with pytest.raises(ValueError, match=r"0\.jpg and .*0\.png would both be called 0"):
        list_inputs([str(photos)], [], out)
    twice = list_inputs([str(photos / "a"), str(photos / "a")], [], out)
    assert [one.name for one in twice] == ["1", "4", "b/2", "b/5"]
    for line in ("../../etc/x.png", "/../x.png", "a/../../x.png", "..png", "/"):
        for one in list_inputs(["-"], [line], out):
            assert (out / "masks" / f"{one.name}.png").resolve().is_relative_to(out.resolve())
    with pytest.raises(ValueError, match="there is no such file or folder"):
        list_inputs([str(photos / "absent.jpg")], [], out)


def test_a_link_out_of_the_folder_is_not_followed(weights: Path, photos: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run_command(main, words_of(weights, out, photos)) == 0
    (out / "masks" / "a" / "1.png").unlink()
    (out / "masks" / "a").rename(tmp_path / "moved")
    (out / "masks" / "a").symlink_to(elsewhere)
    assert run_command(main, words_of(weights, out, photos)) == 2
    assert not list(elsewhere.iterdir())


def test_min_area_and_largest_part(weights: Path, photos: Path, tmp_path: Path) -> None:
    assert run_command(main, words_of(weights, tmp_path / "out", photos, min_area_px=10_000)) == 0
    assert all(float(row["share_pet"]) == 0 for row in summary(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_in_the_middle_and_again_gives_the_same_files(
    weights: Path,
    pet_shards: Path,
    tmp_path: Path,
    wait_for: Callable[[Callable[[], object]], None],
    number: signal.Signals,
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    flags = {"batch_size": 1, "coco": True, "overlays": True}
    assert run_command(main, words_of(weights, calm, pet_shards, **flags)) == 0
    command = [sys.executable, "-m", "petseg.predict", *words_of(weights, killed, pet_shards, **flags)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(killed.glob("masks/*.png"))) >= 5 or process.poll() is not None)
    process.send_signal(number)
    _, errors = process.communicate()
    assert not (killed / "summary.csv").exists()
    journal = Journal(killed)
    noted = [row for item in list_inputs([str(pet_shards)], (), killed) if (row := journal.row(item.name))]
    assert len(noted) >= 3
    assert all((killed / kind / f"{row.name}.png").exists() for row in noted for kind in ("masks", "overlays"))
    if number == signal.SIGINT:
        assert process.returncode == CANCELLED
        assert errors.splitlines()[-1] == "interrupted"
        assert not list(killed.rglob(".*.tmp"))
        assert len(noted) == len(list(killed.glob("masks/*.png")))
    with (killed / "rows-0.jsonl").open("a") as file:
        file.write('{"name": "half')
    assert run_command(main, words_of(weights, killed, pet_shards, **flags)) == 0
    assert not list(killed.rglob(".*.tmp"))
    assert files_of(killed) == files_of(calm)


@pytest.mark.slow
def test_two_processes_share_the_work(weights: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"nothing")
    assert run_command(main, words_of(weights, tmp_path / "one", photos)) == 1
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
    command = [sys.executable, *launcher, "petseg/predict.py", *words_of(weights, tmp_path / "two", photos)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert {path.name for path in (tmp_path / "two").glob("rows-*")} == {"rows-0.jsonl", "rows-1.jsonl"}
    assert done.stdout.count("not read:") == 1
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
