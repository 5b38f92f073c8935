from __future__ import annotations

import contextlib
import getpass
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import submitit

from slurm import cluster
from slurm.arrays import render_sbatch
from slurm.environment import sbatch_environment
from slurm.executor import submit
from slurm.rehearsal import client
from slurm.rehearsal.cluster import rehearse
from slurm.rehearsal.settings import Site
from slurm.request import Request
from slurm.resources import Resources
from slurm.submission import short

SMALL = Resources(gpus_per_node=0, cpus_per_task=1, mem_gb=1, timeout_min=5)


def sbatch_lines(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def files_with(root: Path, needle: bytes) -> list[Path]:
    found = []
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # slurmctld and slurmd come and go in here
            if path.is_file() and needle in path.read_bytes():
                found.append(path)
    return found


def test_rendered_array(tmp_path: Path):
    resources = Resources(
        partition="gpu", nodes=2, gpus_per_node=2, mem_gb=64, account="lab", nice=10, exclude="node[3-4]"
    )
    text = render_sbatch(12, Request(tmp_path, resources, "pets", 4))
    assert sbatch_lines(text) == [
        "--account=lab",
        "--array=0-11%4",
        "--cpus-per-task=8",
        "--exclude='node[3-4]'",
        "--gpus-per-node=2",
        "--job-name=pets",
        "--mem=64GB",
        "--nice=10",
        "--nodes=2",
        "--ntasks-per-node=2",
        "--open-mode=append",
        f"--output={tmp_path}/%A_%a_0_log.out",
        "--partition=gpu",
        "--requeue",
        "--signal=USR2@120",
        "--time=240",
    ]
    assert "--cpus-per-task=8 --kill-on-bad-exit=1" in text


def test_a_wckey_is_written_where_one_is_asked_for(tmp_path: Path):
    asked = Resources(wckey="thesis")
    text = render_sbatch(1, Request(tmp_path, asked, "pets", 1))
    assert "--wckey=thesis" in sbatch_lines(text)
    text = render_sbatch(1, Request(tmp_path, Resources(), "pets", 1))
    assert "--wckey" not in text


def test_a_single_job_is_no_array(tmp_path: Path):
    text = render_sbatch(1, Request(tmp_path, SMALL, "pets", 4))
    assert not [line for line in sbatch_lines(text) if line.startswith(("--array", "--gpus"))]


def test_secrets_and_the_surrounding_job_stay_behind():
    kept = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "lab",
        "WANDB_MODE": "online",
        "WANDB_IDENTITY_TOKEN_FILE": "/home/me/token",
        "TOKENIZERS_PARALLELISM": "false",
    }
    dropped = {
        "WANDB_API_KEY": "s",
        "HF_TOKEN": "s",
        "my_secret_word": "s",
        "DB_PASSWORD": "s",
        "AWS_SECRET_ACCESS_KEY": "s",
        "SLURM_JOB_ID": "12",
        "SLURM_MEM_PER_CPU": "1000",
        "SUBMITIT_EXECUTOR": "slurm",
        "RANK": "1",
    }
    assert sbatch_environment(kept | dropped) == kept


def test_no_sbatch_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no sbatch on PATH: .*--cluster local"):
        submit(abs, [1], "slurm", Request(tmp_path, SMALL, "t", 1))


def test_debug_runs_in_this_process(tmp_path: Path):
    def task(item: int) -> tuple[int, int]:
        assert submitit.JobEnvironment().paths.folder == tmp_path
        return os.getpid(), submitit.JobEnvironment().num_tasks * item

    told: list[tuple[int, str]] = []
    report = lambda index, job, state: told.append((index, state))  # noqa: E731
    jobs = submit(task, [3, 4], "debug", Request(tmp_path, SMALL, "t", 1), report)
    assert told == [(0, "started"), (0, "ended"), (1, "started"), (1, "ended")]
    assert [job.result() for job in jobs] == [(os.getpid(), 3), (os.getpid(), 4)]
    assert "SUBMITIT_DEBUG_JOB_ID" not in os.environ


def test_debug_makes_its_folder_and_needs_nobody_to_report_to(tmp_path: Path):
    (job,) = submit(abs, [-3], "debug", Request(tmp_path / "deep" / "jobs", SMALL, "t", 1))
    assert (job.result(), (tmp_path / "deep" / "jobs").is_dir()) == (3, True)


def test_debug_lets_the_exception_travel(tmp_path: Path):
    def task(item: int) -> None:
        raise KeyError(item)

    with pytest.raises(KeyError, match="3"):
        submit(task, [3], "debug", Request(tmp_path, SMALL, "t", 1))


def test_no_items_are_no_jobs_and_other_clusters_are_refused(tmp_path: Path):
    request = Request(tmp_path / "jobs", SMALL, "t", 1)
    assert submit(abs, [], "slurm", request) == []
    assert not (tmp_path / "jobs").exists()
    with pytest.raises(ValueError, match=r"^cluster='pbs': must be slurm, local or debug$"):
        submit(abs, [1], "pbs", request)  # type: ignore[arg-type]


@pytest.mark.slurm
def test_a_real_array(on_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., None]):
    monkeypatch.setenv("WANDB_API_KEY", "do-not-carry-me")
    monkeypatch.setenv("WANDB_MODE", "offline")

    def task(item: int) -> tuple[int, dict[str, str]]:
        import os
        import time

        while not (tmp_path / "go").exists():
            time.sleep(0.05)
        return item * item, dict(os.environ)

    seen: list[tuple[int, str]] = []
    jobs = submit(
        task,
        [2, 3, 4],
        "slurm",
        Request(tmp_path, SMALL, "squares", 2),
        on_job=lambda index, job, state: seen.append((index, state)),
    )

    array = jobs[0].job_id.partition("_")[0]
    assert [job.job_id for job in jobs] == [f"{array}_{index}" for index in range(3)]
    assert seen == [(0, "submitted"), (1, "submitted"), (2, "submitted")]
    assert os.environ["WANDB_API_KEY"] == "do-not-carry-me"
    script = (tmp_path / f"{array}_submission.sh").read_text()
    (token,) = re.findall(r"^#SBATCH --comment=(petseg:\w+)$", script, re.MULTILINE)
    assert f"#SBATCH --job-name=squares-{short(token)}\n" in script
    shown = render_sbatch(3, Request(tmp_path, SMALL, "squares", 2), token=token)
    assert script == shown
    without = render_sbatch(3, Request(tmp_path, SMALL, "squares", 2))
    assert short(token) not in without
    assert not list(tmp_path.glob(f"{short(token)}*"))  # each job's work is in its place
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".submission")]

    assert files_with(on_cluster.root, b"WANDB_MODE=offline")  # where slurmctld keeps the jobs' environment
    assert files_with(on_cluster.root, b"do-not-carry-me") == []
    (tmp_path / "go").touch()
    wait_for(lambda: all(job.paths.result_pickle.exists() for job in jobs))
    results = [job.result() for job in jobs]
    assert [square for square, _ in results] == [4, 9, 16]
    for _, environ in results:
        assert "WANDB_API_KEY" not in environ
        assert environ["WANDB_MODE"] == "offline"


@pytest.mark.slurm
def test_jobs_carry_their_variables_and_both_comments(on_cluster, tmp_path: Path, wait_for: Callable[..., None]):
    """The launcher's variables tell a job which copy of the code it runs; the site may read the user's own comment."""

    def task(item: int) -> str:
        import os

        return os.environ["PETSEG_CODE"]

    commented = Resources(gpus_per_node=0, cpus_per_task=1, mem_gb=1, timeout_min=5, comment="project=pets")
    (job,) = submit(
        task,
        [1],
        "slurm",
        Request(
            tmp_path,
            commented,
            "t",
            1,
            variables={"PETSEG_CODE": "0123456789ab"},
            announce=lambda indices: f"token-{indices.start}-{indices.stop}",
        ),
    )
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job.job_id}", "--format=%k"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    assert shown.split() == ["project=pets", "token-0-1"]
    wait_for(lambda: job.paths.result_pickle.exists())
    assert job.result() == "0123456789ab"


@pytest.mark.slurm
def test_an_array_of_the_same_lane_waits_for_the_one_before(
    on_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster, "max_array_size", lambda: 2)
    never = Resources(gpus_per_node=0, cpus_per_task=1, mem_gb=1, timeout_min=5, dependency="afterany:999999")

    def waiting_for(resources: Resources) -> tuple[str, list[str]]:
        jobs = submit(abs, [1, 2, 3], "slurm", Request(tmp_path, resources, "t", 1))
        first, last = (jobs[index].job_id.partition("_")[0] for index in (0, 2))
        command = ["scontrol", "show", "job", last]
        shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
        subprocess.run(["scancel", first, last], check=True, timeout=30)
        return first, [word for word in shown.split() if word.startswith("Dependency=")]

    first, dependencies = waiting_for(SMALL)
    assert dependencies == [f"Dependency=afterany:{first}_*(unfulfilled)"]
    first, dependencies = waiting_for(never)
    assert f"afterany:{first}_*(unfulfilled)" in dependencies[0]


@pytest.mark.slurm
def test_a_wrong_partition_lists_the_right_ones(on_cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    wrong = Resources(partition="gpus", gpus_per_node=0, mem_gb=1)
    with pytest.raises(ValueError, match=r"(?i)invalid partition.*; partitions here: gpu, low$") as caught:
        submit(abs, [1], "slurm", Request(tmp_path, wrong, "t", 1))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.slurm
def test_a_site_that_enforces_wckeys(
    accounting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., None]
):
    """A job without a wckey is accounted under the user's default one, if there is one; a foreign one is refused."""
    conf = {"AccountingStorageEnforce": "limits,wckeys"}
    with rehearse(Site(nodes=1, gpus=0, accounting=True, conf=conf)) as site:
        for name, value in site.env.items():
            monkeypatch.setenv(name, value)

        def wckey_of_job(**changes: str) -> str:
            asked = replace(SMALL, **changes)
            (job,) = submit(abs, [-1], "slurm", Request(tmp_path, asked, "t", 1))
            command = ["squeue", "--noheader", "--states=all", f"--jobs={job.job_id}", "--format=%w"]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
            wait_for(job.paths.result_pickle.exists)
            return done.stdout.strip()

        with pytest.raises(ValueError, match=r"(?i)invalid wckey.* by --wckey: `sacctmgr show wckey user=\$USER`"):
            wckey_of_job(wckey="submitit")
        assert wckey_of_job() == "*"
        add = ["sacctmgr", "-i", "add", "user", f"name={getpass.getuser()}", "wckey=thesis,lab", "defaultwckey=lab"]
        client.order(site.root, add)
        assert wckey_of_job(wckey="thesis") == "thesis"
        assert wckey_of_job() == "*lab"
