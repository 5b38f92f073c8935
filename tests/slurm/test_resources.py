from __future__ import annotations

import pytest
import tyro

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
