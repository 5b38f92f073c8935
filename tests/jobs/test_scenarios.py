"""The scenarios of docs/recovery.md that no other test proves, and that each row there names tests that exist."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from jobs import vitals
from jobs.log_files import fatal_traceback
from jobs.standing import standings
from jobs.sweep import main
from jobs.triage import Evidence, judge
from jobs.trial import Submission, Sweep, load_sweep
from petseg.checkpoint import list_checkpoints, newest_loadable
from petseg.config import RunConfig
from petseg.config_values import with_values
from petseg.data import tars as tars_module
from petseg.lives import read_lives, require_newest
from petseg.run_folder import read_metrics
from petseg.train import train
from shards.command import INTERRUPTED, Failure, Interrupted, run_command
from shards.manifest import load_manifest
from slurm.rehearsal import rehearse
from tests.jobs.faulty_checkout import REPOSITORY, copy_with_fault, finish, start, wait_until

RECOVERY = REPOSITORY / "docs" / "recovery.md"
RECORDING = REPOSITORY / "tests" / "petseg" / "recording_train.py"
LOCAL = ["--cluster", "local", "--axis", "model.arch=unet", "--set", "train.log_every=1"]
PAIR = [*LOCAL, "--gpus", "0", "--tasks-per-node", "2"]
CALM = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}


def test_each_row_names_tests_that_exist() -> None:
    text = RECOVERY.read_text()
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 25))
    for number, row in rows:
        cells = [cell.strip() for cell in row.split(" | ")]
        assert len(cells) == 4, number
        assert all(cells), number
        assert re.search(r"`tests/\S+::\w+`", cells[-1]) or "cannot be rehearsed" in cells[-1], number
    named = set(re.findall(r"`(tests/[^`]+)`", text))
    for name in named:
        path, _, test = name.partition("::")
        assert re.search(rf"^def {test}\(", (REPOSITORY / path).read_text(), re.MULTILINE), name


# --- what the tests stand on


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Small tensors are quickest, and sums come out the same, with one thread."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny(pet_shards: Path, tmp_path: Path) -> RunConfig:
    values = {
        "data.shards": str(pet_shards), "data.image_size_px": 64, "data.threads": 1, "data.cache": "none",
        "data.cache_dir": str(tmp_path / "cache"), "model.width": 4, "train.epochs": 2, "train.batch_size": 8,
        "train.log_every": 1, "train.test": False, "tracking.overlays": 0,
    }  # fmt: skip
    return with_values(RunConfig(), values)


def record(shards: Path, folder: Path, stop: str = "", ranks: int = 1, **flags: object) -> subprocess.Popen[str]:
    """`petseg/train.py` on its own, which sends itself a signal at SIGNAL:RANK:EPOCH:STEP."""
    command = [sys.executable, str(RECORDING)]
    if ranks > 1:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", "slurm/accelerate/two_cpu.yaml"]
        command = [sys.executable, *launcher, "--num_processes", str(ranks), str(RECORDING)]
    values = {
        "data.shards": shards, "data.image-size-px": 64, "data.threads": 1, "data.cache-dir": folder / "cache",
        "model.width": 4, "train.batch-size": 8, "train.epochs": 2, "train.log-every": 1, "tracking.overlays": 0,
        "out": folder / "run", **flags,
    }  # fmt: skip
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(
        [*command, *words, "--train.no-test"], cwd=REPOSITORY, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, env={**os.environ, **CALM, "RECORD_TO": str(folder), "STOP": stop},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    code, _, log = finish(process)
    return code, log


def launcher(checkout: Path, flags: list[str]) -> subprocess.Popen[str]:
    return start(checkout, "sweep", *flags)


def sweep_of(tmp_path: Path) -> Sweep:
    return load_sweep(tmp_path / "runs" / "lab")


def rows_of(folder: Path) -> list[dict[str, float]]:
    """Without clocks."""
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(folder)]


# --- 1: a node


@pytest.mark.slurm
@pytest.mark.slow
def test_a_node_that_dies_in_an_epoch(
    tiny_sweep: list[str], tmp_path: Path, slurm_daemons: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm starts the job again, which goes on from what was saved."""
    flags = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "2", "--timeout-min", "20"]
    flags += ["--axis", "model.arch=unet", "--set", "train.epochs=30", "--set", "train.save_every_min=0.001"]
    with rehearse(nodes=2, cpus=2, gpus=0) as cluster:
        for name, value in {**cluster.env, "OMP_NUM_THREADS": "1"}.items():
            monkeypatch.setenv(name, value)
        assert run_command(main, [*tiny_sweep, *flags, "--set", "train.log_every=1"]) == 0
        (trial,) = sweep_of(tmp_path).trials
        wait_until(lambda: len(trial.metrics()) >= 3)
        job = sweep_of(tmp_path).submissions()[trial.id]
        cluster.break_node(node_of(job))
        wait_until(lambda: trial.result())
    first, second = read_lives(trial.folder)
    assert (first.first_step, first.job_id) == (0, second.job_id)
    assert second.first_step >= 2 * 2  # the third row is written before its checkpoint
    assert trial.state()["restarts"] == 1
    assert [row["epoch"] for row in trial.metrics()] == list(range(1, 31))
    assert [row["data/coverage"] for row in trial.metrics()] == [1.0] * 30


def node_of(job: Submission) -> str:
    command = ["squeue", "--noheader", "--jobs", job.job_id, "--format=%N"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


# --- 3: no grace


@pytest.mark.slow
def test_a_kill_without_warning_costs_one_interval(pet_shards: Path, tmp_path: Path) -> None:
    """Saved after every step, killed in the third: it goes on after the second, and ends like an undisturbed run."""
    folders = {name: tmp_path / name for name in ("killed", "calm")}
    for folder in folders.values():
        folder.mkdir()
    often = {"train.save-every-min": 1e-9}
    code, _ = ended(record(pet_shards, folders["killed"], "SIGKILL:0:1:2", **often))
    assert code == -signal.SIGKILL
    code, log = ended(record(pet_shards, folders["killed"], **often))
    assert code == 0, log
    assert "after epoch 0 of 2 and 2 steps" in log
    assert ended(record(pet_shards, folders["calm"]))[0] == 0
    assert rows_of(folders["killed"] / "run") == rows_of(folders["calm"] / "run")


# --- 5, 6: a signal before training


SIGNAL_ONCE = """\
import os as _os, signal as _signal
from pathlib import Path as _Path
if not _Path({marker!r}).exists():
    _Path({marker!r}).touch()
    _os.kill(_os.getpid(), _signal.SIG{name})
"""
SIGNAL_RANK_1 = """\
    from pathlib import Path
    if environment.global_rank == 1 and not Path({marker!r}).exists():
        import signal
        Path({marker!r}).touch()
        os.kill(os.getpid(), signal.SIG{name})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["USR2", "TERM"])
def test_a_signal_while_torch_is_imported(tiny_sweep: list[str], tmp_path: Path, name: str) -> None:
    """Ahead of the time limit the job comes back by itself; after TERM the same command goes on."""
    fault = SIGNAL_ONCE.format(marker=str(tmp_path / "sent"), name=name)
    copy = copy_with_fault(tmp_path / "checkout", "petseg/train.py", "import ", fault)
    code, log = ended(launcher(copy, [*tiny_sweep, *LOCAL]))
    (trial,) = sweep_of(tmp_path).trials
    if name == "TERM":
        assert code == 3, log
        assert trial.state()["status"] == "interrupted"
        assert [row.status for row in standings(sweep_of(tmp_path))] == ["interrupted"]
        code, log = ended(launcher(copy, [*tiny_sweep, *LOCAL]))
    assert code == 0, log
    assert [life.first_step for life in read_lives(trial.folder)] == [0, 1]
    assert trial.result() is not None


@pytest.mark.slow
def test_a_signal_that_one_rank_gets_before_the_ranks_meet(tiny_sweep: list[str], tmp_path: Path) -> None:
    """Were it to leave, the others would wait for it: they stop together at the first step's boundary."""
    fault = SIGNAL_RANK_1.format(marker=str(tmp_path / "sent"), name="USR2")
    copy = copy_with_fault(tmp_path / "checkout", "jobs/rendezvous.py", "    if environment.num_tasks == 1", fault)
    code, log = ended(launcher(copy, [*tiny_sweep, *PAIR]))
    assert code == 0, log
    (trial,) = sweep_of(tmp_path).trials
    assert [life.first_step for life in read_lives(trial.folder)] == [0, 1]
    assert (tmp_path / "sent").exists()


# --- 8, 9: disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes; called again, it has as many as it is told then."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(num_bytes: int) -> Path:
        options = f"{'remount,' if folder.is_mount() else ''}size={num_bytes}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            message = f"a small disk cannot be mounted: {done.stderr.strip()}"
            if os.environ.get("CI") == "true" and os.geteuid() == 0:
                pytest.fail(message)
            pytest.skip(message)
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], timeout=30, check=True)


def num_bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(
    tiny: RunConfig, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """No epoch is trained again that was saved, and the numbers are those of a run that had room."""
    calm = train(tiny, tmp_path / "calm")
    size = num_bytes_of(list_checkpoints(tmp_path / "calm" / "checkpoints")[-1].folder)
    run = small_disk(int(1.6 * size)) / "run"
    with pytest.raises(OSError, match=r"does not fit into .*: make room, and run the same command to go on") as error:
        train(tiny, run)
    assert error.value.errno == errno.ENOSPC
    newest = newest_loadable(run / "checkpoints")
    assert newest is not None
    assert newest.state["epoch"] == 1
    small_disk(10 * size)
    assert train(tiny, run).metrics == calm.metrics
    assert rows_of(run) == rows_of(tmp_path / "calm")
    assert read_lives(run)[1].first_step == newest.step


BROKEN_DISK = Path("/proc/self/mem")  # the kernel answers EIO where nothing is mapped, as for a bad sector

needs_broken_disk = pytest.mark.skipif(not BROKEN_DISK.exists(), reason="needs Linux's /proc")


@needs_broken_disk
def test_a_shard_that_the_disk_cannot_read_stops_training(
    tiny: RunConfig, pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars_module, "RETRY_AFTER_S", (0.0, 0.0, 0.0))
    broken = Path(shutil.copytree(pet_shards, tmp_path / "broken"))
    name = load_manifest(broken).of_split("train")[1].name
    (broken / name).unlink()
    (broken / name).symlink_to(BROKEN_DISK)
    with pytest.raises(Failure, match=r"samples of split train cannot be read") as error:
        train(with_values(tiny, {"data.shards": str(broken)}), tmp_path / "run")
    assert f"of {name}: " in str(error.value)
    assert "Input/output error" in str(error.value)


@needs_broken_disk
def test_a_checkpoint_that_the_disk_cannot_read_is_set_aside(
    tiny: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on from the one before it."""
    calm = train(tiny, tmp_path / "run")
    before, newest = list_checkpoints(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "result.json").unlink()
    (newest.folder / "model.safetensors").unlink()
    (newest.folder / "model.safetensors").symlink_to(BROKEN_DISK)
    assert train(tiny, tmp_path / "run").metrics == calm.metrics
    assert "the disk cannot read it" in caplog.text
    assert f"is set aside as unusable-{newest.folder.name}" in caplog.text
    assert read_lives(tmp_path / "run")[-1].first_step == before.step


# --- 12: a rank without memory (tests/jobs/test_retry.py has it on a cluster)


RANK_1 = """\
submitit ERROR (2026-03-01 09:40:00,637) - Submitted job triggered an exception
[rank1]: Traceback (most recent call last):
[rank1]:   File "/home/me/runs/lab/code/0123abcd/petseg/train.py", line 241, in train_step
[rank1]:     logits = run.model(image)
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
[rank1]:[W1124 11:33:48.802979781 ProcessGroupNCCL.cpp:1529] Warning: destroy_process_group() was not called
"""
RANK_0 = """\
submitit ERROR (2026-03-01 09:40:01,001) - Submitted job triggered an exception
[rank0]: Traceback (most recent call last):
[rank0]:   File "/home/me/runs/lab/code/0123abcd/petseg/train.py", line 241, in train_step
[rank0]:     logits = run.model(image)
[rank0]: RuntimeError: [/pytorch/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:42173.
slurmstepd-node1: error: *** STEP 1.0 ON node1 CANCELLED AT 2026-03-01T09:40:02 ***
"""


def test_tracebacks_that_torch_marks_with_their_rank() -> None:
    """With several processes it prints `[rank1]: ` before each line."""
    lost, full = fatal_traceback(RANK_0), fatal_traceback(RANK_1)
    assert full is not None
    assert full.error == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert full.frame == "petseg/train.py:241 in train_step"
    assert lost is not None
    assert lost.error.endswith("Connection closed by peer [127.0.0.1]:42173.")
    evidence = Evidence(said="failed", error=lost.error, host="node1", logs=(RANK_0, RANK_1))
    assert judge(evidence).cause == "gpu_memory"


# --- 13 to 15: ranks that stand still, and numbers that are none


@pytest.mark.slow
def test_a_rank_that_stands_still_is_shown_as_stalled_and_changes_no_number(
    tiny_sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "FEWEST_S", 1.0)
    monkeypatch.setattr(vitals, "EPOCHS_OF_SILENCE", 0)
    monkeypatch.setattr(vitals, "UNKNOWN_PACE_S", 1e9)
    flags = [*tiny_sweep, *PAIR, "--set", "train.epochs=4"]
    process = launcher(REPOSITORY, flags)
    try:
        wait_until(lambda: (tmp_path / "runs/lab/sweep.json").exists() and len(sweep_of(tmp_path).trials) == 1)
        (trial,) = sweep_of(tmp_path).trials
        wait_until(lambda: trial.metrics())
        rank = rank_1(tmp_path / "runs" / "lab" / "logs")
        os.kill(rank, signal.SIGSTOP)
        wait_until(lambda: [row.status for row in standings(sweep_of(tmp_path))] == ["stalled"])
        os.kill(rank, signal.SIGCONT)
    finally:
        code, log = ended(process)
    assert code == 0, log
    assert len(read_lives(trial.folder)) == 1
    assert ended(launcher(REPOSITORY, [*flags, "--name", "calm"]))[0] == 0
    (calm,) = load_sweep(tmp_path / "runs" / "calm").trials
    assert rows_of(trial.folder) == rows_of(calm.folder)


def rank_1(logs: Path) -> int:
    """The pid of the second process of the one job that logs there."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" not in words or os.fsencode(logs) not in words:
                continue
            if b"SUBMITIT_LOCAL_GLOBALID=1" in (process / "environ").read_bytes().split(b"\0"):
                return int(process.name)
    raise AssertionError("there is no second rank")


@pytest.mark.slow
def test_all_ranks_stop_together_at_a_loss_that_is_not_finite(pet_shards: Path, tmp_path: Path) -> None:
    code, log = ended(record(pet_shards, tmp_path, ranks=2, **{"optim.lr": 1e30, "world-size": 2}))
    assert code != 0
    failures = [line for line in log.splitlines() if line.startswith("failed: the loss is not finite")]
    assert len(failures) == 2
    assert failures[0] == failures[1]
    assert json.loads((tmp_path / "run" / "not_finite.json").read_text())["keys_by_step"]


# --- 17: ports


@pytest.mark.slow
def test_jobs_of_several_processes_side_by_side_and_a_taken_port(tiny_sweep: list[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else's is as good
            taken.bind(("127.0.0.1", 29500))  # where torch and accelerate meet by default
            taken.listen()
        flags = [*tiny_sweep, *PAIR, "--axis", "train.seed=0,1", "--max-parallel", "2"]
        code, log = ended(launcher(REPOSITORY, flags))
    assert code == 0, log
    results = [trial.result() for trial in sweep_of(tmp_path).trials]
    assert [result.world_size for result in results if result] == [2, 2]


# --- 20: two copies


@pytest.mark.slow
def test_a_copy_that_comes_back_writes_nothing(pet_shards: Path, tmp_path: Path) -> None:
    """A process stands still, as on a node without network; another one takes the run over and ends it."""
    stopped = record(pet_shards, tmp_path, "SIGSTOP:0:1:1")
    try:
        wait_until(lambda: Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        code, log = ended(record(pet_shards, tmp_path))
        assert code == 0, log
        before = contents(tmp_path / "run")
        stopped.send_signal(signal.SIGCONT)
    finally:
        code, log = ended(stopped)
    assert code == INTERRUPTED, log
    assert "goes on in another process (start 2 on" in log
    assert contents(tmp_path / "run") == before


def contents(folder: Path) -> dict[str, str]:
    """Its files, but for the sign of life that holds no number."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "heartbeat.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- 22, 23: other worlds, other clocks


@pytest.mark.slow
def test_more_processes_than_samples_of_a_batch_are_refused(pet_shards: Path, tmp_path: Path) -> None:
    flags = {"train.batch-size": 2, "train.save-every-min": 1e-9}
    code, _ = ended(record(pet_shards, tmp_path, "SIGTERM:0:1:1", ranks=2, **flags))
    assert code != 0
    saved = contents(tmp_path / "run")
    code, log = ended(record(pet_shards, tmp_path, ranks=3, **flags))
    assert code != 0
    assert "train.batch_size = 2 is the batch of all 3 processes together: it must be at least as large" in log
    assert contents(tmp_path / "run") == saved
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].state["so_far"]["steps"] == 2


def test_no_clock_decides_who_is_newest(tiny: RunConfig, tmp_path: Path) -> None:
    """A node a century ahead trained first, one in 1970 goes on: the numbers of steps and starts decide."""
    calm = train(tiny, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    lives = json.loads((tmp_path / "run" / "lives.json").read_text())
    (tmp_path / "run" / "lives.json").write_text(json.dumps([life | {"time": 4e9} for life in lives]))
    older, newest = list_checkpoints(tmp_path / "run" / "checkpoints")
    for path, when in ((older.folder, 4e9), (newest.folder, 0.0)):
        for file in (*path.iterdir(), path):
            os.utime(file, (when, when))
    assert train(tiny, tmp_path / "run").metrics == calm.metrics
    first, second = read_lives(tmp_path / "run")
    assert (second.number, second.first_step) == (2, newest.step)
    assert second.time < first.time
    with pytest.raises(Interrupted, match="start 2"):
        require_newest(tmp_path / "run", first)
