"""The wandb server that the client would use, and whether it has credentials for it, according to the client itself.

The rules belong to wandb and change between versions: address and key can come from the environment, from settings
files and from .netrc, whose entries are for a host and port. jobs.wandb_sync.call runs this module as a subprocess,
because the import takes a while and the client prints lines of .netrc that it cannot parse. No key leaves that process.
"""

from __future__ import annotations

import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.wandb_sync.call import answer, ask
from shards.command import without_secrets

KEY_NAME = "WANDB_API_KEY"
URL_NAME = "WANDB_BASE_URL"
TIMEOUT_S, SERVER_TIMEOUT_S = 60.0, 5.0  # of the client, which has to be imported; of a server


@dataclass(frozen=True)
class Login:
    """The login of wandb's client."""

    url: str  # of the server
    has_credentials: bool
    is_default_server: bool
    hint: str = ""  # why there are no credentials, if known

    @property
    def missing(self) -> str:
        """The problem of a login without credentials, in a line."""
        address = urlsplit(without_secrets(self.url))
        problem = f"no key for {address.netloc.rpartition('@')[2]}, neither in .netrc nor in {KEY_NAME}"
        return f"{problem} ({self.hint})" if self.hint else problem

    @property
    def advice(self) -> str:
        """The command that stores a key where jobs find it."""
        return "wandb login" if self.is_default_server else f"wandb login --host {without_secrets(self.url)}"


def find_login(environ: Mapping[str, str] | None = None) -> Login:
    """Ask wandb's client in an environment, by default that of this process; nothing is sent over the network.

    Raises ValueError, without any key in it, for an invalid address, or if the client fails.
    """
    given = os.environ if environ is None else environ
    url = given.get(URL_NAME, "")
    if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        raise ValueError(f"{URL_NAME} = {without_secrets(url)} is no http(s) address: such as https://api.wandb.ai")
    answered = ask("jobs.wandb_sync.login", {}, TIMEOUT_S, given)
    if "error" in answered:
        text = " ".join(answered["text"].split())
        raise ValueError(f"wandb's client does not say where it sends to ({answered['error']}: {text})")
    return Login(**answered)


def require_wandb() -> str:
    """wandb's address; raises ValueError, without any key in it, if there is no key or nothing answers."""
    login = find_login()
    if not login.has_credentials:
        raise ValueError(f"{login.missing}: type `{login.advice}`")
    if problem := unreachable(login.url):
        shown = without_secrets(login.url)
        raise ValueError(f"{shown} does not answer ({problem}): try again from where there is a network")
    return login.url


def unreachable(url: str) -> str:
    """Why the address does not answer, through the proxy of the environment if there is one; "" if it does."""
    try:
        with urllib.request.urlopen(url, timeout=SERVER_TIMEOUT_S):  # noqa: S310 - http(s) only, checked by the caller
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return "" if error.code < 500 else f"HTTP {error.code}"
    except OSError as error:  # URLError and timeouts among them
        return str(getattr(error, "reason", error))


def handle(_: Mapping[str, Any]) -> dict[str, Any]:
    from wandb.errors import AuthenticationError
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import urls, wbauth

    url = str(wandb_setup.singleton().settings.base_url).rstrip("/")
    hint = ""
    try:
        session = wbauth.authenticate_session(host=url, source="petseg", prompt=False, update_session=False)
    except AuthenticationError as error:  # a key of the wrong form
        session, hint = None, without_secrets(str(error))
    hint = "" if session else hint or netrc_hint(url)
    return asdict(Login(url, bool(session), url == urls.DEFAULT_BASE_URL, hint))


def netrc_hint(url: str) -> str:
    """A reason in .netrc why the client finds no key there, without quoting a file that cannot be parsed."""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        hosts = netrc.netrc(path).hosts
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except netrc.NetrcParseError:
        return f"{path} is not in netrc's form"
    address = urlsplit(url)
    if address.port and address.hostname in hosts:
        return f"the entry for {address.hostname} in {path} lacks the port, {address.port}"
    return ""


if __name__ == "__main__":
    answer(handle)
