"""The copy of the code that jobs run: what is in it, and which copies are not trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.runs import snapshot
from jobs.runs.snapshot import NOTE_NAME, PACKAGES, Snapshot, _files, take_snapshot
from petseg.run_folder.checkout import Checkout
from shards.files import NotRegular


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies of two files of a package go."""
    for name, text in (("a.py", "A = 1\n"), ("deep/b.yaml", "b: 2\n")):
        path = tmp_path / "petseg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    files = [(Path("petseg") / name, tmp_path / "petseg" / name) for name in ("a.py", "deep/b.yaml")]
    monkeypatch.setattr(snapshot, "_files", lambda: iter(files))
    monkeypatch.setattr(snapshot, "running_code", lambda: Checkout("1111", True, "https://host/x"))
    return tmp_path / "code"


def test_a_copy_has_all_files_and_a_note_and_nothing_half_written(folder: Path) -> None:
    taken = take_snapshot(folder)
    assert taken == Snapshot(folder / taken.code, taken.code, Checkout("1111", True, "https://host/x"))
    assert len(taken.code) == 12
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        f"{taken.code}/{name}" for name in ("petseg/a.py", "petseg/deep/b.yaml", NOTE_NAME)
    ]
    assert (taken.folder / "petseg" / "deep" / "b.yaml").read_text() == "b: 2\n"
    note = json.loads((taken.folder / NOTE_NAME).read_text())
    assert note == {"commit": "1111", "changed": True, "remote": "https://host/x", "code": taken.code}


def test_jobs_import_the_copy_first(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Snapshot(Path("/code/abc"), "abc", Checkout("1111"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    variables = taken.variables()
    assert (variables["PYTHONPATH"], variables["PYTHONSAFEPATH"], variables["PETSEG_CODE"]) == ("/code/abc", "1", "abc")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert taken.variables()["PYTHONPATH"] == f"/code/abc{os.pathsep}/mine"


def link(path: Path) -> None:
    same = path.with_name("same")
    path.rename(same)
    path.symlink_to(same)


@pytest.mark.parametrize(
    "harm",
    [
        lambda copy: (copy / "petseg" / "a.py").write_text("A = 2\n"),
        lambda copy: (copy / "petseg" / "a.py").unlink(),
        lambda copy: (copy / "petseg" / "more.py").touch(),
        lambda copy: link(copy / "petseg" / "a.py"),
        lambda copy: link(copy / "petseg" / "deep"),
        link,
    ],
)
def test_a_copy_that_is_not_what_its_name_says_is_refused(folder: Path, harm: Callable[[Path], object]) -> None:
    taken = take_snapshot(folder)
    harm(taken.folder)
    with pytest.raises(ValueError, match="is not the copy of the code that its name says: delete it") as refused:
        take_snapshot(folder)
    assert str(refused.value).startswith(str(taken.folder))


def test_what_python_and_the_copy_itself_leave_does_no_harm(folder: Path) -> None:
    taken = take_snapshot(folder)
    cache = taken.folder / "petseg" / "__pycache__" / "a.cpython-311.pyc"
    cache.parent.mkdir()
    cache.touch()
    (taken.folder / NOTE_NAME).write_text("{}")
    assert take_snapshot(folder) == taken


def test_copies_are_not_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotRegular):
        take_snapshot(folder)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_copy_that_fails_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError("full")

    monkeypatch.setattr(snapshot.shutil, "copyfile", fail)
    with pytest.raises(OSError, match="full"):
        take_snapshot(folder)
    assert list(folder.iterdir()) == []


def test_the_packages_are_taken_with_their_templates_and_without_caches() -> None:
    names = [str(name) for name, _ in _files()]
    assert {name.split("/")[0] for name in names} == set(PACKAGES)
    assert {"jobs/sweep.py", "petseg/train.py", "slurm/train.sbatch"} <= set(names)
    assert {Path(name).suffix for name in names} <= snapshot.SUFFIXES
    assert not any("__pycache__" in name for name in names)
