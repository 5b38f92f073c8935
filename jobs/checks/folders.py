"""Checks of where a sweep writes: its folder, which all nodes share, and this node's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from filelock import FileLock

from jobs.checks.setup import Finding, NotChecked, Setup
from petseg.config import ModelConfig, RunConfig
from petseg.data.local_cache import cache_folder
from petseg.data.tars import TarReader

KEPT_CHECKPOINTS = 3  # the two newest and the best
TENSORS = 3  # weights and Adam's two moments, four bytes each
FILES_PER_TRIAL = 100
SPARE = 1.2
MAX_SKEW_S = 2.0
RENAMES = 50
LOCK_TIMEOUT_S = 30
# exit code 0: the lock was given though another process holds it; 1: it was refused, as it must be; else no locks here
TRY_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(1)
"""


def check_folder(setup: Setup) -> Finding:
    """The sweep's folder can be written, its file system keeps promises and time, and there is room."""
    what = "folder"
    target = setup.command.runs_dir / (setup.command.name or setup.spec.name)
    elsewhere = "choose another folder with --runs-dir"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest_folder(target)) as folder:
            _write(Path(folder) / "probe", b"petseg")
            problem = _rename_problem(Path(folder)) or _lock_problem(Path(folder))
            skew_s = _clock_skew_s(Path(folder))
    except OSError as error:
        return Finding("FAIL", what, f"{target} cannot be written: {error.strerror or error}", elsewhere)
    if problem:
        return Finding("FAIL", what, f"{target}: {problem}", elsewhere)
    needed, free, files = (
        _needed_bytes(setup),
        shutil.disk_usage(nearest_folder(target)).free,
        _free_files(nearest_folder(target)),
    )
    room = f"{len(setup.cells)} trials take up to {_gb(needed)}, {_gb(free)} are free"
    if needed > free:
        return Finding("FAIL", what, f"{target}: {room}", elsewhere)
    if abs(skew_s) > MAX_SKEW_S:
        detail = f"the clock of the file server of {target} is {skew_s:+.0f} s off this host's"
        return Finding("warn", what, detail, "nothing is ordered by it, but logs will confuse: have it set (NTP)")
    if needed * SPARE > free or files < FILES_PER_TRIAL * len(setup.cells):
        return Finding("warn", what, f"{target}: {room}, {files} files", "make room, or " + elsewhere)
    return Finding("ok", what, f"{target}: {room} (quotas not seen); writes, renames, locks and clock are right")


def check_cache(setup: Setup) -> Finding:
    """The cache folder is private and writable, and the decoded set has room in it."""
    import torch

    from petseg.data.cache import choose_cache, room_here

    what, data = "cache", setup.config.data
    advice = "choose another with data.cache_dir or $PETSEG_CACHE, or raise data.cache_gb"
    try:
        folder = cache_folder(data.cache_dir)
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as probe:
            _write(Path(probe) / "probe", b"petseg")
    except (ValueError, OSError) as error:
        return Finding("FAIL", what, str(error), advice)
    needed = _decoded_bytes(setup)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    room = room_here(folder, data.cache_gb, device)
    choice = choose_cache(data.cache, needed, room)
    shown = f"{folder} (of this host): {choice.cache}, {choice.why}"
    if data.cache in ("node", "device") and needed > room.disk:
        return Finding("FAIL", what, f"{folder}: {_gb(needed)} decoded, room for {_gb(room.disk)}", advice)
    if data.cache == "auto" and choice.cache == "none":
        return Finding("warn", what, f"{shown}; every epoch decodes anew", advice)
    return Finding("ok", what, shown)


def _decoded_bytes(setup: Setup) -> int:
    """Bytes of all splits once they are decoded, by the config that needs the most."""
    from petseg.data.split import bytes_of  # torch, which takes seconds

    return max(
        sum(bytes_of(TarReader(store, split, *how)) for store in setup.stores for split in store.manifest.splits)
        for how in {(cell.config.data.size_px, cell.config.data.fit) for cell in setup.cells}
    )


def nearest_folder(path: Path) -> Path:
    """The nearest folder at or above the path; a file in the way stays in it, and will fail to be written below."""
    path = path.absolute()
    while not os.path.lexists(path):
        path = path.parent
    return path


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _rename_problem(folder: Path) -> str:
    """Whether a reader ever sees a file half-written, or not at all, while it is replaced again and again."""
    path, seen, done = folder / "whole", set[bytes](), threading.Event()
    contents = [bytes([number]) * 4096 for number in range(2)]
    _write(path, contents[0])

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(path.read_bytes())
            except OSError as error:
                seen.add(str(error).encode())

    reader = threading.Thread(target=read, name="reader")
    reader.start()
    try:
        for number in range(RENAMES):
            aside = folder / "aside"
            aside.write_bytes(contents[number % 2])
            aside.replace(path)
    finally:
        done.set()
        reader.join()
    (folder / "aside.tmp").mkdir()
    (folder / "aside.tmp").rename(folder / "step")  # as checkpoints do
    return "" if seen <= set(contents) else "a file that is replaced is for a moment not there, or half-written"


def _lock_problem(folder: Path) -> str:
    """Whether another process is kept out by a lock; one's own could be let in (locks of NFS belong to processes)."""
    path = folder / ".lock"
    with FileLock(path, timeout=0):
        command = [sys.executable, "-c", TRY_LOCK, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOCK_TIMEOUT_S, check=False)
    if done.returncode == 0:
        return "two processes hold the same lock (flock): two launchers could submit a sweep twice"
    return "" if done.returncode == 1 and not done.stderr else f"flock does not work: {done.stderr.strip()[-200:]}"


def _clock_skew_s(folder: Path) -> float:
    """How far the clock that stamps files is ahead of this host's."""
    before = time.time()
    _write(folder / "stamp", b"now")
    after = time.time()
    stamp = (folder / "stamp").stat().st_mtime
    return stamp - min(max(stamp, before), after)


def _needed_bytes(setup: Setup) -> int:
    sizes: dict[tuple[ModelConfig, int], int] = {}
    models = [(cell.config.model, _num_classes(setup, cell.config)) for cell in setup.cells]
    for model, num_classes in models:
        if (model, num_classes) not in sizes:
            sizes[model, num_classes] = _weight_bytes(model, num_classes)
    return sum(KEPT_CHECKPOINTS * TENSORS * sizes[one] for one in models)


def _num_classes(setup: Setup, config: RunConfig) -> int:
    """The number of classes of a cell; the implied one where the shard set or the target cannot be read."""
    from petseg.targets.target import num_classes_of

    try:
        return num_classes_of(config.data, setup.store_of(config).manifest)
    except (NotChecked, ValueError):  # the checks of shards and labels say why
        return 2


def _weight_bytes(config: ModelConfig, num_classes: int) -> int:
    import torch

    from petseg.models.build import build_model, count_parameters

    with torch.device("meta"):  # shapes only
        return 4 * count_parameters(build_model(config, num_classes))


def _free_files(folder: Path) -> int:
    usage = os.statvfs(folder)
    return usage.f_favail if usage.f_files else sys.maxsize  # some file systems have no such limit


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
