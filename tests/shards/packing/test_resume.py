"""A pack that was killed, interrupted or out of disk goes on, and ends with the same bytes."""

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from shards.command import CANCELLED, WRONG_USE, Failure
from shards.index import index_name, load_index
from shards.manifest import MANIFEST_NAME, load_manifest
from shards.pack import PackConfig, pack
from shards.packing.publish import RESUME_NAME, STAGING, staging_folder
from shards.pool import WorkerLost
from shards.sources.pets.synthetic import draw_folder
from shards.verify import verify

REPOSITORY = Path(__file__).parents[3]
PER_SHARD = 6

SLOW_PACK = """
import sys, time
from shards.archive import ShardWriter
from shards.command import run_command
from shards.pack import main
add = ShardWriter.add
ShardWriter.add = lambda *args: (time.sleep(0.05), add(*args))
sys.exit(run_command(main))
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def arguments(source: Path, out: Path) -> list[str]:
    return ["--source", str(source), "--out", str(out), "--samples-per-shard", str(PER_SHARD), "--workers", "1"]


def config_of(source: Path, out: Path, **changes) -> PackConfig:
    return PackConfig(out=out, source=source, samples_per_shard=PER_SHARD, **{"workers": 1, **changes})


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pets: 24 pets with oddities all over the shards; whole: their set; set: killed with two shards finished."""
    root = tmp_path_factory.mktemp("once")
    draw_folder(root / "pets", number=24, seed=1, longer_side_px=40)
    for place, path in enumerate(sorted((root / "pets" / "images").iterdir())):
        if place % 2:
            with Image.open(path) as image:
                grey = image.convert("L")
            grey.save(path, "PNG" if place % 3 else "JPEG")
    (root / "pets" / "images" / "._pug_1.jpg").touch()
    pack(config_of(root / "pets", root / "whole"))
    kill_with_two_shards(arguments(root / "pets", root / "set"), root / "set", signal.SIGKILL)
    return root


@pytest.fixture
def pets(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once / "pets", tmp_path / "pets"))  # with the times of its files


@pytest.fixture
def whole(once: Path) -> Path:
    return once / "whole"


@pytest.fixture
def killed(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once / "set", tmp_path / "set"))


def kill_with_two_shards(args: list[str], out: Path, number: int) -> tuple[int, str]:
    command = [sys.executable, "-c", SLOW_PACK, *args]
    child = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if len(list(out.glob(".packing/*.tar"))) == 3:
            break
        time.sleep(0.02)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert len(list(out.glob(".packing/*.index.json"))) == 2
    return child.returncode, errors


def test_the_killed_pack_goes_on(killed: Path, pets: Path, whole: Path, caplog) -> None:
    finished = {path.name: path.stat().st_mtime_ns for path in (killed / STAGING).glob("*.index.json")}
    assert len(finished) == 2
    with caplog.at_level(logging.INFO):
        outcome = pack(config_of(pets, killed, workers=2, resume=True))
    assert files_of(killed) == files_of(whole)
    assert outcome.manifest == load_manifest(whole)
    assert outcome.manifest.packer["oddities"] == {"not_jpeg": 8, "not_rgb": 12, "apple_double": 1}
    assert "resuming: 2 of 5 shards (10 samples) are whole" in caplog.text
    assert "packed: 24 of 24" in caplog.text
    again = {name: (killed / name).stat().st_mtime_ns for name in finished}
    assert again == finished  # not packed anew
    assert verify(killed) == []


def test_without_resume_all_is_packed_anew(killed: Path, pets: Path, whole: Path, caplog) -> None:
    before = (killed / STAGING / "train-000000.tar").stat().st_ctime_ns
    with caplog.at_level(logging.INFO):
        pack(config_of(pets, killed))
    assert files_of(killed) == files_of(whole)
    assert "going on" not in caplog.text
    assert (killed / "train-000000.tar").stat().st_mtime_ns > before


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda tar, index: flip(tar, 700), "does not match its index"),
        (lambda tar, index: flip(tar, 130), "its bytes are not those that its samples make"),
        (lambda tar, index: flip(tar, -1), "its bytes are not those that its samples make"),
        (lambda tar, index: os.truncate(tar, 3000), "does not match its index"),
        (lambda tar, index: os.truncate(tar, 0), "it is empty"),
        (lambda tar, index: index.write_text("[" + index.read_text()[1:].replace("512", "513", 1)), "not match its"),
        (lambda tar, index: index.write_text(index.read_text() + "\n"), "its index is not as it was written"),
        (lambda tar, index: index.write_text("[]"), "its samples are not the expected ones"),
        (lambda tar, index: index.write_text("["), "is damaged"),
    ],
)
def test_a_shard_that_is_not_whole_is_not_used_again(killed, pets, whole, caplog, damage, why: str) -> None:
    tar = killed / STAGING / "train-000000.tar"
    damage(tar, tar.with_name(index_name(tar.name)))
    with caplog.at_level(logging.INFO):
        pack(config_of(pets, killed, resume=True))
    assert files_of(killed) == files_of(whole)
    assert "resuming: 1 of 5 shards" in caplog.text
    assert "train-000000.tar cannot be used (" in caplog.text
    assert why in caplog.text


def test_shards_of_another_pack_are_dropped(killed: Path, pets: Path, tmp_path: Path, caplog) -> None:
    kept = Path(shutil.copytree(killed, tmp_path / "kept"))
    cases = {
        "other settings": config_of(pets, killed, seed=1, resume=True),
        "other pictures or lists": config_of(pets, killed, resume=True),
        f"no readable {RESUME_NAME}": config_of(pets, killed, resume=True),
    }
    for why, config in cases.items():
        shutil.rmtree(killed)
        shutil.copytree(kept, killed)
        if "pictures" in why:
            os.utime(pets / "images" / "Abyssinian_1.jpg", ns=(1, 1))
        if "readable" in why:
            (killed / STAGING / RESUME_NAME).write_text("[]")
        caplog.clear()
        with caplog.at_level(logging.INFO):
            pack(config)
        if "readable" in why:
            assert "going on" not in caplog.text
        else:
            assert f"2 finished shards belong to another pack ({why}): packed again" in caplog.text
        assert verify(killed) == []


def test_nothing_to_go_on_with(pets: Path, whole: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        pack(config_of(pets, tmp_path / "set", resume=True))
    assert "no finished shard can be used" in caplog.text
    assert files_of(tmp_path / "set") == files_of(whole)
    assert pack(config_of(pets, tmp_path / "set", resume=True)).was_there


def test_killed_twice(killed: Path, pets: Path, whole: Path) -> None:
    args = [sys.executable, "-c", SLOW_PACK, *arguments(pets, killed), "--resume"]
    child = subprocess.Popen(args, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if len(list(killed.glob(".packing/*.index.json"))) == 3:
            break
        time.sleep(0.02)
    child.kill()
    child.wait(timeout=60)
    pack(config_of(pets, killed, resume=True))
    assert files_of(killed) == files_of(whole)


def test_ctrl_c(pets: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    code, errors = kill_with_two_shards(arguments(pets, out), out, signal.SIGINT)
    assert code == CANCELLED
    assert f"2 finished shards stay in {out / STAGING}: add --resume to continue with them" in errors
    names = {path.name for path in (out / STAGING).iterdir()}
    assert names == {"lock", RESUME_NAME, "train-000000.tar", "train-000000.index.json", "train-000001.tar",
                     "train-000001.index.json"}  # fmt: skip
    pack(config_of(pets, out, resume=True))
    assert files_of(out) == files_of(whole)


def test_a_disk_that_fills_up(packed: Path, drawn: Path, tmp_path: Path) -> None:
    """A limit on a file's size stands for the disk: writing fails with an OSError in the midst of a shard."""
    sizes = [shard.num_bytes for shard in load_manifest(packed).shards]
    first = next(place for place in range(1, len(sizes)) if sizes[place] > max(sizes[:place]))
    limit = sizes[first] - 1

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "set"
    args = ["--source", str(drawn), "--out", str(out), "--samples-per-shard", "10", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "shards.pack", *args], cwd=REPOSITORY, preexec_fn=limited, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == WRONG_USE
    assert "add --resume" in done.stderr
    assert "File too large" in done.stderr
    assert len(list((out / STAGING).glob("*.tar"))) == first
    pack(PackConfig(out=out, source=drawn, samples_per_shard=10, workers=1, resume=True))
    assert files_of(out) == files_of(packed)


def test_drawn_pets_go_on(tmp_path: Path) -> None:
    args = ["--synthetic", "24", "--synthetic-longer-side-px", "40", "--samples-per-shard", "6", "--workers", "1"]
    out = tmp_path / "set"
    kill_with_two_shards([*args, "--out", str(out)], out, signal.SIGKILL)
    shape = {"synthetic": 24, "synthetic_longer_side_px": 40, "samples_per_shard": 6, "workers": 1}
    pack(PackConfig(out=tmp_path / "whole", **shape))
    inode = (out / STAGING / "train-000000.tar").stat().st_ino
    pack(PackConfig(out=out, resume=True, **shape))
    assert files_of(out) == files_of(tmp_path / "whole")
    assert (out / "train-000000.tar").stat().st_ino == inode


def test_bad_pictures_leave_nothing_even_when_resumed(killed: Path, pets: Path) -> None:
    """None of the pets that stand in the finished shards."""
    done = {
        sample.key for name in ("train-000000.tar", "train-000001.tar") for sample in load_index(killed / STAGING, name)
    }
    victim = next(p for p in sorted((pets / "images").glob("[!.]*")) if p.stem not in done)
    times = victim.stat()
    victim.write_bytes(bytes(times.st_size))  # as a disk that rots: size and time say nothing
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(Failure, match=victim.name):
        pack(config_of(pets, killed, resume=True))
    assert not killed.exists()


def test_a_set_in_place_stays_while_another_is_resumed(killed: Path, pets: Path, whole: Path) -> None:
    """--overwrite, killed and resumed: the old set is whole until the new one is."""
    for name, content in files_of(whole).items():
        (killed / name).write_bytes(content)
    assert verify(killed) == []
    pack(config_of(pets, killed, image_size_px=16, overwrite=True, resume=True))
    assert load_manifest(killed).packer["image_size_px"] == 16
    assert verify(killed) == []
    assert (killed / MANIFEST_NAME).exists()
    assert load_index(killed, "train-000000.tar")


def fail_with(error: type[BaseException], out: Path, *staged: str) -> None:
    with staging_folder(out) as staging:
        for name in (RESUME_NAME, *staged):
            (staging / name).touch()
        raise error("stopped")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, WorkerLost, Failure, ValueError, RuntimeError])
def test_which_errors_keep_finished_shards(error: type[BaseException], tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(error):
        fail_with(error, out, "train-000000.tar", "train-000000.index.json", "train-000001.tar", "notes")
    if error in (KeyboardInterrupt, OSError, WorkerLost):
        assert {path.name for path in (out / STAGING).iterdir()} == {
            "lock", RESUME_NAME, "train-000000.tar", "train-000000.index.json",
        }  # fmt: skip
    else:
        assert not out.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_nothing_finished_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        fail_with(error, tmp_path / "set", "train-000000.tar")
    assert not (tmp_path / "set").exists()
