"""The code of a sweep: a copy of the packages as they are at submission, from which its jobs run.

A job can wait for days, and a requeued one starts again in the middle: what is edited meanwhile must not reach it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from petseg.run_folder.checkout import CODE_NAME, Checkout, running_code
from shards.files import require_own_folder

PACKAGES = ("jobs", "petseg", "shards", "slurm")
SUFFIXES = {".py", ".yaml", ".j2", ".toml", ".sbatch"}
NOTE_NAME = "snapshot.json"


@dataclass(frozen=True)
class Snapshot:
    """A copy of the four packages."""

    folder: Path
    code: str  # first 12 hex digits of sha256 over all files and their names
    checkout: Checkout = field(default_factory=Checkout)  # that it was taken from

    def variables(self) -> dict[str, str]:
        """The environment in which a job imports the copy, and neither what is installed nor its working folder."""
        rest = os.environ.get("PYTHONPATH")
        path = f"{self.folder}{os.pathsep}{rest}" if rest else str(self.folder)
        return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", CODE_NAME: self.code, **self.checkout.variables()}


def take_snapshot(folder: Path) -> Snapshot:
    """Copy the packages, with whatever is uncommitted in them, to `folder/HASH`, unless that copy is there."""
    files = {str(name): path for name, path in _files()}
    code = _hash_of(files)
    target, checkout = folder.absolute() / code, running_code()
    require_own_folder(folder)
    if target.exists() or target.is_symlink():
        _require_whole(target, code, files)
        return Snapshot(target, code, checkout)
    aside = target.with_name(f".{code}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for name, path in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, aside / name)
        (aside / NOTE_NAME).write_text(json.dumps(asdict(checkout) | {"code": code}, indent=2) + "\n")
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Snapshot(target, code, checkout)


def _hash_of(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _require_whole(target: Path, code: str, files: Mapping[str, Path]) -> None:
    """Raises ValueError unless a copy has exactly the content that its name says: jobs run what is in it."""
    found = {str(path.relative_to(target)): path for path in target.rglob("*") if not path.is_dir()}
    ours = {name: path for name, path in found.items() if "__pycache__" not in Path(name).parts and name != NOTE_NAME}
    linked = any(path.is_symlink() for path in (target, *target.rglob("*")))
    if linked or set(ours) != set(files) or _hash_of(ours) != code:
        raise ValueError(f"{target} is not the copy of the code that its name says: delete it")


def _files() -> Iterator[tuple[Path, Path]]:
    """(name within the copy, path) of every file of the packages."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            if path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield package / path.relative_to(root), path
