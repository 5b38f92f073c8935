"""Commands that read shards, weights and checkpoints meet a stranger's: one line of error, and no harm."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.chain import main as chain
from jobs.doctor import main as doctor
from petseg.augment.__main__ import main as augment
from petseg.estimate import main as plan
from petseg.evaluate import main as evaluate
from petseg.models.pretrained import read_tensors
from petseg.train import main as train
from shards.command import run_command
from shards.duplicates import main as duplicates
from shards.index import index_name
from shards.manifest import MANIFEST_NAME, Manifest
from shards.pack import main as pack
from shards.show import main as show
from shards.verify import main as verify
from tests.hostile_files import DEEP, ESCAPES, FOREIGN, Executed, surroundings

DOCUMENTED = {0, 1, 2, 3, 75}
LONGEST_S = 120
SHARD = "train-000000.tar"
SMALL = (
    "--data.image-size-px", "64", "--model.width", "4", "--train.epochs", "1", "--train.batch-size", "16",
    "--data.cache", "none",
)  # fmt: skip
ONE_TRIAL = ("--axis", "model.arch=unet", "--axis", "augment.policy=none", "--axis", "train.seed=0")
SLOW = ("train", "augment", "plan", "doctor", "doctor that trains")  # each imports and sets up torch

Main = Callable[[list[str]], int]
Spoil = Callable[[Path, Path], object]  # the set, and a folder outside of it


@pytest.fixture(autouse=True)
def nobody_waits() -> Iterator[None]:
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a command waits for what never comes"))
    signal.alarm(LONGEST_S)
    yield
    signal.alarm(0)


@pytest.fixture
def shards(pet_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pet_shards, tmp_path / "set"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    made = tmp_path / "outside"
    made.mkdir()
    (made / "secret").write_text("secret")
    return made


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command to a documented end; what it said, which no terminal obeys."""

    def run_it(main: Main, *words: object, codes: set[int] = DOCUMENTED) -> str:
        code = run_command(main, [str(word) for word in words])
        captured = capfd.readouterr()
        said = captured.out + captured.err
        assert code in codes, said
        assert "bug:" not in said
        assert "Traceback" not in said
        assert not [char for char in said if (ord(char) < 32 and char not in "\n\t\r") or char in "\x7f\x9b\u202e"]
        return said

    return run_it


def rewritten(folder: Path, **values: object) -> None:
    """manifest.json with other values, and a hash that fits."""
    content = json.loads((folder / MANIFEST_NAME).read_text()) | values
    kept = {name: value for name, value in content.items() if name in Manifest.__dataclass_fields__} | {"hash": ""}
    content["hash"] = hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


def named(folder: Path, name: str) -> None:
    shards = json.loads((folder / MANIFEST_NAME).read_text())["shards"]
    rewritten(folder, shards=[shards[0] | {"name": name}, *shards[1:]])


def linked(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside / "secret")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def with_members(folder: Path, outside: Path) -> None:
    """A tar whose members would leave the folder, are links, or have names that a terminal obeys."""
    names = ("../outside/evil.jpg", "../outside/evil.png", "/evil.jpg", f"x{ESCAPES}.jpg", f"x{ESCAPES}.png")
    with tarfile.open(folder / SHARD, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside / "secret")
        tar.addfile(link)


def facts_of_a_stranger(folder: Path, outside: Path) -> None:
    trimap = {"pet": 1, "background": 2, "border": 3}
    rewritten(folder, source={"name": FOREIGN, "attribution": FOREIGN, "trimap": trimap})


SPOILS: dict[str, Spoil] = {
    "names a file outside": lambda folder, outside: named(folder, "../outside/secret"),
    "names an absolute file": lambda folder, outside: named(folder, str(outside / "secret")),
    "names with escapes": lambda folder, outside: named(folder, f"{FOREIGN}.tar"),
    "manifest is a link": lambda folder, outside: linked(folder / MANIFEST_NAME, outside),
    "manifest is a FIFO": lambda folder, outside: fifo(folder / MANIFEST_NAME),
    "manifest is a list": lambda folder, outside: (folder / MANIFEST_NAME).write_text("[1]"),
    "manifest is nested": lambda folder, outside: (folder / MANIFEST_NAME).write_text(DEEP),
    "manifest of other types": lambda folder, outside: rewritten(folder, shards=[5], splits=[], source="x"),
    "facts of a stranger": facts_of_a_stranger,
    "packer of a stranger": lambda folder, outside: rewritten(folder, packer={FOREIGN: FOREIGN}),
    "shard is a link": lambda folder, outside: linked(folder / SHARD, outside),
    "shard is a FIFO": lambda folder, outside: fifo(folder / SHARD),
    "index is a link": lambda folder, outside: linked(folder / index_name(SHARD), outside),
    "index is a FIFO": lambda folder, outside: fifo(folder / index_name(SHARD)),
    "index is nested": lambda folder, outside: (folder / index_name(SHARD)).write_text(DEEP),
    "members of a stranger": with_members,
}
LOOKS: dict[str, tuple[Main, tuple[str, ...]]] = {
    "verify": (verify, ("SET",)),
    "verify --decode": (verify, ("SET", "--decode")),
    "verify --repair": (verify, ("SET", "--repair", "COPY")),
    "verify --index": (verify, ("SET", "--index")),
    "show": (show, ("SET", "--out", "OUT/sheet.png")),
    "duplicates": (duplicates, ("SET",)),
    "pack over it": (pack, ("--synthetic", "12", "--out", "SET", "--image-size-px", "64")),
    "pack --resume": (pack, ("--synthetic", "12", "--out", "SET", "--resume")),
    "plan": (plan, ("--data.shards", "SET", "--model.width", "4", "--data.image-size-px", "64")),
    "augment": (augment, ("--shards", "SET", "--image-size-px", "64", "--out", "OUT/augment.png")),
    "chain train --dry-run": (
        chain,
        (
            "train",
            "report",
            "--set",
            "data.shards=SET",
            "--runs-dir",
            "OUT/runs",
            "--dry-run",
            "--no-probe",
            *ONE_TRIAL,
        ),
    ),
    "doctor": (
        doctor,
        ("--set", "data.shards=SET", "--runs-dir", "OUT/runs", "--cluster", "local", "--quick", "--deep", *ONE_TRIAL),
    ),
    "doctor that trains": (
        doctor,
        ("--set", "data.shards=SET", "--runs-dir", "OUT/runs", "--cluster", "local", "--only", "overfit", *ONE_TRIAL),
    ),
    "train": (train, ("--data.shards", "SET", "--out", "OUT/run", "--data.cache-dir", "OUT/cache", *SMALL)),
}


@pytest.mark.parametrize("command", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in LOOKS])
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_shard_set(
    run: Callable[..., str], shards: Path, pet_shards: Path, outside: Path, tmp_path: Path, spoil: str, command: str
) -> None:
    (tmp_path / "out").mkdir()
    SPOILS[spoil](shards, outside)
    before = surroundings(outside)
    main, words = LOOKS[command]
    places = {"SET": shards, "COPY": pet_shards, "OUT": tmp_path / "out"}
    run(main, *(re.sub("SET|COPY|OUT", lambda found: str(places[found[0]]), word) for word in words))
    assert surroundings(outside) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"set", "outside", "out"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_weights_are_data(tmp_path: Path, suffix: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / f"theirs{suffix}"
    evil, huge = pickle.dumps(Executed(canary), protocol=2), (2**40).to_bytes(8, "little") + b"{}"
    for content in (evil, b"", b"\xff" * 16, DEEP.encode(), huge):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged|no tensors"):
            read_tensors(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no such file"):
        read_tensors(path)
    assert not canary.exists()


CHECKPOINTS: dict[str, Spoil] = {
    "pickled tensors": lambda step, outside: (step / "model.safetensors").write_bytes(
        pickle.dumps(Executed(outside.parent / "canary"))
    ),
    "nested state": lambda step, outside: (step / "state.json").write_text(DEEP),
    "state is a list": lambda step, outside: (step / "state.json").write_text("[]"),
    "state is a link": lambda step, outside: linked(step / "state.json", outside),
    "state is a FIFO": lambda step, outside: fifo(step / "state.json"),
    "tensors are a link": lambda step, outside: linked(step / "model.safetensors", outside),
    "tensors are a FIFO": lambda step, outside: fifo(step / "model.safetensors"),
}


@pytest.fixture(scope="module")
def trained(pet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run_command(train, ["--data.shards", str(pet_shards), "--out", str(out), *SMALL]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("spoil", CHECKPOINTS)
def test_a_checkpoint_is_data(
    run: Callable[..., str], trained: Path, pet_shards: Path, tmp_path: Path, outside: Path, spoil: str
) -> None:
    """Training that would go on from it, and a measurement of it, say what is wrong."""
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    (step,) = (out / "checkpoints").glob("step-*")
    CHECKPOINTS[spoil](step, outside)
    before = surroundings(outside)
    run(evaluate, out, "--split", "val", "--no-native", codes={2, 3})
    (out / "result.json").unlink()
    run(train, "--data.shards", pet_shards, "--out", out, *SMALL, codes={0, 2, 3})
    assert surroundings(outside) == before
    assert not (tmp_path / "canary").exists()
