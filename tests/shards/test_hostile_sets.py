"""A shard set from a stranger is data: no name leads out of its folder, and nothing but regular files is opened."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petseg.data.store import LocalStore
from petseg.data.tars import TarReader
from shards.command import FAILED, OK, WRONG_USE, run_command
from shards.files import NotRegular, open_regular
from shards.index import Sample, index_name, load_index, save_index
from shards.manifest import MANIFEST_NAME, Manifest, load_manifest, manifest_hash
from shards.pack import main as pack
from shards.show import main as show
from shards.verify import DAMAGED
from shards.verify import main as verify
from shards.verify import verify as findings_of

SHARD = "train-000001.tar"
Spoil = Callable[[Path], object]


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    aside = path.with_name(f"moved-{path.name}.original".replace(".", "-"))
    path.rename(aside)
    path.symlink_to(aside)


def a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILERS = pytest.mark.parametrize(
    "spoil", [a_fifo, a_link, a_dangling_link, a_folder], ids=lambda spoil: spoil.__name__
)


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    """A manifest with a change and the hash that goes with it: a hash is no seal."""
    content = json.loads((folder / MANIFEST_NAME).read_text())
    change(content)
    content["hash"] = ""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["hash"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["../outside.tar", "/tmp/outside.tar", ".profile", "..", "", "a/b.tar", "a\n.tar", 7, None]
)
def test_a_shards_name_is_a_plain_file_name(
    shard_set: Path, packed: Path, name: object, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outside = tmp_path / "outside.tar"
    outside.write_text("mine")
    rewrite(shard_set, lambda content: content["shards"][0].update(name=name))
    with pytest.raises(ValueError, match="a shard is named"):
        load_manifest(shard_set)
    assert run_command(verify, [str(shard_set), "--repair", str(packed)]) == WRONG_USE
    assert run_command(verify, [str(shard_set)]) == DAMAGED
    assert run_command(show, [str(shard_set), "--out", str(tmp_path / "sheet.png")]) == WRONG_USE
    assert outside.read_text() == "mine"
    assert "a shard's name must match" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["shards"].append(c["shards"][0]),
        lambda c: c["shards"][0].update(num_samples="4"),
        lambda c: c["shards"][0].update(num_bytes=-1),
        lambda c: c["splits"].update({"../x": c["splits"]["val"]}),
        lambda c: c["source"].update(trimap={"pet": 1}),
        lambda c: c["source"].update(trimap={"pet": 1, "background": 2, "border": "3"}),
        lambda c: c["source"].update(name=["<b>"]),
        lambda c: c.update(packer=[]),
        lambda c: c["splits"]["train"].update(num_samples=c["splits"]["train"]["num_samples"] + 1),
        lambda c: c["shards"][0].update(num_samples=c["shards"][0]["num_samples"] - 1),
        lambda c: c["shards"][0].update(split="val"),
        lambda c: c["splits"].pop("val"),
    ],
)
def test_what_no_reader_can_use_is_refused_where_it_is_read(shard_set: Path, change: Callable[[dict], object]) -> None:
    rewrite(shard_set, change)
    with pytest.raises(ValueError, match=r"manifest\.json cannot be used"):
        load_manifest(shard_set)


def test_a_key_is_no_path(shard_set: Path) -> None:
    """Overlays are named after keys: those of an index that was made to match a made-up manifest, too."""
    samples = load_index(shard_set, SHARD)
    save_index(
        [Sample("../../evil", *(getattr(samples[0], kind) for kind in ("jpg", "png", "json")))], shard_set, SHARD
    )
    with pytest.raises(ValueError, match=r"'\.\./\.\./evil': the key must match"):
        load_index(shard_set, SHARD)


@SPOILERS
@pytest.mark.parametrize("file", [SHARD, index_name(SHARD)])
def test_verify_names_what_is_no_file_and_repair_puts_one_there(
    shard_set: Path, packed: Path, spoil: Spoil, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = shard_set / f"moved-{file}.original".replace(".", "-")
    spoil(shard_set / file)
    was = target.read_bytes() if target.exists() else None
    assert [f.shard for f in findings_of(shard_set) if "not a regular file" in f.problem] == [file]
    code = run_command(verify, [str(shard_set), "--repair", str(packed), "--workers", "1"])
    if spoil is a_folder:
        assert code == FAILED
        assert "is a folder, where a file of the set belongs" in capsys.readouterr().err
    else:
        assert code == OK
        assert (shard_set / file).read_bytes() == (packed / file).read_bytes()
        assert not (shard_set / file).is_symlink()
    if was is not None:
        assert target.read_bytes() == was


@SPOILERS
def test_a_copy_to_repair_from_is_read_from_files_alone(
    shard_set: Path, packed: Path, tmp_path: Path, spoil: Spoil, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    spoil(copy / SHARD)
    (shard_set / SHARD).unlink()
    assert run_command(verify, [str(shard_set), "--repair", str(copy)]) == FAILED
    assert "not a regular file" in capsys.readouterr().err


@SPOILERS
def test_the_reader_and_the_sheet_refuse_what_is_no_file(
    shard_set: Path, tmp_path: Path, spoil: Spoil, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (SHARD, index_name("val-000000.tar")):
        spoil(shard_set / file)
    store = LocalStore(str(shard_set))
    store.prefetch([SHARD])
    with pytest.raises(ValueError, match="not a regular file"):
        store.open(SHARD)
    with pytest.raises(ValueError, match="not a regular file"):
        store.index("val-000000.tar")
    reader = TarReader(store, "train", 32)
    ids = np.arange(len(reader))
    loaded = reader.load(ids, np.empty((len(ids), 32, 32, 3), np.uint8), np.empty((len(ids), 32, 32), np.uint8))
    assert loaded.lost
    assert all("not a regular file" in lost.problem for lost in loaded.lost)
    assert run_command(show, [str(shard_set), "--split", "val", "--out", str(tmp_path / "sheet.png")]) == WRONG_USE
    assert "not a regular file" in capsys.readouterr().err


@SPOILERS
def test_a_manifest_is_a_file(shard_set: Path, spoil: Spoil, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(shard_set / MANIFEST_NAME)
    with pytest.raises(ValueError, match="not a regular file"):
        load_manifest(shard_set)
    assert run_command(verify, [str(shard_set)]) in (DAMAGED, WRONG_USE)
    capsys.readouterr()


@SPOILERS
def test_foreign_shards_are_files(shard_set: Path, spoil: Spoil, capsys: pytest.CaptureFixture[str]) -> None:
    (shard_set / MANIFEST_NAME).unlink()
    spoil(shard_set / SHARD)
    assert run_command(verify, [str(shard_set), "--index", "--workers", "1"]) == FAILED
    assert "not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["images/{}.jpg", "annotations/trimaps/{}.png", "annotations/test.txt", "source.json"])
@pytest.mark.parametrize("spoil", [a_fifo, a_folder], ids=lambda spoil: spoil.__name__)
def test_a_pack_reads_files_alone(
    drawn: Path, tmp_path: Path, file: str, spoil: Spoil, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(drawn, tmp_path / "pets"))
    key = sorted((source / "images").glob("*.jpg"))[0].stem
    spoil(source / file.format(key))
    assert run_command(pack, ["--source", str(source), "--out", str(tmp_path / "out"), "--workers", "1"]) in (2, 3)
    assert "not a regular file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pack_neither_empties_nor_writes_what_its_hidden_folder_links_to(
    packed: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for place, name in (("one", ".packing"), ("two", ".packing/lock")):
        out = tmp_path / place
        (out / name).parent.mkdir(parents=True)
        (out / name).symlink_to(mine if name == ".packing" else mine / "thesis.tex")
        for argv in (
            ["--source", str(drawn), "--out", str(out)],
            ["--source", str(drawn), "--out", str(out), "--resume"],
        ):
            assert run_command(pack, argv) == WRONG_USE
        assert "choose another --out" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in mine.iterdir()} == {"thesis.tex": "years of work"}


def test_a_folder_named_like_a_shard_is_named(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / "train-000000.tar").mkdir(parents=True)
    argv = ["--source", str(drawn), "--out", str(tmp_path / "out"), "--overwrite", "--workers", "1"]
    assert run_command(pack, argv) == WRONG_USE
    assert "train-000000.tar is a folder, where a shard's file is to go" in capsys.readouterr().err


def test_devices_and_sockets_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(NotRegular, match="is a device"):
        open_regular(Path("/dev/null"))
    link = tmp_path / "link"
    link.symlink_to("/dev/zero")
    with pytest.raises(NotRegular, match="is a device"):
        open_regular(link)


def test_the_checks_leave_a_packed_set_as_it_is(packed: Path) -> None:
    manifest: Manifest = load_manifest(packed)
    assert manifest_hash(replace(manifest, hash="")) == manifest.hash
