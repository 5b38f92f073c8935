"""The git commit of the running code, for people: it is noted with each attempt at a run and shown in wandb.

A job runs a copy of the code outside any checkout: its launcher passes on what the copy was made from.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.command import without_secrets

CODE_NAME, COMMIT_NAME, CHANGED_NAME, REMOTE_NAME = "PETSEG_CODE", "PETSEG_COMMIT", "PETSEG_CHANGED", "PETSEG_REMOTE"
TIMEOUT_S = 30


@dataclass(frozen=True)
class Checkout:
    """The state of a git checkout; all empty if the code is in none."""

    commit: str = ""
    changed: bool = False  # files of the checkout differ from the commit
    remote: str = ""  # address of origin, without credentials

    def variables(self) -> dict[str, str]:
        """Environment variables that tell it to jobs which run a copy of this code."""
        return {COMMIT_NAME: self.commit, CHANGED_NAME: "1" if self.changed else "", REMOTE_NAME: self.remote}


def running_code() -> Checkout:
    """The checkout that this process's code came from: as its launcher says if it runs a copy, else by git."""
    if os.environ.get(CODE_NAME):
        commit, changed, remote = (os.environ.get(name, "") for name in (COMMIT_NAME, CHANGED_NAME, REMOTE_NAME))
        return Checkout(commit, bool(changed), remote)
    return read_checkout(Path(__file__).with_name("__init__.py"))


def read_checkout(path: Path) -> Checkout:
    """The checkout that tracks this file; one that merely surrounds it, such as a user's own, does not count."""
    git = Git(path.parent)
    try:
        git("ls-files", "--error-unmatch", path.name)
        commit, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return Checkout()
    try:
        remote = without_secrets(git("remote", "get-url", "origin"))
    except subprocess.SubprocessError:
        remote = ""
    return Checkout(commit, changed, remote)


class Git:
    """git in a folder, regardless of any repository in the environment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment: Mapping[str, str] = {n: v for n, v in os.environ.items() if not n.startswith("GIT_")}

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=True,
        )  # fmt: skip
        return done.stdout.strip()
