"""Where wandb's own client sends to, and whether it has a key: by its rules, which are its versions'."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.wandb_sync.login import Login, find_login
from tests.wandb_server import KEY


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A home without settings and keys."""
    import os

    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    kept |= {"HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}
    kept.pop("NETRC", None)
    return kept


def test_the_client_has_the_private_names_that_are_used(environ: dict[str, str]) -> None:
    """The names are private ones: where this fails, jobs.wandb_sync.login has to learn those of the new wandb."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import urls, wbauth

    assert callable(wbauth.authenticate_session)
    assert callable(wandb_setup.singleton)
    found = find_login(environ)
    assert found == Login(urls.DEFAULT_BASE_URL, has_credentials=False, is_default_server=True)
    assert found.missing == f"no key for {urls.DEFAULT_BASE_URL[8:]}, neither in .netrc nor in WANDB_API_KEY"
    assert found.advice == "wandb login"


@pytest.mark.parametrize("where", ["~/.netrc", "$NETRC", "WANDB_API_KEY", "settings"])
def test_a_key_is_found_in_each_source_of_the_client(environ: dict[str, str], tmp_path: Path, where: str) -> None:
    entry = f"machine wandb.lab:8443\n  login user\n  password {KEY}\n"
    environ["WANDB_BASE_URL"] = "https://wandb.lab:8443/"
    if where == "WANDB_API_KEY":
        environ[where] = KEY
    elif where == "settings":  # as `wandb login --host` leaves it, and a key beside
        del environ["WANDB_BASE_URL"]
        (tmp_path / ".config" / "wandb").mkdir(parents=True)
        settings = f"[default]\nbase_url = https://wandb.lab:8443\napi_key = {KEY}\n"
        (tmp_path / ".config" / "wandb" / "settings").write_text(settings)
    else:
        path = tmp_path / (".netrc" if where == "~/.netrc" else "elsewhere")
        path.write_text(entry)
        environ |= {"NETRC": str(path)} if where == "$NETRC" else {}
    found = find_login(environ)
    assert found == Login("https://wandb.lab:8443", has_credentials=True, is_default_server=False)
    assert KEY not in repr(found)


def test_the_server_of_wandb_login_is_used(environ: dict[str, str], tmp_path: Path) -> None:
    environ["WANDB_CONFIG_DIR"] = str(tmp_path)
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.lab:8443\n")
    (tmp_path / ".netrc").write_text(f"machine wandb.lab login me password {KEY}\n")
    found = find_login(environ)
    assert (found.url, found.has_credentials) == ("https://wandb.lab:8443", False)
    assert found.hint == f"the entry for wandb.lab in {tmp_path / '.netrc'} lacks the port, 8443"
    assert found.advice == "wandb login --host https://wandb.lab:8443"


def test_messages_do_not_contain_the_key(environ: dict[str, str], tmp_path: Path) -> None:
    environ["WANDB_BASE_URL"] = "file:///etc/passwd"
    with pytest.raises(ValueError, match="WANDB_BASE_URL = file:///etc/passwd is no http"):
        find_login(environ)
    environ["WANDB_BASE_URL"] = "http://me:hidden@wandb.lab:8443"
    found = find_login(environ)
    assert "no key for wandb.lab:8443" in found.missing
    assert "hidden" not in found.missing + found.advice
    (tmp_path / ".netrc").write_text(f"machine {KEY} {KEY}")
    assert find_login(environ).hint == f"{tmp_path / '.netrc'} is not in netrc's form"
    (tmp_path / "settings").write_text("[default\nbase_url")
    environ |= {"WANDB_API_KEY": "short-secret", "WANDB_CONFIG_DIR": str(tmp_path)}
    found = find_login(environ)
    assert (found.has_credentials, "short-secret" in found.missing) == (False, False)
    assert "API key" in found.hint
