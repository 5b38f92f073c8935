"""Packing, a sweep and its report as one chain, on this machine and on a real Slurm."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.chain import main, parse_options
from jobs.launch.chain import Chain, _out_of, _without, read_chain
from jobs.launch.options import split_words
from jobs.node import chain_steps
from jobs.node.chain_steps import Step, run_steps
from jobs.runs.sweep_file import load_sweep
from jobs.state.trial_status import trial_statuses
from shards.command import run_command
from slurm.rehearsal.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]


def parse_chain(argv: list[str]) -> Chain:
    words, pack_flags = split_words(argv)
    return read_chain(parse_options(words), words, pack_flags)


@pytest.fixture
def tiny_chain(tiny_sweep: list[str], tmp_path: Path) -> tuple[list[str], list[str]]:
    """Flags of the sweep and of the pack: 40 drawn pets at 64 px, two trials of an epoch."""
    out = str(tmp_path / "packed")
    pack = ["--pack", "--synthetic", "40", "--image-size-px", "64", "--workers", "1", "--out", out]
    return [*tiny_sweep, "--set", f"data.shards={out}"], pack


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "begin with some of pack train report that follow each other"),
        (["pack", "report", "--pack", "--synthetic", "4"], "that follow each other"),
        (["report", "train"], "that follow each other"),
        (["pack"], "say what to pack at the end of the line: --pack --synthetic 400"),
        (["train", "--pack", "--synthetic", "4"], "--pack goes with the step pack"),
        (["pack", "--pack", "--synthetic", "4", "--out", "elsewhere"], "add --set data.shards=elsewhere"),
        (["train", "--sweep", "none.yaml"], f"no sweep file {Path('none.yaml').absolute()}: "),
    ],
)
def test_wrong_use_is_told_before_anything_is_submitted(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, words) == 2
    assert message in capsys.readouterr().err


def test_the_words_of_a_chain_are_split() -> None:
    words = ["pack", "train", "--side-partition", "cpu", "--gpus", "2", "--pack", "--synthetic", "4"]
    chain = parse_chain(words)
    assert chain.options.steps == ("pack", "train")
    assert chain.flags == ("--gpus", "2")
    assert chain.pack_flags == ("--synthetic", "4")
    side = chain.side("pack")
    assert (side.partition, side.gpus_per_node, side.nodes) == ("cpu", 0, 1)
    assert _out_of(["--synthetic", "4"]) == "data/shards"
    assert _out_of(["--out=a", "--out", "b"]) == "b"
    assert _without(["--a=1", "--b", "--a", "2", "--c"], "--a") == ["--b", "--c"]


def test_a_step_that_must_succeed_ends_the_job(tmp_path: Path) -> None:
    bad = ("--out", str(tmp_path / "set"))
    run_steps((str(tmp_path), [Step("shards.pack", bad, must=False)]))
    with pytest.raises(RuntimeError, match=r"python -m shards\.pack ended with exit code 2"):
        run_steps((str(tmp_path), [Step("shards.pack", bad)]))


def test_a_step_that_slurm_has_no_room_for_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A launcher in a job ends with 75, then 4, then 0; told to end while it waits, the job ends."""
    (tmp_path / "launcher.py").write_text(
        "import sys\n"
        "with open('tries', 'a+') as file:\n"
        "    file.write('x')\n"
        "    file.seek(0)\n"
        "    sys.exit({1: 75, 2: 4}.get(len(file.read()), 0))\n"
    )
    for name, value in (("SUBMITIT_EXECUTOR", "slurm"), ("SUBMITIT_FOLDER", str(tmp_path)), ("SLURM_JOB_ID", "7")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(chain_steps.interrupt, "install", lambda: None)
    monkeypatch.setattr(chain_steps, "AGAIN_S", 0.01)
    with caplog.at_level(logging.INFO):
        run_steps((str(tmp_path), [Step("launcher", ())]))
    assert (tmp_path / "tries").read_text() == "xxx"
    assert "exit code 75: Slurm accepts no more jobs now, or does not answer; again in" in caplog.text
    assert json.loads((tmp_path / "7_end.json").read_text()) == {"module": "launcher", "code": 0}

    (tmp_path / "tries").write_text("")
    monkeypatch.setattr(chain_steps, "AGAIN_S", 600)
    monkeypatch.setattr(chain_steps.interrupt, "requested", lambda: (tmp_path / "tries").read_text() == "x")
    monkeypatch.setattr(chain_steps, "exit_job", lambda environment, requeue: sys.exit(75))
    with pytest.raises(SystemExit):
        run_steps((str(tmp_path), [Step("launcher", ())]))
    assert (tmp_path / "tries").read_text() == "x"
    assert not (tmp_path / "7_end.json").exists()  # that of the start before is no longer true


@pytest.mark.slow
def test_on_this_machine_the_steps_follow_each_other(tiny_chain: tuple[list[str], list[str]], tmp_path: Path) -> None:
    flags, pack = tiny_chain
    here = ["--cluster", "debug", "--axis", "model.arch=unet"]
    assert run_command(main, ["pack", "train", "report", *flags, *here, *pack]) == 0
    assert {row.status for row in trial_statuses(load_sweep(tmp_path / "runs" / "lab"))} == {"done"}
    assert (tmp_path / "runs" / "lab" / "report.html").exists()


def test_a_pack_that_fails_ends_the_chain(tiny_chain: tuple[list[str], list[str]], tmp_path: Path) -> None:
    flags, pack = tiny_chain
    assert run_command(main, ["pack", "train", *flags, "--cluster", "local", *pack, "--synthetic", "1"]) == 2
    assert not (tmp_path / "runs").exists()


def notes(tmp_path: Path) -> list[dict[str, str]]:
    path = tmp_path / "runs" / "lab" / "chain" / "jobs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slurm
@pytest.mark.slow
def test_on_slurm_each_step_waits_for_the_one_before(
    tiny_chain: tuple[list[str], list[str]], tmp_path: Path, on_cluster: Cluster, wait_for: Callable
) -> None:
    flags, pack = tiny_chain
    asked = ["--partition", "gpu", "--gpus", "0", "--cpus-per-task", "1", "--mem-gb", "2", "--timeout-min", "10"]
    command = [sys.executable, "jobs/chain.py", "pack", "train", "report", *flags, *asked, *pack]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    first, second = notes(tmp_path)
    assert (first["step"], second["step"]) == ("pack", "train")
    assert second["dependency"] == f"afterok:{first['job_id']}"
    assert all(f"job {note['job_id']}" in done.stdout for note in (first, second))

    folder = tmp_path / "runs" / "lab"
    wait_for(lambda: (tmp_path / "packed" / "manifest.json").exists())
    wait_for(lambda: len(notes(tmp_path)) == 3)
    report = notes(tmp_path)[2]
    sweep = load_sweep(folder)
    array = next(iter(sweep.submissions().values())).job_id.partition("_")[0]
    assert report["dependency"] == f"afterany:{array}"
    wait_for(lambda: all(trial.result() for trial in sweep.trials))
    wait_for((folder / "report.html").exists)
    assert len(sweep.trials) == 2
    # packing, launcher, trials and report ran from one copy of the code, whatever was edited meanwhile
    assert len([path for path in (folder / "code").iterdir() if not path.name.startswith(".")]) == 1
