"""Run a function in a forked child, and kill it before, within or after its N-th change to the file system.

The child is traced with ptrace, so every change counts, whoever makes it: Python, or safetensors' Rust. A child that is
killed as it enters a call never makes it. Needs Linux on x86_64 or aarch64, and leave to trace one's own children.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TRACEME, SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
SYSGOOD_AND_EXITKILL = 0x1 | 0x100000
ENTRY, EXIT = 1, 2
REMOVE_DIRECTORY = 0x200
WHERE = {  # call -> (argument that is the file, its folder's descriptor if that is an argument); "fd" = a descriptor
    "open": (0, None), "openat": (1, 0), "mkdir": (0, None), "mkdirat": (1, 0), "rename": (0, None), "renameat": (1, 0),
    "renameat2": (1, 0), "unlink": (0, None), "unlinkat": (1, 0), "rmdir": (0, None), "chmod": (0, None),
    "fchmodat": (1, 0), "link": (1, None), "linkat": (3, 2), "symlinkat": (2, 1),
    "write": (0, "fd"), "pwrite64": (0, "fd"), "writev": (0, "fd"), "sendfile": (0, "fd"), "ftruncate": (0, "fd"),
    "fallocate": (0, "fd"), "fsync": (0, "fd"), "fdatasync": (0, "fd"), "fchmod": (0, "fd"),
    "copy_file_range": (2, "fd"), "mmap": (4, "fd"),
}  # fmt: skip
NUMBERS = {
    "x86_64": {
        "write": 1, "open": 2, "mmap": 9, "pwrite64": 18, "writev": 20, "sendfile": 40, "fsync": 74, "fdatasync": 75,
        "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87, "chmod": 90, "fchmod": 91,
        "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
        "fchmodat": 268, "fallocate": 285, "renameat2": 316, "copy_file_range": 326,
    },
    "aarch64": {
        "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38, "ftruncate": 46, "fallocate": 47,
        "fchmod": 52, "fchmodat": 53, "openat": 56, "write": 64, "writev": 66, "pwrite64": 68, "sendfile": 71,
        "fsync": 82, "fdatasync": 83, "mmap": 222, "renameat2": 276, "copy_file_range": 285,
    },
}  # fmt: skip
CALLS = {number: name for name, number in NUMBERS.get(platform.machine(), {}).items()}
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class SyscallInfo(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3), ("arch", ctypes.c_uint32), ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64), ("nr", ctypes.c_int64), ("args", ctypes.c_uint64 * 6), ("rest", ctypes.c_uint64 * 2),
    )  # fmt: skip  # at an exit, `nr` is the result


@dataclass(frozen=True)
class Change:
    """One change to the file system: the call, and the file within the folder that is watched."""

    call: str
    file: str

    def __str__(self) -> str:
        return f"{self.call} {self.file}"


@dataclass(frozen=True)
class Kill:
    """Die at the `number`-th change (from 0), "before", "half" way through (a write) or "after" it."""

    number: int
    moment: str


def why_not() -> str:
    """Why this machine cannot do it; empty if it can."""
    if not CALLS:
        return f"no numbers of system calls for {platform.system()} on {platform.machine()}"
    try:
        changes, status = run(lambda: None, Path("/"), None)
    except OSError as error:
        return f"processes may not be traced here ({error})"
    return "" if not changes and status == 0 else f"a traced process ended with {status}"


def run(work: Callable[[], None], folder: Path, kill: Kill | None) -> tuple[list[Change], int]:
    """Fork, do `work`, and die at `kill`: the changes within `folder` that were begun, and how the child ended."""
    pid = os.fork()
    if pid == 0:
        try:
            if libc.ptrace(TRACEME, 0, None, None):
                os._exit(99)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            os._exit(0)
        finally:
            os._exit(98)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise PermissionError("ptrace was refused")
    _ptrace(SETOPTIONS, pid, None, SYSGOOD_AND_EXITKILL)
    changes: list[Change] = []
    current, num_bytes = None, 0
    while True:
        _ptrace(SYSCALL, pid, None, None)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return changes, os.waitstatus_to_exitcode(status)
        if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            continue
        info = SyscallInfo()
        _ptrace(GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
        if info.op == ENTRY:
            current, num_bytes = _change(pid, info, folder), info.args[2]
            if current:
                changes.append(current)
                if kill == Kill(len(changes) - 1, "before"):
                    return changes, _end(pid)
        elif current and kill and kill.number == len(changes) - 1:
            code = _end(pid)
            if kill.moment == "half":
                path = folder / current.file
                os.truncate(path, path.stat().st_size - num_bytes // 2)
            return changes, code


def _ptrace(request: int, pid: int, address: int | None, data: int | None) -> None:
    if libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")


def _end(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _change(pid: int, info: SyscallInfo, folder: Path) -> Change | None:
    call = CALLS.get(info.nr)
    if call is None:
        return None
    argument, at = WHERE[call]
    if call in ("open", "openat") and not info.args[argument + 1] & os.O_CREAT:
        return None
    if call == "mmap" and not (info.args[2] & 2 and info.args[3] & 1 and info.args[4] < 1 << 31):  # shared, writable
        return None
    try:
        if at == "fd":
            path = Path(f"/proc/{pid}/fd/{info.args[argument]}").readlink()
        else:
            descriptor = -100 if at is None else ctypes.c_int(info.args[at]).value
            base = f"/proc/{pid}/cwd" if descriptor == -100 else f"/proc/{pid}/fd/{descriptor}"
            path = Path(base).readlink() / _string(pid, info.args[argument])
    except OSError:
        return None
    if not path.is_relative_to(folder):
        return None
    if call == "unlinkat" and info.args[2] & REMOVE_DIRECTORY:
        call = "rmdir"
    return Change(call.removesuffix("at").removesuffix("64"), str(path.relative_to(folder)))


def _string(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        found = b""
        while b"\0" not in found:
            memory.seek(address + len(found))
            size = 4096 - (address + len(found)) % 4096  # not beyond the page: the next may not be there
            found += memory.read(size)
    return os.fsdecode(found.partition(b"\0")[0])
