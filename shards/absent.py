"""What to say where a folder holds no shard set: what lies there instead, or which command makes one."""

from __future__ import annotations

from pathlib import Path

from shards.command import typed

NAMED = 3  # sets beside the folder that are named
PACK = ("-m", "shards.pack")


def describe_absence(folder: Path, manifest_name: str) -> str:
    """The folder by its whole path, since a relative one may be looked for in the wrong place, and the next step."""
    return f"no shard set in {folder.absolute()}: {_next_step(folder, manifest_name)}"


def _next_step(folder: Path, manifest_name: str) -> str:
    if pets := _pet_folder(folder):
        packs = typed(*PACK, "--source", pets, "--out", "SET")
        return f"it holds pictures in the Oxford-IIIT Pet layout, which `{packs}` packs"
    if any(folder.glob("*.tar")):
        indexes = typed("-m", "shards.verify", folder, "--index")
        return f"it has tar files but no {manifest_name}, which `{indexes}` writes"
    advice = (
        f"`{typed(*PACK, '--download', '--out', folder)}` fetches and packs Oxford-IIIT Pet (0.8 GB), and without a "
        f"network `{typed(*PACK, '--synthetic', 400, '--out', folder)}` draws pets"
    )
    inside = sorted(path.parent for path in folder.glob(f"*/{manifest_name}"))
    if near := inside or sorted(path.parent for path in folder.parent.glob(f"*/{manifest_name}")):
        advice += f"; there is one in {', '.join(str(path) for path in near[:NAMED])}"
    return advice


def _pet_folder(folder: Path) -> Path | None:
    """The folder, or one in it, that has the data set's lists."""
    lists = [*folder.glob("annotations/trainval.txt"), *folder.glob("*/annotations/trainval.txt")]
    return lists[0].parents[1] if lists else None
