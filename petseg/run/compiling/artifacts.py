"""Compiled code that jobs and nodes share: one file per kind of step, in the folder $PETSEG_COMPILE_CACHE.

The file holds what torch.compiler.save_cache_artifacts returns. torch compares each part of it with a hash of its own
inputs (source, versions, device), so that a wrong one is not used; but what is used is run. It is therefore read only
from a folder and a file that belong to this user and that nobody else may write. The folder comes from the environment
and not from a config, which can be a stranger's.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock

from shards.files import write_whole

FOLDER_NAME = "PETSEG_COMPILE_CACHE"
TORCHS_NAME = "TORCHINDUCTOR_CACHE_DIR"
MAX_BYTES = 2 << 30  # a step's code takes some 10 MB

logger = logging.getLogger(__name__)


class SharedArtifacts:
    """The compiled code of one kind of step, in a folder that jobs share; without a folder nothing is kept."""

    def __init__(self, parts: tuple[object, ...], device: torch.device, folder: Path | None = None) -> None:
        """parts: what the code depends on beside torch and the device; folder: by default $PETSEG_COMPILE_CACHE"""
        configured = os.environ.get(FOLDER_NAME)
        self.folder = folder or (Path(configured).expanduser().absolute() if configured else None)
        self.key = hashlib.sha256(repr((*parts, torch.__version__, *device_names(device))).encode()).hexdigest()[:20]

    @property
    def path(self) -> Path | None:
        return self.folder / f"{self.key}.torchcache" if self.folder else None

    def load(self) -> bool:
        """Hand what is kept to torch; False if there is nothing, or nothing that may be trusted, which is logged."""
        if self.path is None:
            return False
        try:
            require_private(self.path.parent)
            content = _read_own(self.path)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            logger.warning("shared compiled code is not used: %s", error)
            return False
        try:
            return torch.compiler.load_cache_artifacts(content) is not None
        except Exception as error:  # whatever torch raises for what another version wrote
            logger.warning("%s is not used: %s: %s", self.path, type(error).__name__, error)
            return False

    def save(self) -> None:
        """Keep what this process has compiled; a failure is logged, as the run does not need it."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_private(self.path.parent)
            artifacts = torch.compiler.save_cache_artifacts()
            if artifacts is not None:
                write_whole(self.path, artifacts[0])
                self.path.chmod(0o600)
        except Exception as error:  # a full disk, a folder of others, whatever torch raises
            logger.warning("compiled code is not shared: %s: %s", type(error).__name__, error)


def use_folder(folder: Path) -> Path:
    """Let torch keep compiled code in this folder of the node, or where $TORCHINDUCTOR_CACHE_DIR says.

    torch sets that variable itself, to a folder in /tmp that anyone can guess and make before this user does: its
    value is taken for the user's only where it is another one. Raises ValueError if others could have written there.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # here: it imports torch's compiler

    chosen = os.environ.get(TORCHS_NAME)
    if chosen and chosen != default_cache_dir():
        folder = Path(chosen)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private(folder)
    os.environ[TORCHS_NAME] = str(folder)
    return folder


def device_names(device: torch.device) -> tuple[object, ...]:
    """What compiled code depends on: a GPU's name and capability, or that it is a CPU."""
    if device.type != "cuda":
        return (device.type,)
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def require_private(folder: Path) -> None:
    """Raises ValueError unless the folder is a real one of this user's, in which nobody else may write."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ValueError(f"{folder} is no folder of yours, and code from it would run as you: choose another")
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(f"others may write to {folder} (mode {mode:o}), and code from it is run: chmod 700 {folder}")


def _read_own(path: Path) -> bytes:
    """The bytes of a regular file that belongs to this user and that nobody else may write."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise ValueError(f"{path} is not a file that only you may write, and code from it is run: delete it")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"{path} has {status.st_size} bytes, more than compiled code takes: delete it")
        return file.read()


@contextlib.contextmanager
def first_on_the_node(folder: Path, key: str) -> Iterator[None]:
    """Hold this node's lock on a kind of step until it was compiled here once; afterwards do not wait for others.

    An empty key takes no lock.
    """
    if not key:
        yield
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    done = folder / f"{key}.warm"
    lock = FileLock(folder / f"{key}.lock")
    lock.acquire()
    if done.exists():
        lock.release()
        yield
        return
    try:
        yield
        done.touch(mode=0o600)
    finally:
        lock.release()


@contextlib.contextmanager
def compiled_anew() -> Iterator[Callable[[], bool]]:
    """Tells, afterwards, whether something was compiled that no cache had."""
    before = _misses()
    yield lambda: _misses() > before


def _misses() -> int:
    from torch._dynamo.utils import counters  # here: it imports torch's compiler

    return int(counters["inductor"]["fxgraph_cache_miss"])
