"""Locations that the user has named, and who may have written them down."""

from __future__ import annotations

from pathlib import Path

import pytest

from petseg.data.consent import FILE_NAME, is_known, remember, require_known

ADDRESS = "https://user:secret@host/pets?token=abc"


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of known locations, in a state folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "petseg" / FILE_NAME


def test_a_location_is_known_once_it_was_named(known: Path) -> None:
    assert not is_known(ADDRESS)
    remember([ADDRESS, "data/shards"])
    remember([ADDRESS])
    assert is_known(ADDRESS)
    assert not is_known("https://host/pets")
    assert len(known.read_text().split()) == 1
    assert "secret" not in known.read_text()


def test_folders_are_always_known(known: Path) -> None:
    assert is_known("data/shards")
    assert is_known("file:///data/shards")
    assert not known.exists()


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_to_is_not_trusted(known: Path, mode: int) -> None:
    remember([ADDRESS])
    known.chmod(mode)
    assert not is_known(ADDRESS)


def test_an_unknown_location_is_refused_without_its_secrets(known: Path) -> None:
    with pytest.raises(
        ValueError, match=r"config\.json names the shards https://host/pets, which is not fetched"
    ) as error:
        require_known(ADDRESS, "config.json")
    assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match=r"which is not run, .*: name them by --shards, or add --allow-pipe"):
        require_known("pipe:cat /set/{}", "config.json", "name them by --shards, or ")
    remember([ADDRESS])
    require_known(ADDRESS, "config.json")
