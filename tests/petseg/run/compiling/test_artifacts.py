"""Compiled code that jobs share: found again, and never read where another user could have written it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from petseg.run.compiling import artifacts
from petseg.run.compiling.artifacts import SharedArtifacts, first_on_the_node, use_folder
from petseg.run.compiling.forward import why_not_compile

CPU = torch.device("cpu")
COMPILE = """
import sys, torch
from pathlib import Path
from torch._dynamo.utils import counters
from petseg.models.layers import DoubleConv
from petseg.run.compiling.artifacts import SharedArtifacts
from petseg.run.compiling.forward import compile_forward
compiled = compile_forward(DoubleConv(3, 2), {(2, 3, 8, 8)}, sys.argv[1], enabled=False)
compiled.warm_up(SharedArtifacts(("tiny",), torch.device("cpu"), Path(sys.argv[2])))
print(counters["inductor"]["fxgraph_cache_miss"], counters["aot_autograd"]["autograd_cache_hit"])
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedArtifacts:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"code", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda content: content)
    monkeypatch.setenv("PETSEG_COMPILE_CACHE", str(tmp_path / "shared"))
    return SharedArtifacts(("unet", 64), CPU)


def test_what_was_kept_is_found_by_its_key_alone(shared: SharedArtifacts) -> None:
    assert not shared.load()
    shared.save()
    assert shared.load()
    assert not SharedArtifacts(("unet", 32), CPU).load()


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PETSEG_COMPILE_CACHE", raising=False)
    shared = SharedArtifacts((), CPU)
    shared.save()
    assert shared.path is None
    assert not shared.load()


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_may_write_is_refused(
    shared: SharedArtifacts, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    shared.save()
    assert shared.folder is not None
    shared.folder.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert not shared.load()
        shared.save()
    assert len(caplog.records) == 2
    assert all(f"(mode {mode:o}), and code from it is run" in record.getMessage() for record in caplog.records)


def test_a_folder_or_file_of_another_user_is_refused(
    shared: SharedArtifacts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared.save()
    monkeypatch.setattr("petseg.run.compiling.artifacts.os.getuid", lambda: os.geteuid() + 1)
    assert not shared.load()
    assert "is no folder of yours" in caplog.text
    monkeypatch.setattr("petseg.run.compiling.artifacts.require_private", lambda folder: None)
    assert not shared.load()
    assert "is not a file that only you may write" in caplog.text


def test_a_file_that_others_may_write_and_links_are_refused(shared: SharedArtifacts, tmp_path: Path) -> None:
    shared.save()
    assert shared.path is not None
    shared.path.chmod(0o622)
    assert not shared.load()
    shared.path.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o600)
    shared.path.symlink_to(tmp_path / "elsewhere")
    assert not shared.load()


def test_a_linked_folder_is_refused(shared: SharedArtifacts, tmp_path: Path) -> None:
    shared.save()
    assert shared.folder is not None
    shared.folder.rename(tmp_path / "elsewhere")
    shared.folder.symlink_to(tmp_path / "elsewhere")
    assert not shared.load()


def test_a_damaged_file_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared = SharedArtifacts((), CPU, tmp_path)
    tmp_path.chmod(0o700)
    assert shared.path is not None
    shared.path.write_bytes(b"no code")
    shared.path.chmod(0o600)
    assert not shared.load()


def test_torchs_own_folder_in_tmp_gives_way_to_the_private_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch's compiler sets the variable."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    assert use_folder(tmp_path / "ours") == tmp_path / "ours"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "ours")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "theirs"))
    assert use_folder(tmp_path / "ours") == tmp_path / "theirs"
    (tmp_path / "theirs").chmod(0o777)
    with pytest.raises(ValueError, match=r"others may write to .*theirs \(mode 777\)"):
        use_folder(tmp_path / "ours")


def test_the_second_waits_for_the_first_and_later_ones_for_nobody(tmp_path: Path) -> None:
    events: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with first_on_the_node(tmp_path, "key"):
            inside.set()
            leave.wait()
            events.append("first")

    def second() -> None:
        with first_on_the_node(tmp_path, "key"):
            events.append("second")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    inside.wait()
    threads.append(threading.Thread(target=second))
    threads[1].start()
    threads[1].join(timeout=0.3)
    assert events == []
    leave.set()
    for thread in threads:
        thread.join()
    assert events == ["first", "second"]
    with first_on_the_node(tmp_path, "key"), first_on_the_node(tmp_path, "key"):
        pass  # both at once


def test_a_first_that_fails_leaves_the_work_to_the_next(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), first_on_the_node(tmp_path, "key"):
        raise RuntimeError
    assert not list(tmp_path.glob("*.warm"))
    with first_on_the_node(tmp_path, "key"):
        pass
    assert list(tmp_path.glob("*.warm"))


@pytest.mark.slow
@pytest.mark.long
def test_another_node_finds_the_code_that_the_first_compiled(tmp_path: Path) -> None:
    if why := why_not_compile(CPU):
        pytest.skip(why)
    compiled = [compile_on_node(tmp_path, node) for node in ("a", "b")]
    assert compiled[0][0] > 0
    assert compiled[1][0] == 0
    assert compiled[1][1] > 0


def compile_on_node(tmp_path: Path, node: str) -> tuple[int, int]:
    """Cache misses and hits of a process with a node's cache of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path / node), str(tmp_path / "shared")],
        env=environment, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    misses, hits = done.stdout.split()
    return int(misses), int(hits)


def test_what_is_kept_is_for_this_user_alone_and_of_a_possible_size(
    shared: SharedArtifacts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared.save()
    assert shared.path is not None
    assert [path.stat().st_mode & 0o777 for path in (shared.path, shared.path.parent)] == [0o600, 0o700]
    monkeypatch.setattr(artifacts, "MAX_BYTES", 4)
    assert shared.load()
    monkeypatch.setattr(artifacts, "MAX_BYTES", 3)
    assert not shared.load()
    said = f"shared compiled code is not used: {shared.path} has 4 bytes, more than compiled code takes: delete it"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_where_torch_has_nothing_nothing_is_kept_and_an_error_is_told(
    shared: SharedArtifacts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    shared.save()
    assert shared.path is not None
    assert not shared.path.exists()
    assert not caplog.records

    def fail(*_: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", fail)
    shared.save()
    shared.path.write_bytes(b"code")
    shared.path.chmod(0o600)
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", fail)
    assert not shared.load()
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda _: None)
    assert not shared.load()
    said = ["compiled code is not shared: RuntimeError: odd", f"{shared.path} is not used: RuntimeError: odd"]
    assert [record.getMessage() for record in caplog.records] == said


def test_code_is_of_its_parts_the_device_and_the_version_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    cuda = torch.device("cuda")
    keys = [SharedArtifacts(parts, device).key for parts in ((1,), (2,)) for device in (CPU, cuda)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    keys.append(SharedArtifacts((1,), cuda).key)
    monkeypatch.setattr(torch, "__version__", "0.0")
    keys.append(SharedArtifacts((1,), CPU).key)
    assert len(set(keys)) == len(keys) == 6
    assert {len(key) for key in keys} == {20}


def test_a_step_that_no_key_names_is_locked_by_nobody(tmp_path: Path) -> None:
    with first_on_the_node(tmp_path / "new", ""):
        pass
    assert not (tmp_path / "new").exists()
    with first_on_the_node(tmp_path / "new", "key"):
        assert not (tmp_path / "new" / "key.warm").exists()
    assert (tmp_path / "new" / "key.warm").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
