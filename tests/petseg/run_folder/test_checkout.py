"""Which commit the running code is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from petseg.run_folder.checkout import Checkout, read_checkout, running_code
from shards.command import without_secrets


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A file that a repository tracks."""
    path = tmp_path / "repository" / "petseg" / "run.py"
    path.parent.mkdir(parents=True)
    path.write_text("RATE = 0.1\n")
    git(path.parent, "init", "--quiet", str(tmp_path / "repository"))
    git(path.parent, "add", ".")
    git(path.parent, "commit", "--quiet", "--message", "first")
    return path


def test_a_checkout_has_a_commit_and_changes_or_none(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(code.parent, "rev-parse", "HEAD").strip()
    assert read_checkout(code) == Checkout(head, changed=False)
    code.write_text("RATE = 0.2\n")
    assert read_checkout(code) == Checkout(head, changed=True)
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # of a hook that starts a run
    assert read_checkout(code).commit == head


def test_the_remotes_address_has_no_secrets(code: Path) -> None:
    git(code.parent, "remote", "add", "origin", "https://me:s3cret@host/lab/petseg.git")
    assert read_checkout(code).remote == "https://host/lab/petseg.git"
    assert without_secrets("https://me:s3c@ret@host/x") == "https://host/x"
    assert without_secrets("git@host:lab/petseg.git") == "git@host:lab/petseg.git"


def test_a_repository_that_only_surrounds_the_code_is_not_its_own(code: Path) -> None:
    """Such as the one of a user's project, which petseg is installed into, or whose run folder has a copy of it."""
    copy = code.parents[1] / "runs" / "code" / "petseg" / "run.py"
    copy.parent.mkdir(parents=True)
    copy.write_text("RATE = 0.1\n")
    assert read_checkout(copy) == Checkout()


def test_code_in_no_repository(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("")
    assert read_checkout(tmp_path / "run.py") == Checkout()


def test_a_copys_checkout_comes_from_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = Checkout("5ha", changed=True, remote="https://host/petseg")
    for name, value in {"PETSEG_CODE": "c0de", **submitted.variables()}.items():
        monkeypatch.setenv(name, value)
    assert running_code() == submitted
    monkeypatch.setenv("PETSEG_CHANGED", "")
    assert not running_code().changed
    monkeypatch.delenv("PETSEG_CODE")  # left over from somewhere
    assert running_code().commit != "5ha"
