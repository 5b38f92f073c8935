"""petseg.load(...).predict(...): the masks are those that petseg.evaluate counts, of any picture."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import petseg
from petseg.best import main as best
from petseg.config import RunConfig
from petseg.config.values import with_values
from petseg.evaluate import main as evaluate
from petseg.inference.pictures import decode_picture, read_picture
from petseg.inference.predictor import Predictor
from petseg.metrics.pixels import Scores
from petseg.training.loop import train
from shards.command import run_command
from shards.index import load_index
from shards.manifest import load_manifest
from shards.pack import PackConfig, pack
from tests.scenes import Scenes

FITS = ("squash", "letterbox", "crop")


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Shard sets at native size: 20 drawn pets of up to 100 px (2 classes), and scenes of 3 classes."""
    root = tmp_path_factory.mktemp("sets")
    pack(
        PackConfig(
            out=root / "pets", synthetic=20, seed=1, synthetic_longer_side_px=100, samples_per_shard=8, workers=1
        )
    )
    scenes = Scenes(root / "scenes")
    scenes.add_many()
    pack(scenes.config(root / "packed"))
    return {2: root / "pets", 3: root / "packed"}


def trained(shards: Path, fit: str, folder: Path) -> Path:
    """A weights file of a run, which is evaluated too."""
    values = {
        "data.shards": str(shards), "data.image_size_px": "32x64", "data.fit": fit, "data.threads": 1, "model.width": 4,
        "data.cache": "none", "train.epochs": 8, "train.batch_size": 4, "train.test": False, "tracking.overlays": 0,
        "optim.lr": 0.01,
    }  # fmt: skip
    train(with_values(RunConfig(), values), folder)
    assert run_command(evaluate, [str(folder), "--split", "test", "--pictures", "1"]) == 0
    out = folder / "weights.safetensors"
    assert run_command(best, [str(folder), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def made(sets: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Path]:
    """Weights files by number of classes and size rule."""
    root = tmp_path_factory.mktemp("runs")
    return {(k, fit): trained(shards, fit, root / f"{k}-{fit}") for k, shards in sets.items() for fit in FITS}


def native_samples(shards: Path) -> list[tuple[bytes, np.ndarray]]:
    """The JPEG bytes and the (H, W) labels of each test sample."""
    samples = []
    for shard in load_manifest(shards).of_split("test"):
        content = (shards / shard.name).read_bytes()
        for sample in load_index(shards, shard.name):
            jpg, png = (content[m.offset : m.offset + m.num_bytes] for m in (sample.jpg, sample.png))
            samples.append((jpg, np.asarray(Image.open(io.BytesIO(png)))))
    return samples


def dice_of(model: Predictor, masks: list[np.ndarray], samples: list[tuple[bytes, np.ndarray]], pets: bool) -> float:
    """The mean Dice of masks at native size, by counts made here."""
    counts = []
    for mask, (_, labels) in zip(masks, samples, strict=True):
        truth = np.where(labels == 2, 0, 1) if pets else labels
        counted = truth != 255
        by_class = []
        for one in model.header.counted:
            ours, theirs = (mask == one) & counted, (truth == one) & counted
            by_class.append([(ours & theirs).sum(), (ours & ~theirs).sum(), (~ours & theirs).sum()])
        counts.append(by_class)
    array = np.array(counts)
    return float(Scores(array, np.zeros(array.shape[:2]), np.zeros(array.shape[:2])).dice.mean())


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_dice_of_predicted_masks_is_that_of_evaluate(
    sets: dict[int, Path], made: dict[tuple[int, str], Path], classes: int, fit: str
) -> None:
    weights, samples = made[classes, fit], native_samples(sets[classes])
    metrics = json.loads((weights.parent / "evaluate-test.json").read_text())["metrics"]
    model = petseg.load(weights)
    results = model.predict([jpg for jpg, _ in samples], batch_size=3)
    dice = dice_of(model, [result.mask for result in results], samples, pets=classes == 2)
    assert dice == pytest.approx(metrics["test/native/dice"], abs=1e-6)
    assert dice > 0
    for result, (_, labels) in zip(results, samples, strict=True):
        assert result.mask.shape == labels.shape
        assert result.mask.dtype == np.uint8
        assert result.probabilities.shape == (classes, *labels.shape)
        assert result.probabilities.dtype == np.float32
        assert np.allclose(result.probabilities.sum(axis=0), 1, atol=1e-5)
        assert (result.probabilities.argmax(axis=0) == result.mask).mean() > 0.999
        assert sum(result.shares.values()) == pytest.approx(1)
        assert 1 / classes <= result.confidence <= 1


def test_with_views_and_the_largest_part_it_is_that_of_evaluate_too(
    sets: dict[int, Path], made: dict[tuple[int, str], Path]
) -> None:
    weights, samples = made[2, "crop"], native_samples(sets[2])
    flags = ["--split", "test", "--pictures", "1", "--tta", "flips_scales", "--keep-largest"]
    before = (weights.parent / "evaluate-test.json").read_text()
    assert run_command(evaluate, [str(weights.parent), *flags]) == 0
    metrics = json.loads((weights.parent / "evaluate-test.json").read_text())["metrics"]
    (weights.parent / "evaluate-test.json").write_text(before)
    model = petseg.load(weights)
    results = model.predict([jpg for jpg, _ in samples], tta="flips_scales", keep_largest=True)
    dice = dice_of(model, [result.mask for result in results], samples, pets=True)
    assert dice == pytest.approx(metrics["test/native/dice"], abs=1e-6)


@pytest.fixture(scope="session")
def model(made: dict[tuple[int, str], Path]) -> Predictor:
    return petseg.load(made[2, "letterbox"])


def test_every_kind_of_input_gives_the_same_mask(model: Predictor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    path = tmp_path / "cat.png"
    Image.fromarray(pixels).save(path)
    expected = model.predict(pixels).mask
    tensor = torch.from_numpy(pixels)
    for source in (path, str(path), path.read_bytes(), Image.fromarray(pixels), tensor, tensor.permute(2, 0, 1)):
        assert np.array_equal(model.predict(source).mask, expected)
    both = model.predict([path, pixels[:, :40]])
    assert [one.mask.shape for one in both] == [(50, 80), (50, 40)]
    assert model.predict([]) == []


def test_pictures_of_results(model: Predictor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    result = model.predict(pixels)
    cutout = np.asarray(result.cutout())
    assert np.array_equal(cutout[..., 3] == 255, result.mask == 1)
    assert np.array_equal(np.asarray(result.cutout("background"))[..., 3] == 255, result.mask == 0)
    with pytest.raises(ValueError, match=r"there is no class 'dog': choose one of background, pet"):
        result.cutout("dog")
    assert result.overlay().size == (80, 50)
    assert np.array_equal(np.asarray(result.overlay())[result.mask == 0], pixels[result.mask == 0])
    assert np.array_equal(np.asarray(result.as_image()), result.mask)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_the_mask_belongs_to_the_picture_as_it_is_shown() -> None:
    rng = np.random.default_rng(0)
    upright = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1))
    for orientation, method in (
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (5, Image.Transpose.TRANSPOSE),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind, most in (("JPEG", 12), ("PNG", 0)):
            content = encoded(upright.transpose(method), kind, exif=exif)
            assert np.abs(decode_picture(content).astype(int) - np.asarray(upright)).mean() <= most
            assert decode_picture(content, turned=False).shape == np.asarray(upright.transpose(method)).shape


def test_pictures_of_every_kind_are_read_as_rgb() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    rgb = np.dstack([grey, grey, grey])
    assert np.array_equal(decode_picture(encoded(Image.fromarray(grey))), rgb)
    sixteen = grey.astype(np.uint16) * 257
    assert np.array_equal(decode_picture(encoded(Image.fromarray(sixteen))), rgb)
    assert np.array_equal(decode_picture(encoded(Image.fromarray(sixteen), "TIFF")), rgb)
    palette = Image.fromarray(rgb).quantize(48)
    assert decode_picture(encoded(palette)).shape == rgb.shape
    transparent = Image.fromarray(np.dstack([rgb, np.where(grey > 100, 255, 0).astype(np.uint8)]))
    assert np.array_equal(decode_picture(encoded(transparent)), np.where(grey[..., None] > 100, rgb, 255))
    cmyk = decode_picture(encoded(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "JPEG"))
    assert (cmyk[..., 0] > 200).all()
    assert (cmyk[..., 1:] < 60).all()
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        first = decode_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert (first[..., 0] > 200).all()
    assert decode_picture(encoded(Image.new("1", (1, 1)))).shape == (1, 1, 3)


@pytest.mark.parametrize(
    "source",
    [
        b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3)),
        np.zeros((0, 2), np.uint8), 3, "absent.jpg", Image.new("F", (2, 2)), torch.zeros(3, 2, 2),
        Image.new("L", (30000, 1000)),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\2\0\0\0\xc6\xc7\x63\x45",
    ],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_picture_is_one_line(source: object) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        read_picture(source)  # type: ignore[arg-type]


def test_damaged_pictures_give_one_line_or_a_picture() -> None:
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = [encoded(pixels, "JPEG", exif=exif), encoded(pixels), encoded(pixels, "GIF"), encoded(pixels, "TIFF")]
    read = 0
    for content in (*whole, encoded(pixels, "WEBP"), encoded(pixels.convert("CMYK"), "JPEG")):
        for _ in range(40):
            damaged = bytearray(content[: rng.integers(1, len(content) + 1)] if rng.random() < 0.5 else content)
            for at in rng.integers(0, len(damaged), 3):
                damaged[at] = rng.integers(0, 256)
            try:
                assert decode_picture(bytes(damaged)).dtype == np.uint8
                read += 1
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017 - both ends are right
    assert read > 0


def test_a_device_or_precision_that_is_not_there_is_one_line(made: dict[tuple[int, str], Path]) -> None:
    weights = made[2, "squash"]
    with pytest.raises(ValueError, match="device 'gpu7'"):
        petseg.load(weights, device="gpu7")
    with pytest.raises(ValueError, match="precision 'int8': choose one of as_trained, no, bf16, fp16"):
        petseg.load(weights, precision="int8")
    with pytest.raises(ValueError, match=r"do not fit together: background, pet at 32x64 px, squash and"):
        petseg.load(weights, made[2, "crop"])
    two = petseg.load(weights, weights).predict(np.zeros((8, 8, 3), np.uint8))
    one = petseg.load(weights).predict(np.zeros((8, 8, 3), np.uint8))
    assert np.allclose(one.probabilities, two.probabilities, atol=1e-5)
    low = petseg.load(weights, precision="bf16").predict(np.zeros((8, 8, 3), np.uint8))
    assert np.allclose(one.probabilities, low.probabilities, atol=0.05)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "PIL", "accelerate", "tyro")
    code = f"import sys, petseg; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
