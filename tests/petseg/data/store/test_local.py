"""A shard set in a folder: where it lies, what is read ahead, and files that are not what they should be."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from petseg.data import store as store_module
from petseg.data.store import LocalStore, enlarged_line, folder_of, is_remote
from shards.cause import Cause, ShardSetError
from shards.command import Failure
from shards.index import index_name
from shards.manifest import load_manifest


@pytest.fixture
def copied(pet_shards: Path, tmp_path: Path) -> LocalStore:
    return LocalStore(str(shutil.copytree(pet_shards, tmp_path / "set")))


def verify_line(store: LocalStore) -> str:
    return f"find all damage with `python -m shards.verify {store.location}`"


@pytest.mark.parametrize(
    ("location", "folder"),
    [
        ("data/shards", "data/shards"),
        ("file:///data/my%20shards", "/data/my shards"),
        ("file://localhost/data", "/data"),
        ("/data/my%20shards", "/data/my%20shards"),
    ],
)
def test_a_folder_by_its_path_or_its_address(location: str, folder: str) -> None:
    assert folder_of(location) == Path(folder)
    assert not is_remote(location)


def test_a_scheme_that_no_store_reads_is_refused_with_those_that_some_do() -> None:
    with pytest.raises(ValueError, match="ftp") as error:
        is_remote("ftp://me:word@host/set?sig=x")
    assert str(error.value) == (
        "ftp://host/set: a shard set is a folder, http://, https://, s3://, gs://, file:// or pipe:COMMAND"
    )
    with pytest.raises(ValueError, match=r"^file://host/set: write file:///absolute/path$"):
        folder_of("file://host/set")


def test_shards_are_read_ahead_in_order_up_to_a_bound(copied: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[tuple[str, int, int, int]] = []

    def noted(file: int, offset: int, length: int, advice: int) -> None:
        advised.append((Path(f"/proc/self/fd/{file}").readlink().name, offset, length, advice))

    monkeypatch.setattr(os, "posix_fadvise", noted)
    one, two, three = copied.manifest.shards[:3]
    monkeypatch.setattr(store_module, "ADVISE_BYTES", two.num_bytes + one.num_bytes)
    (Path(copied.location) / two.name).unlink()  # whoever reads it says so
    copied.prefetch([two.name, one.name, three.name])
    assert advised == [(one.name, 0, 0, os.POSIX_FADV_WILLNEED)]
    monkeypatch.setattr(store_module, "ADVISE_BYTES", one.num_bytes + three.num_bytes - 1)
    copied.prefetch([three.name, one.name])
    assert [name for name, *_ in advised] == [one.name, three.name]


def test_a_descriptor_is_the_callers_own(copied: LocalStore) -> None:
    name = copied.manifest.shards[0].name
    first, second = copied.open(name), copied.open(name)
    os.close(first)
    assert os.pread(second, 10**7, 0) == (Path(copied.location) / name).read_bytes()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(second, b"x")
    os.close(second)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_regular_files_are_a_set(copied: LocalStore, kind: str) -> None:
    """A link could lead anywhere, and a named pipe would be waited for."""
    shard = copied.manifest.shards[0].name
    for name, read in ((shard, copied.open), (index_name(shard), copied.index)):
        path = Path(copied.location) / name
        path.rename(path.with_name("moved"))
        if kind == "link":
            path.symlink_to(path.with_name("moved"))
        elif kind == "folder":
            path.mkdir()
        else:
            os.mkfifo(path)
        with pytest.raises(ShardSetError) as error:
            read(shard)
        assert str(path) in str(error.value)
        assert str(error.value).endswith(f": {verify_line(copied)}")


def test_what_is_missing_is_named_with_what_to_do(copied: LocalStore) -> None:
    shard = copied.manifest.shards[0].name
    tar, index = (Path(copied.location) / name for name in (shard, index_name(shard)))
    tar.unlink()
    index.unlink()
    with pytest.raises(ShardSetError, match=f"^{re.escape(f'{tar} is missing: {verify_line(copied)}')}$"):
        copied.open(shard)
    with pytest.raises(ShardSetError, match=f"^{re.escape(f'{index} is missing: pack the set again')}$"):
        copied.index(shard)


def test_an_altered_index_is_named_with_both_hashes(copied: LocalStore) -> None:
    shard = copied.manifest.shards[1]
    path = Path(copied.location) / index_name(shard.name)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(Failure) as error:
        copied.index(shard.name)
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    said = f"{path} is altered (sha256 {actual}, the manifest says {shard.index_sha256}): {verify_line(copied)}"
    assert str(error.value) == said
    assert error.value.cause is Cause.DATA


def test_a_warning_of_enlarged_pictures_has_both_sizes(pet_shards: Path) -> None:
    manifest = replace(load_manifest(pet_shards), packer={"image_size_px": 64})
    assert enlarged_line(manifest, "s3://bucket/set", "32x96") == (
        "pictures of s3://bucket/set were packed at 64 px, and are enlarged to data.image_size_px = 32x96: choose 64, "
        "or pack them larger"
    )
    assert enlarged_line(manifest, "data/set", 64, "crop") == (
        "pictures of data/set were squashed to 64 px when they were packed, and data.fit = crop cannot undo that: pack "
        "the set with `python -m shards.pack --image-size-px 0`"
    )
    assert enlarged_line(replace(manifest, packer={}), "data/set", 512, "crop") == ""
