from __future__ import annotations

from pathlib import Path

import pytest
import tyro

from slurm.request import Request
from slurm.resources import Resources, render_mem, to_submitit


def test_one_process_for_each_gpu():
    assert Resources(nodes=2, gpus_per_node=8).processes == 16
    assert Resources(gpus_per_node=0).processes == 1
    assert Resources(nodes=2, gpus_per_node=0, tasks_per_node=2).processes == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes": 0}, "nodes=0: must be at least 1"),
        ({"gpus_per_node": -1}, "gpus=-1: must be 0"),
        ({"mem_gb": 0}, "mem_gb=0: must be at least 0.001"),
        ({"mem_gb": 0.0001}, "mem_gb=0.0001: must be at least 0.001"),
        ({"mem_gb": float("inf")}, "mem_gb=inf: must be"),
        ({"mem_gb": float("nan")}, "mem_gb=nan: must be"),
        ({"timeout_min": 0}, "timeout_min=0: must be at least 1"),
        ({"timeout_min": 99_999_999}, "timeout_min=99999999: must be at most 527040, a year"),
        ({"timeout_min": 2000, "signal_delay_s": 70_000}, "signal_delay_s=70000: must be at most 65535"),
        ({"nice": -5}, "nice=-5: must be 0 or more"),
        ({"gpus_per_node": 0, "tasks_per_node": 0}, "tasks_per_node=0: must be at least 1"),
        ({"gpus_per_node": 1, "tasks_per_node": 2}, "would share a GPU"),
        ({"timeout_min": 1, "signal_delay_s": 60}, r"signal_delay_s=60: must be from 0 to less than .*60 s"),
        ({"partition": ""}, "partition='': must be one non-empty line"),
        ({"comment": "a\n#SBATCH --uid=0"}, "comment=.*: must be one non-empty line"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Resources(**wrong)


def test_to_submitit_leaves_out_what_is_not_asked():
    parameters = to_submitit(Resources(gpus_per_node=0, mem_gb=1.5, timeout_min=30), name="pets", max_parallel=4)
    assert parameters == {
        "job_name": "pets",
        "time": 30,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 8,
        "mem": "1536MB",
        "signal_delay_s": 120,
        "wckey": None,
        "array_parallelism": 4,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
        "srun_args": ["--cpus-per-task=8", "--kill-on-bad-exit=1"],
    }


def test_a_site_that_forbids_requeuing_is_asked_for_none():
    parameters = to_submitit(Resources(requeue=False, nice=5), name="pets", max_parallel=1)
    assert parameters["additional_parameters"] == {"no-requeue": True, "nice": 5}


def test_memory_is_a_whole_number():
    assert render_mem(32.0) == "32GB"
    assert render_mem(0.5) == "512MB"
    assert render_mem(0.001) == "1MB"  # 0 would be all the memory of the node


def test_flags():
    args = ["--gpus", "0", "--partition", "gpu", "--tasks-per-node", "2", "--no-requeue"]
    wanted = Resources(gpus_per_node=0, partition="gpu", tasks_per_node=2, requeue=False)
    assert tyro.cli(Resources, args=args) == wanted


def test_all_that_is_asked_reaches_sbatch_under_its_own_names():
    everything = Resources(
        partition="gpu", nodes=3, gpus_per_node=4, tasks_per_node=2, cpus_per_task=5, mem_gb=6, timeout_min=70,
        signal_delay_s=8, account="lab", qos="high", wckey="thesis", constraint="a100", exclude="node9", nice=10,
        dependency="afterok:11", comment="hello", requeue=False,
    )  # fmt: skip
    assert to_submitit(everything, name="x", max_parallel=12) == {
        "job_name": "x",
        "partition": "gpu",
        "time": 70,
        "nodes": 3,
        "ntasks_per_node": 2,
        "gpus_per_node": 4,
        "cpus_per_task": 5,
        "mem": "6GB",
        "signal_delay_s": 8,
        "account": "lab",
        "qos": "high",
        "wckey": "thesis",
        "constraint": "a100",
        "exclude": "node9",
        "dependency": "afterok:11",
        "comment": "hello",
        "array_parallelism": 12,
        "stderr_to_stdout": True,
        "additional_parameters": {"no-requeue": True, "kill-on-invalid-dep": "yes", "nice": 10},
        "srun_args": ["--cpus-per-task=5", "--kill-on-bad-exit=1"],
    }


@pytest.mark.parametrize(
    "limits",
    [
        {"timeout_min": 527_040},
        {"timeout_min": 1, "signal_delay_s": 59},
        {"timeout_min": 2000, "signal_delay_s": 65_535},
        {"signal_delay_s": 0},
        {"mem_gb": 1 / 1024},
        {"gpus_per_node": 2, "tasks_per_node": 2},
        {"gpus_per_node": 0, "tasks_per_node": 9},
    ],
)
def test_the_largest_and_smallest_that_can_be_asked(limits: dict[str, float]):
    resources = Resources(**limits)
    assert {name: getattr(resources, name) for name in limits} == limits


@pytest.mark.parametrize(
    "name", ["partition", "account", "qos", "wckey", "constraint", "exclude", "dependency", "comment"]
)
def test_each_word_is_one_line_that_says_something(name: str):
    for value in ("", "  ", "a\nb"):
        with pytest.raises(ValueError, match=rf"^{name}=.*: must be one non-empty line$"):
            Resources(**{name: value})


@pytest.mark.parametrize("name", ["nodes", "cpus_per_task", "timeout_min"])
def test_nothing_can_be_asked_less_than_once(name: str):
    with pytest.raises(ValueError, match=rf"^{name}=0: must be at least 1$"):
        Resources(**{name: 0})


def test_a_job_waits_for_what_it_waited_for_and_for_whole_arrays():
    waiting = Resources(dependency="afterok:7", comment="kept").after(["12_0", "12_1", "13"])
    assert waiting == Resources(dependency="afterok:7,afterany:12:13", comment="kept")
    assert Resources().after(["12_3"]).dependency == "afterany:12"


def test_either_of_two_dependencies_cannot_be_joined_with_another():
    either = Resources(dependency="afterok:7?afterok:8")
    with pytest.raises(
        ValueError, match=r"^dependency='afterok:7\?afterok:8': its \? cannot be joined .*--max-parallel"
    ):
        either.after(["12"])


def test_processes_of_each_node():
    assert Resources(gpus_per_node=4).processes_per_node == 4
    assert Resources(gpus_per_node=4, tasks_per_node=1).processes_per_node == 1
    assert Resources(nodes=3, gpus_per_node=0).processes == 3


def test_at_least_one_job_runs_at_a_time(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^max_parallel=0: must be at least 1$"):
        Request(tmp_path, Resources(), "t", 0)
    assert Request(tmp_path, Resources(), "t", 1).max_parallel == 1
