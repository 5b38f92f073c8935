"""Describes a folder without a shard set: what is there instead, or which command makes a set."""

from __future__ import annotations

from pathlib import Path

from shards.command import typed

NAMED = 3  # sets beside the folder that are named
PACK = ("-m", "shards.pack")


def describe_absence(folder: Path, manifest_name: str) -> str:
    """The folder by its whole path, since a relative one may be looked for in the wrong place, and the next step."""
    return f"no shard set in {folder.absolute()}: {_next_step(folder, manifest_name)}"


def _next_step(folder: Path, manifest_name: str) -> str:
    if folder.is_file():
        return f"it is a file, and a shard set is a folder with a {manifest_name}, such as {folder.parent} perhaps"
    if inside := _sets_in(folder, manifest_name):
        return f"name a folder in it, {inside}"
    if listed := _listed_folder(folder):
        packs = typed(*PACK, "--source", listed, "--out", "SET")
        return f"it holds pictures with lists of their splits, which `{packs}` packs"
    if any(folder.glob("*.tar")):
        indexes = typed("-m", "shards.verify", folder, "--index")
        return f"it has tar files but no {manifest_name}, which `{indexes}` writes"
    advice = (
        f"`{typed(*PACK, '--download', '--out', folder)}` fetches and packs a public data set (0.8 GB), and without "
        f"a network `{typed(*PACK, '--synthetic', 400, '--out', folder)}` draws pictures"
    )
    near = _sets_in(folder.parent, manifest_name)
    return f"{advice}; there is one in {near}" if near else advice


def _sets_in(folder: Path, manifest_name: str) -> str:
    """The first shard sets that lie in a folder, for people."""
    return ", ".join(str(path.parent) for path in sorted(folder.glob(f"*/{manifest_name}"))[:NAMED])


def _listed_folder(folder: Path) -> Path | None:
    """The folder, or one in it, that has lists as `--source` reads them."""
    lists = [*folder.glob("annotations/trainval.txt"), *folder.glob("*/annotations/trainval.txt")]
    return lists[0].parents[1] if lists else None
