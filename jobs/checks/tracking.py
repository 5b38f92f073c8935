"""Check of wandb, where a sweep sends there: a key that the jobs will have, and a server that answers."""

from __future__ import annotations

import configparser
import netrc
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from jobs.checks.setup import Finding, Setup

DEFAULT_URL = "https://api.wandb.ai"
TIMEOUT_S = 5.0
KEY_NAME = "WANDB_API_KEY"
TRAINS_ON = "training goes on without wandb in any case"


def check_wandb(setup: Setup) -> Finding:
    """Offline and disabled need nothing; online needs a key and a server. No key is ever printed."""
    what, mode = "wandb", setup.config.tracking.wandb
    if mode != "online":
        return Finding("ok", what, f"tracking.wandb = {mode}: nothing is sent")
    url = base_url()
    host = urlsplit(url).hostname or ""
    if urlsplit(url).scheme not in ("http", "https") or not host:
        return Finding("FAIL", what, f"WANDB_BASE_URL = {url} is no http(s) address", f"such as {DEFAULT_URL}")
    in_netrc, in_environment = has_netrc_key(host), bool(os.environ.get(KEY_NAME))
    if not in_netrc and not in_environment:
        return Finding("FAIL", what, f"no key for {host}, neither in ~/.netrc nor in {KEY_NAME}", "wandb login")
    if problem := unreachable(url):
        advice = f"set --set tracking.wandb=offline and `python jobs/sync.py SWEEP` later; {TRAINS_ON}"
        return Finding("FAIL", what, f"{url} does not answer: {problem}", advice)
    if in_environment and not in_netrc and setup.command.cluster == "slurm":
        detail = f"{url} answers; the key is in {KEY_NAME} only, and keys in the environment are not passed to jobs"
        return Finding("warn", what, detail, "`wandb login` writes it to ~/.netrc, which the nodes must see")
    where = "~/.netrc" if in_netrc else KEY_NAME
    return Finding("ok", what, f"{url} answers from this host, a key is in {where} (not tried)")


def base_url() -> str:
    """$WANDB_BASE_URL, or what `wandb login --host` kept, or wandb's own cloud."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url.rstrip("/")
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(folder / "settings")
        return settings.get("default", "base_url", fallback=DEFAULT_URL).rstrip("/")
    except configparser.Error:
        return DEFAULT_URL


def has_netrc_key(host: str) -> bool:
    """Whether ~/.netrc ($NETRC) has a password for the host."""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        found = netrc.netrc(path).authenticators(host)
    except FileNotFoundError:
        return False
    except (OSError, netrc.NetrcParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not in netrc's form"  # may quote the key
        raise ValueError(f"{path} cannot be read: {reason}") from None
    return bool(found and found[2])


def unreachable(url: str) -> str:
    """Why nothing answers there, through the proxy that the environment names, if any; empty if something does."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S):  # noqa: S310 - http(s) only, checked by the caller
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return "" if error.code < 500 else f"HTTP {error.code}"
    except OSError as error:  # URLError and timeouts among them
        return str(getattr(error, "reason", error))
