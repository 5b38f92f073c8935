"""What tests of several rooms share: real pictures, a shard set of drawn pets, and a private real Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from shards.pack import PackConfig, pack
from slurm import patience
from slurm.rehearsal import accounting as rehearsal_accounting
from slurm.rehearsal import client
from slurm.rehearsal.cluster import APT_COMMAND, Cluster, missing_binaries, rehearse
from slurm.rehearsal.settings import Site

REPOSITORY = Path(__file__).parents[1]

# a busy machine is no failed law
settings.register_profile("petseg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("petseg")

# stand-ins that fail do so for good
patience.PATIENCE_S = 3.0

# Threads that wait for torch's next operation sleep. By default they spin, which costs several times as much as the
# work itself where workers share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# workers of pytest-xdist ignore Ctrl-C, and so do commands started by whoever ignores it
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # once markers have deselected some
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each worker begins with its share of the long tests: pytest-xdist gives one run of the list to each."""
    workers = getattr(config, "workerinput", {"workercount": 1})["workercount"]
    long = [item for item in items if item.get_closest_marker("long")]
    others = [item for item in items if not item.get_closest_marker("long")]
    ends = [len(others) * number // workers for number in range(workers + 1)]
    items[:] = [item for n in range(workers) for item in [*long[n::workers], *others[ends[n] : ends[n + 1]]]]


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user is asked once and for all is noted elsewhere than in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Back to one thread: a sweep in the test's own process (--cluster debug) leaves torch with all cores."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pet_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawn pets at 64 px: 27 train, 3 val, 30 test; leave them as they are."""
    out = tmp_path_factory.mktemp("pets") / "shards"
    pack(PackConfig(out=out, synthetic=60, seed=3, image_size_px=64, samples_per_shard=16, workers=1))
    return out


@pytest.fixture(scope="session")
def pets_root() -> Path:
    """Real pictures; see CONTRIBUTING for where they come from."""
    root = Path(os.environ.get("PETSEG_PETS_ROOT", REPOSITORY.parent / "shared" / "data" / "pets"))
    if not (root / "annotations" / "trainval.txt").is_file():
        reason = f"no real pictures in {root}: set PETSEG_PETS_ROOT"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return root


def require_slurm() -> None:
    missing = missing_binaries()
    if not missing:
        return
    message = f"no {', '.join(missing)}: {APT_COMMAND}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def slurm_daemons() -> None:
    """Skip the test where Slurm is not installed; on CI that is a failure."""
    require_slurm()


@pytest.fixture(scope="session")
def rehearsal_cluster(slurm_daemons: None) -> Iterator[Cluster]:
    """Two nodes of 4 CPUs and 2 make-believe GPUs."""
    with rehearse(Site(nodes=2, cpus=4, gpus=2)) as cluster:
        yield cluster


@pytest.fixture
def on_cluster(rehearsal_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """This process's own Slurm commands talk to the rehearsal cluster."""
    for name, value in rehearsal_cluster.env.items():
        monkeypatch.setenv(name, value)
    return rehearsal_cluster


@pytest.fixture(scope="session")
def preempting_cluster(slurm_daemons: None) -> Iterator[Cluster]:
    """One node whose partition low gives way; its jobs get TERM, as is Slurm's default, not their --signal."""
    with rehearse(Site(nodes=1, cpus=2, gpus=0, conf={"SlurmctldParameters": "enable_user_top"})) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounting(slurm_daemons: None) -> None:
    """Skip the test where slurmdbd and MariaDB are not installed; on CI that is a failure."""
    try:
        rehearsal_accounting.require_installed()
    except ValueError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def limiting_cluster(accounting: None) -> Iterator[Cluster]:
    """A node and accounting whose limits are enforced."""
    conf = {"AccountingStorageEnforce": "limits"}
    with rehearse(Site(nodes=1, cpus=4, gpus=0, accounting=True, conf=conf)) as cluster:
        yield cluster


@pytest.fixture
def set_limit(limiting_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """set_limit("user", "root", MaxSubmitJobs=5): an administrator's word to sacctmgr, lifted at the end.

    This process's own Slurm commands talk to the cluster; its partition is down, so that jobs wait.
    """
    for name, value in limiting_cluster.env.items():
        monkeypatch.setenv(name, value)
    client.order(limiting_cluster.root, ["scontrol", "update", "PartitionName=gpu", "State=DOWN"])
    lifted: dict[tuple[str, str, str], int] = {}

    def change(kind: str, name: str, **limits: int) -> None:
        lifted.update({(kind, name, limit): -1 for limit in limits})
        words = [f"{limit}={value}" for limit, value in limits.items()]
        client.order(limiting_cluster.root, ["sacctmgr", "-i", "modify", kind, name, "set", *words])

    yield change
    client.order(limiting_cluster.root, ["scancel", "--me"])
    for (kind, name, limit), none in list(lifted.items()):
        change(kind, name, **{limit: none})


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], object]], None]:
    """Poll until the condition holds; three minutes are a failure, which a busy machine needs."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 180
        while not condition():
            assert time.monotonic() < deadline, "it did not happen within three minutes"
            time.sleep(0.05)

    return wait


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are synced to the disk, in order; without this, a power cut can leave a file of zeros."""
    names: list[str] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        names.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    return names


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
