"""Locations that the user has named, and who may have written them down."""

from __future__ import annotations

import os
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


def test_only_the_user_can_read_and_add_to_what_is_known(known: Path) -> None:
    remember([ADDRESS])
    assert (known.stat().st_mode & 0o777, known.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_locations_that_are_named_together_are_each_known(known: Path) -> None:
    addresses = ["https://host/one", "s3://bucket/two", "pipe:cat /set/{}"]
    remember(["data/shards", *addresses])
    remember([*addresses, "gs://bucket/four"])
    assert all(map(is_known, [*addresses, "gs://bucket/four"]))
    assert len(known.read_text().splitlines()) == 4
    assert not is_known("https://host/one/")
    assert not is_known("pipe:cat /set/{} -")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_trusted(known: Path) -> None:
    remember([ADDRESS])
    os.chown(known, 65534, -1)
    assert not is_known(ADDRESS)


def test_a_link_is_not_trusted(known: Path) -> None:
    remember([ADDRESS])
    known.rename(known.with_name("elsewhere"))
    known.symlink_to(known.with_name("elsewhere"))
    assert not is_known(ADDRESS)


def test_a_home_that_takes_no_note_is_no_error(known: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="petseg.data.consent")
    known.parent.write_text("a file in the place of the folder")
    remember([ADDRESS])
    assert not is_known(ADDRESS)
    (message,) = caplog.messages
    assert message.startswith("known_shards cannot be noted as known: [Errno ")


def test_what_is_known_lies_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME")
    remember([ADDRESS])
    assert (tmp_path / ".local" / "state" / "petseg" / FILE_NAME).is_file()


def test_a_refusal_says_what_would_be_done_and_every_way_out(known: Path) -> None:
    with pytest.raises(ValueError, match="which") as error:
        require_known("pipe:cat /set/{}", "run/config.json", "name them by --shards, or ")
    assert str(error.value) == (
        "run/config.json names the shards pipe:cat /set/{}, which is not run, for the file could be a stranger's: "
        "name them by --shards, or add --allow-pipe if you trust it"
    )


def test_a_damaged_line_makes_no_other_one_unknown(known: Path) -> None:
    remember([ADDRESS])
    known.write_bytes(b"\xff\xfe not a line of ours\n" + known.read_bytes())
    assert is_known(ADDRESS) is True
    assert is_known("https://host/other") is False
