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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from petseg.checkout import CODE_NAME, Checkout, running_code

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
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    code = digest.hexdigest()[:12]
    target, checkout = folder.absolute() / code, running_code()
    if target.exists():
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
