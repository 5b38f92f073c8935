"""The doctor on folders, clocks, caches and a wandb server that are not as they should be."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import SoftFileLock

from jobs.checks import folders
from jobs.checks.setup import Command, Finding, Setup

KEY = "canary0123456789canary0123456789canary01"
Doctor = Callable[..., dict[str, Finding]]


# places


def test_a_folder_below_a_file(ask: Doctor, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    finding = ask("folder")["folder"]
    assert finding.status == "FAIL"
    assert "cannot be written: Not a directory" in finding.detail


def test_a_sweep_that_is_larger_than_the_disk(ask: Doctor, tmp_path: Path) -> None:
    finding = ask("folder", "--set", "model.width=65536")["folder"]
    assert finding.status == "FAIL"
    assert "18 trials take up to" in finding.detail
    assert list(tmp_path.glob("**/.doctor-*")) == []


def test_a_file_system_without_locks(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "FileLock", SoftFileLock)  # takes no flock
    assert "two processes hold the same lock" in ask("folder")["folder"].detail


def test_a_clock_that_is_off(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(folders.time, "time", lambda: now() + 60)
    finding = ask("folder")["folder"]
    assert finding.status == "warn"
    assert "-60 s off this host's" in finding.detail


@pytest.mark.parametrize(
    ("needed", "free", "files", "skew_s", "status"),
    [
        (100, 120, 200, 0.0, "ok"),
        (100, 120, 200, 2.0, "ok"),
        (100, 119, 200, 0.0, "warn"),  # a fifth more than is needed
        (100, 120, 199, 0.0, "warn"),  # a hundred files for each of two trials
        (100, 100, 200, 0.0, "warn"),
        (101, 100, 200, 0.0, "FAIL"),
        (100, 120, 200, 2.5, "warn"),
        (100, 120, 200, -2.5, "warn"),
    ],
)
def test_room_in_the_folder_of_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, free: int, files: int, skew_s: float, status: str
) -> None:
    monkeypatch.setattr(folders, "_rename_problem", lambda folder: "")
    monkeypatch.setattr(folders, "_lock_problem", lambda folder: "")
    monkeypatch.setattr(folders, "_clock_skew_s", lambda folder: skew_s)
    monkeypatch.setattr(folders, "_needed_bytes", lambda setup: needed)
    monkeypatch.setattr(folders, "_free_files", lambda folder: files)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    setup = Setup(Command(name="lab", runs_dir=tmp_path), tmp_path)
    setup.cells = [object(), object()]  # type: ignore[list-item]
    assert folders.check_folder(setup).status == status


def test_the_cache_itself_is_written_to(ask: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another folder of the same disk can be writable where the cache is not."""
    written: list[Path] = []
    monkeypatch.setattr(folders, "_write", lambda path, content: written.append(path))
    ask("cache", "--set", f"data.cache_dir={tmp_path / 'cache'}")
    assert [path.parents[1] for path in written] == [tmp_path / "cache"]


@pytest.mark.parametrize(
    ("cache", "gb", "status", "detail"),
    [
        ("node", "0.0001", "FAIL", "0.000984 GB decoded, room for 0.0001 GB"),
        ("auto", "0.0001", "warn", "every epoch decodes anew"),
        ("auto", "1", "ok", "node, 0.00 GB decoded"),
    ],
)
def test_room_in_the_cache(ask: Doctor, cache: str, gb: str, status: str, detail: str) -> None:
    finding = ask("cache", "--set", f"data.cache={cache}", "--set", f"data.cache_gb={gb}")["cache"]
    assert finding.status == status
    assert detail in finding.detail


def test_a_cache_that_others_can_write_to(ask: Doctor, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    finding = ask("cache")["cache"]
    assert finding.status == "FAIL"
    assert "others may write to the cache folder" in finding.detail


# wandb


class NothingHere(http.server.BaseHTTPRequestHandler):
    """Answers, which is enough."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Something on loopback that answers, and a home without keys."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NothingHere) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        for name in ("WANDB_API_KEY", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"WANDB_BASE_URL": url, "NETRC": str(tmp_path / "netrc")}.items():
            monkeypatch.setenv(name, value)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield url
        server.shutdown()
        thread.join()


ONLINE = ("--set", "tracking.wandb=online")


@pytest.mark.slow
def test_wandb_online_needs_a_key_that_jobs_have(
    ask: Doctor, wandb_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "FAIL"
    assert "no key for 127.0.0.1" in finding.detail
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "warn"
    assert "keys in the environment are not passed to jobs" in finding.detail
    assert ask("wandb", *ONLINE, "--cluster", "local")["wandb"].status == "ok"
    (tmp_path / "netrc").write_text(f"machine {wandb_server.removeprefix('http://')}\n  login me\n  password {KEY}\n")
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "ok"
    assert KEY not in str(finding)
    monkeypatch.delenv("WANDB_API_KEY")
    assert ask("wandb", *ONLINE)["wandb"].status == "ok"
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 secret {KEY}\n")
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "FAIL"
    assert "is not in netrc's form" in finding.detail
    assert KEY not in str(finding)


def test_wandb_that_does_not_answer(ask: Doctor, wandb_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "FAIL"
    assert "Connection refused" in finding.detail
    monkeypatch.setenv("WANDB_BASE_URL", "file:///etc/passwd")
    assert "no http(s) address" in ask("wandb", *ONLINE)["wandb"].detail
