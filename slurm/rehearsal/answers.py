"""Makes Slurm's commands slow or failing in a rehearsal, by scripts of the same names that come first on PATH."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FOLDER = "bin"  # first on the PATH of the cluster's users and of its jobs
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sinfo", "srun", "sacctmgr")
WHEN = re.compile(r"always|(first|every)-([1-9][0-9]*)")
# what a client says when slurmctld is too busy to answer
BUSY = "Socket timed out on send/recv operation"


@dataclass(frozen=True)
class Answer:
    """How one command answers: late, with an error, or with an error although it did what was asked."""

    command: str
    delay_s: float = 0.0  # before it does anything
    fails: str = ""  # always, first-N, every-N, or "" for never
    kind: Literal["fail", "lose"] = "fail"  # lose: it is carried out, but its answer is lost
    words: str = BUSY

    def __post_init__(self) -> None:
        if self.command not in COMMANDS:
            raise ValueError(f"{self.command}: no command of Slurm's that can be disturbed: {', '.join(COMMANDS)}")
        if not 0 <= self.delay_s <= 3600:
            raise ValueError(f"--slow {self.command}={self.delay_s:g}: must be from 0 to 3600 seconds")
        if self.fails and not WHEN.fullmatch(self.fails):
            raise ValueError(
                f"--{self.kind} {self.command}={self.fails}: say when it fails: always, first-N (the first N calls) "
                "or every-N (each Nth call)"
            )


def parse_answers(slow: Sequence[str], fail: Sequence[str], lose: Sequence[str]) -> tuple[Answer, ...]:
    """`sbatch=5`, `squeue=every-2`, `sbatch=first-1:WORDS` -> one answer for each command.

    Raises ValueError for anything else, and for a command that is to fail in two ways.
    """
    delays: dict[str, float] = {}
    for command, value in _pairs("slow", slow):
        try:
            delays[command] = float(value)
        except ValueError:
            raise ValueError(f"--slow {command}={value}: must be seconds, such as {command}=5") from None
    failures: dict[str, Answer] = {}
    kinds: tuple[tuple[Literal["fail", "lose"], Sequence[str]], ...] = (("fail", fail), ("lose", lose))
    for kind, flags in kinds:
        for command, value in _pairs(kind, flags):
            if command in failures:
                raise ValueError(f"--{kind} {command}={value}: {command} fails in another way already")
            when, _, words = value.partition(":")
            failures[command] = Answer(command, delays.pop(command, 0.0), when, kind, words.strip() or BUSY)
    return (*failures.values(), *(Answer(command, delay_s) for command, delay_s in delays.items()))


def _pairs(flag: str, words: Sequence[str]) -> Iterable[tuple[str, str]]:
    for word in words:
        command, equals, value = word.partition("=")
        if not equals or not value.strip():
            raise ValueError(f"--{flag} {word}: must be COMMAND={'SECONDS' if flag == 'slow' else 'WHEN[:WORDS]'}")
        yield command.strip(), value.strip()


def set_answers(root: Path, answers: Iterable[Answer]) -> None:
    """Put the scripts of these answers in place of those that are there; calls are counted from here on."""
    folder = root.absolute() / FOLDER
    folder.mkdir(exist_ok=True)
    wanted = {answer.command: answer for answer in answers}
    for path in folder.iterdir():
        if path.name.removesuffix(".calls") not in wanted:
            path.unlink()
    for command, answer in wanted.items():
        real = shutil.which(command, path=path_without(root, os.environ.get("PATH", os.defpath)))
        if real is None:
            raise ValueError(f"no {command} on PATH that could be disturbed")
        aside = folder / f"{command}.part"
        aside.write_text(render_script(answer, real, folder / f"{command}.calls"))
        aside.chmod(0o755)
        (folder / f"{command}.calls").write_text("")
        aside.replace(folder / command)


def render_script(answer: Answer, real: str, calls: Path) -> str:
    """A shell script that shadows the real command; `calls` has one line for each call so far."""
    lines = ["#!/bin/sh", f"# {answer.command} of a rehearsal: see `python -m slurm.rehearsal disturb --help`"]
    if answer.delay_s:
        lines.append(f"sleep {answer.delay_s:g}")
    if answer.fails:
        kind, _, number = answer.fails.partition("-")
        tests = {"always": "true", "first": f'[ "$n" -le {number} ]', "every": f'[ "$((n % {number or 1}))" -eq 0 ]'}
        lines += [f"echo >>{shlex.quote(str(calls))}", f"n=$(wc -l <{shlex.quote(str(calls))})"]
        lines.append(f"if {tests[kind]}; then")
        if answer.kind == "lose":
            lines.append(f'    {shlex.quote(real)} "$@" >/dev/null || exit $?')
        complaint = f"{answer.command}: error: {answer.words}"
        lines += [f"    printf '%s\\n' {shlex.quote(complaint)} >&2", "    exit 1", "fi"]
    lines.append(f'exec {shlex.quote(real)} "$@"')
    return "\n".join(lines) + "\n"


def path_with(root: Path, path: str) -> str:
    """PATH with the cluster's scripts first."""
    return os.pathsep.join([str(root.absolute() / FOLDER), path_without(root, path)])


def path_without(root: Path, path: str) -> str:
    """PATH without the cluster's scripts."""
    own = str(root.absolute() / FOLDER)
    return os.pathsep.join(entry for entry in path.split(os.pathsep) if entry != own)
