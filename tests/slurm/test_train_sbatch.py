"""slurm/train.sbatch on the rehearsal cluster, and the ready accelerate configurations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from slurm.rehearsal.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "slurm" / "accelerate"

# Stands in for `python`: writes down how each node's launcher was called. In the job's first life it waits for the
# signal to stop and leaves as an interrupted run does; in the second it is done at once.
STAND_IN = """\
#!{python}
import json, os, signal, sys, time
warned = []
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, lambda *_: warned.append(True))
life, node = os.environ.get("SLURM_RESTART_COUNT", "0"), os.environ["SLURM_NODEID"]
path = os.path.join({folder!r}, f"{{life}}-{{node}}")
with open(path + ".part", "w") as file:
    json.dump({{"argv": sys.argv[1:], "use_cpu": os.environ.get("ACCELERATE_USE_CPU")}}, file)
os.rename(path + ".part", path)
while life == "0" and not warned:
    time.sleep(0.05)
sys.exit(75 if warned else 0)
"""

WORLD = """\
import os, sys
import torch
from accelerate import Accelerator
accelerator = Accelerator()
total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]), "sum").item()
path = os.path.join(sys.argv[1], str(accelerator.process_index))
with open(path, "w") as file:
    file.write(f"{accelerator.num_processes} {accelerator.device} {total}")
accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.slurm
def test_two_nodes_with_two_processes_each_and_a_second_attempt(
    rehearsal_cluster, tmp_path: Path, wait_for: Callable[..., None]
):
    stand_in, calls, log = tmp_path / "python", tmp_path / "calls", tmp_path / "log"
    calls.mkdir()
    stand_in.write_text(STAND_IN.format(python=sys.executable, folder=str(calls)))
    stand_in.chmod(0o755)
    variables = {"PYTHON": str(stand_in), "TRAIN_SCRIPT": "slurm/cluster.py", "MY_API_KEY": "k"}
    flags = ["--gpus-per-node=2", "--cpus-per-task=2", "--time=5", f"--output={log}"]
    job = subprocess.run(
        ["sbatch", "--parsable", *flags, "slurm/train.sbatch", "--model.arch", "unet", "--name", "a b"],
        env=rehearsal_cluster.env | variables,
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout.strip()

    wait_for(lambda: {"0-0", "0-1"} <= {path.name for path in calls.iterdir()})
    subprocess.run(["scancel", "--batch", "--signal=USR2", job], env=rehearsal_cluster.env, check=True, timeout=30)
    wait_for(lambda: {"1-0", "1-1"} <= {path.name for path in calls.iterdir()})

    for name in ("0-0", "0-1", "1-0", "1-1"):
        call = json.loads((calls / name).read_text())
        options = dict(zip(call["argv"][2:14:2], call["argv"][3:14:2], strict=True))
        assert options.pop("--main_process_port") == str(10000 + int(job))
        assert options == {
            "--machine_rank": name[-1],
            "--config_file": "slurm/accelerate/two_nodes.yaml",
            "--num_machines": "2",
            "--num_processes": "4",
            "--main_process_ip": rehearsal_cluster.nodes[0],
        }
        assert call["argv"][:2] == ["-m", "accelerate.commands.launch"]
        assert call["argv"][14:] == ["slurm/cluster.py", "--model.arch", "unet", "--name", "a b"]
        assert call["use_cpu"] is None
    assert "warning: a key came along" in log.read_text()
    assert "requeued at its time limit" in log.read_text()


# Stands in for `python` too: the first start of the job is slow to say where its log lies, and then ignores USR2 for a
# while, as the launcher has a training process do that still imports torch.
SLOW_STAND_IN = """\
#!{python}
import os, pathlib, signal, sys, time
folder, life = pathlib.Path({folder!r}), os.environ.get("SLURM_RESTART_COUNT", "0")
if sys.argv[2] == "petseg.run_folder.single_run":
    (folder / f"{{life}}-asked").touch()
    while not (folder / "signalled").exists():
        time.sleep(0.05)
    print(folder)
    sys.exit()
warned = []
if life == "0":
    time.sleep(3)
    signal.signal(signal.SIGUSR2, lambda *_: warned.append(True))
    while not warned:
        time.sleep(0.05)
    sys.exit(75)
(folder / "second").touch()
"""


@pytest.mark.slurm
@pytest.mark.slow
def test_a_run_whose_time_is_up_before_it_listens_is_requeued(
    rehearsal_cluster: Cluster, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(SLOW_STAND_IN.format(python=sys.executable, folder=str(tmp_path)))
    stand_in.chmod(0o755)
    flags = ["--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=5", f"--output={tmp_path / 'log'}"]
    job = subprocess.run(
        ["sbatch", "--parsable", *flags, "slurm/train.sbatch"],
        env=rehearsal_cluster.env | {"PYTHON": str(stand_in)},
        cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=30,
    ).stdout.strip()  # fmt: skip
    wait_for((tmp_path / "0-asked").exists)
    subprocess.run(["scancel", "--batch", "--signal=USR2", job], env=rehearsal_cluster.env, check=True, timeout=30)
    (tmp_path / "signalled").touch()
    wait_for((tmp_path / "second").exists)
    assert "requeued at its time limit" in (tmp_path / "logs" / f"{job}.log").read_text()


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("grace_s", [0, 300])
def test_a_preempted_run_is_requeued_and_a_cancelled_one_is_not(
    preempting_cluster: Cluster, tmp_path: Path, wait_for: Callable[..., None], grace_s: int
) -> None:
    def call(*command: str) -> str:
        env = preempting_cluster.env | {"PYTHON": str(stand_in), "TRAIN_SCRIPT": "slurm/cluster.py"}
        done = subprocess.run(command, env=env, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=30)
        return done.stdout.strip()

    def state(job_id: str) -> str:
        return call("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T")

    stand_in, calls = tmp_path / "python", tmp_path / "calls"
    calls.mkdir()
    stand_in.write_text(STAND_IN.format(python=sys.executable, folder=str(calls)))
    stand_in.chmod(0o755)
    call("scontrol", "update", "partition=low", f"gracetime={grace_s}", "preemptmode=requeue")
    run = ["sbatch", "--parsable", "--partition=low", "--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1"]
    run += ["--time=5", f"--output={tmp_path / 'log'}", "slurm/train.sbatch"]
    preempted = call(*run)
    wait_for(lambda: (calls / "0-0").exists())
    call("sbatch", "--partition=gpu", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: (calls / "1-0").exists())
    wait_for(lambda: state(preempted) == "COMPLETED")
    log = (tmp_path / "log").read_text()
    assert ("requeued because a job of higher priority takes its place" in log) is (grace_s > 0)

    (calls / "0-0").unlink()
    cancelled = call(*run)
    wait_for(lambda: (calls / "0-0").exists())
    call("scancel", "--signal=USR2", "--batch", cancelled)
    call("scancel", cancelled)
    wait_for(lambda: state(cancelled) == "CANCELLED")


@pytest.mark.slurm
def test_without_gpus_it_asks_for_gloo(rehearsal_cluster, tmp_path: Path):
    (tmp_path / "calls").mkdir()
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path / "calls")))
    stand_in.chmod(0o755)
    variables = {"PYTHON": str(stand_in), "TRAIN_SCRIPT": "slurm/cluster.py", "SLURM_RESTART_COUNT": "1"}
    flags = ["--wait", "--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=5"]
    subprocess.run(
        ["timeout", "60", "sbatch", *flags, f"--output={tmp_path / 'log'}", "slurm/train.sbatch"],
        env=rehearsal_cluster.env | variables,
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=90,
    )
    call = json.loads((tmp_path / "calls" / "1-0").read_text())
    assert call["use_cpu"] == "true"
    assert call["argv"][call["argv"].index("--num_processes") + 1] == "1"


@pytest.mark.slurm
@pytest.mark.slow
def test_the_log_lies_in_the_folder_of_the_run(rehearsal_cluster: Cluster, pet_shards: Path, tmp_path: Path) -> None:
    flags = [
        "--wait",
        "--nodes=1",
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        "--time=5",
        f"--output={tmp_path}/%x-%j.log",
    ]
    values = {"data.shards": pet_shards, "data.image-size-px": 64, "data.cache-dir": tmp_path / "cache"}
    values |= {"model.width": 4, "train.epochs": 1, "train.batch-size": 8, "train.mixed-precision": "no"}
    values["out"] = tmp_path / "my run"
    run = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        ["timeout", "300", "sbatch", "--parsable", *flags, "slurm/train.sbatch", *run],
        env=rehearsal_cluster.env | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=330,
    )  # fmt: skip
    job = done.stdout.strip()
    first = (tmp_path / f"petseg-train-{job}.log").read_text()
    log = tmp_path / "my run" / "logs" / f"{job}.log"
    assert first.splitlines()[-1] == f"train.sbatch: the log goes on in {log}"
    assert done.returncode == 0, log.read_text()
    assert "train.sbatch: 1 processes on node1, rendezvous at" in log.read_text()
    assert (tmp_path / "my run" / "result.json").exists()


def test_the_folder_of_a_run_is_told_without_torch(pet_shards: Path, tmp_path: Path) -> None:
    code = "import sys, petseg.run_folder.single_run as s; s.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "--data.shards", str(pet_shards), "--model.arch", "unet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("runs/single/unet-none-")


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("one_gpu", "NO", 1, 1),
        ("eight_gpu", "MULTI_GPU", 1, 8),
        ("two_nodes", "MULTI_GPU", 2, 16),
        ("two_cpu", "MULTI_GPU", 1, 2),
    ],
)
def test_configurations(name: str, kind: str, machines: int, processes: int):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert (config["distributed_type"], config["num_machines"], config["num_processes"]) == (
        kind,
        machines,
        processes,
    )
    assert config["mixed_precision"] == "no"


@pytest.mark.slow
def test_two_cpu_processes_know_of_each_other(tmp_path: Path):
    (tmp_path / "world.py").write_text(WORLD)
    (tmp_path / "ranks").mkdir()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / "two_cpu.yaml"]
    subprocess.run(
        [*command, tmp_path / "world.py", tmp_path / "ranks"],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    ranks = {path.name: path.read_text().split() for path in (tmp_path / "ranks").iterdir()}
    assert {rank: (words[0], words[2]) for rank, words in ranks.items()} == {"0": ("2", "3.0"), "1": ("2", "3.0")}
