"""Where there is no shard set, the message names the next step, and that step works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shards.absent import describe_absence
from shards.manifest import MANIFEST_NAME, load_manifest

LISTED = "it holds pictures with lists of their splits, which"
ADVISED = (
    "`python -m shards.pack --download --out HERE` fetches and packs a public data set (0.8 GB), and without a network "
    "`python -m shards.pack --synthetic 400 --out HERE` draws pictures"
)
ADVICE = re.compile(r"`(python [^`]+)`")


def advice_for(folder: Path) -> tuple[str, list[str]]:
    """The message, and the commands in it."""
    with pytest.raises(ValueError, match="no shard set in") as found:
        load_manifest(folder)
    return str(found.value), ADVICE.findall(str(found.value))


def run(command: str, *flags: str) -> None:
    words = [sys.executable, *shlex.split(command)[1:], *flags]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_advised_commands_pack_a_set_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that needs no network is typed as it stands; the other is understood."""
    from shards.command.flags import parse
    from shards.pack import PackConfig

    monkeypatch.chdir(tmp_path)
    folder = Path("my data/shards")
    message, (download, synthetic) = advice_for(folder)
    assert message.startswith(f"no shard set in {tmp_path / folder}: ")
    assert parse(PackConfig, shlex.split(download)[3:], None) == PackConfig(out=folder, download=True)
    run(synthetic)
    assert load_manifest(folder).splits["train"].num_samples == 180
    assert load_manifest(folder).packer["image_size_px"] == 0  # goes with any data.image_size_px


def test_sets_that_are_near_are_named(shard_set: Path) -> None:
    assert advice_for(shard_set.parent) == (f"no shard set in {shard_set.parent}: name a folder in it, {shard_set}", [])
    assert advice_for(shard_set.parent / "typo")[0].endswith(f"; there is one in {shard_set}")


def test_a_file_is_no_set(shard_set: Path) -> None:
    message, commands = advice_for(shard_set / MANIFEST_NAME)
    assert message.endswith(
        f"it is a file, and a shard set is a folder with a manifest.json, such as {shard_set} perhaps"
    )
    assert not commands


def test_pictures_that_are_not_packed_are_known(drawn: Path, tmp_path: Path) -> None:
    for folder in (drawn, drawn.parent):
        message, (packs,) = advice_for(folder)
        assert "it holds pictures with lists of their splits" in message
        assert f"--source {drawn} " in packs
    run(packs.replace("SET", str(tmp_path / "set")))
    load_manifest(tmp_path / "set")


def test_tars_without_a_manifest_are_to_be_indexed(shard_set: Path) -> None:
    (shard_set / MANIFEST_NAME).unlink()
    message, (indexes,) = advice_for(shard_set)
    assert "it has tar files but no manifest.json" in message
    run(indexes)
    load_manifest(shard_set)


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("files", "step"),
    [
        (["here/a/manifest.json", "here/annotations/trainval.txt", "here/x.tar"], "name a folder in it, HERE/a"),
        ([f"here/{name}/manifest.json" for name in "cabd"], "name a folder in it, HERE/a, HERE/b, HERE/c"),
        (["here/annotations/trainval.txt", "here/x.tar"],
         f"{LISTED} `python -m shards.pack --source HERE --out SET` packs"),
        (["here/in it/annotations/trainval.txt"],
         f"{LISTED} `python -m shards.pack --source 'HERE/in it' --out SET` packs"),
        (["here/x.tar", "other/manifest.json"],
         "it has tar files but no manifest.json, which `python -m shards.verify HERE --index` writes"),
        (["other/manifest.json"], f"{ADVISED}; there is one in PARENT/other"),
        (["here/x.tgz", "other/note.json", "other/in/manifest.json"], ADVISED),
    ],
)  # fmt: skip
def test_the_next_step_is_told_by_what_is_there(tmp_path: Path, files: list[str], step: str) -> None:
    make(tmp_path, *files)
    said = step.replace("HERE", str(tmp_path / "here")).replace("PARENT", str(tmp_path))
    assert describe_absence(tmp_path / "here", MANIFEST_NAME) == f"no shard set in {tmp_path / 'here'}: {said}"


def test_a_relative_folder_is_told_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "a/set.json")
    said = "it is a file, and a shard set is a folder with a manifest.json, such as a perhaps"
    assert describe_absence(Path("a/set.json"), MANIFEST_NAME) == f"no shard set in {tmp_path}/a/set.json: {said}"
