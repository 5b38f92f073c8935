"""What a chain hands to Slurm: which jobs, waiting for what, with which code, and what is noted of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.design.spec import Spec
from jobs.launch import chain as module
from jobs.launch.chain import Chain, read_chain, require_pack, run_chain, submit_chain, submit_from_pack, submit_job
from jobs.launch.options import ChainOptions
from jobs.node.chain_steps import Step, run_steps
from jobs.runs.trial import CHAIN_NOTES, Submission, Sweep
from jobs.state.chain_state import FOLDER
from jobs.state.trial_status import TrialStatus
from shards.command import FAILED, NOT_KNOWN, OK, Unavailable
from slurm.request import Request
from slurm.resources import Resources
from tests.jobs.written_trials import sweep_of


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    file = tmp_path / "lab.yaml"
    file.write_text("parameters: {train.seed: {values: [0, 1]}}\n")
    options = ChainOptions(
        steps=("pack", "train", "report"), sweep=file, name="lab", runs_dir=tmp_path / "runs",
        resources=Resources(partition="gpu", cpus_per_task=6, dependency="afterok:5"),
    )  # fmt: skip
    return Chain(options, Spec("lab", {"train.seed": [0, 1]}, {"data.shards": "data/set"}), (), ("--out", "data/set"))


def with_options(chain: Chain, **changes: Any) -> Chain:
    return replace(chain, options=replace(chain.options, **changes))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is submitted or launched; the jobs of a pack have the id 12."""
    made: list[tuple[Any, ...]] = []

    def submit_job(chain: Chain, name: str, steps: Sequence[Step], dependency: str | None) -> str:
        made.append((name, [step.module for step in steps], dependency))
        return "12"

    monkeypatch.setattr(module, "submit_job", submit_job)
    monkeypatch.setattr(module, "launch_sweep", lambda options: made.append(("sweep", options)) or OK)
    monkeypatch.setattr(module, "show_plan", lambda options: made.append(("plan", options)) or NOT_KNOWN)
    monkeypatch.setattr(module, "require_pack", lambda flags: made.append(("checked", flags)))
    return made


def observe_as(monkeypatch: pytest.MonkeyPatch, sweep: Sweep, jobs: Sequence[str | None]) -> None:
    rows = [
        TrialStatus(trial, "queued", submission=None if job is None else Submission(trial.id, job, "slurm", ""))
        for trial, job in zip(sweep.trials, jobs, strict=True)
    ]
    monkeypatch.setattr(module, "observe", lambda sweep: SimpleNamespace(live=rows))


@pytest.mark.parametrize(
    ("jobs", "after"),
    [
        (["9_0", "10_1", "9_1", None], "afterany:10:9"),
        (["77", None, None, None], "afterany:77"),
        ([None] * 4, None),  # all is done: the report need not wait
    ],
)
def test_a_report_waits_for_the_arrays_that_hold_trials(
    chain: Chain,
    calls: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    jobs: list[str | None],
    after: str | None,
) -> None:
    observe_as(monkeypatch, sweep_of(chain.folder, 4), jobs)
    chain = with_options(chain, steps=("train", "report"))
    assert submit_chain(chain) == OK
    assert calls == [("sweep", chain.options), ("report", ["jobs.report", "jobs.status"], after)]


def test_no_report_follows_a_sweep_that_was_not_submitted(
    chain: Chain, calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "launch_sweep", lambda options: FAILED)
    assert submit_chain(with_options(chain, steps=("train", "report"))) == FAILED
    assert calls == []


def test_a_report_alone_launches_nothing(
    chain: Chain, calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    observe_as(monkeypatch, sweep_of(chain.folder, 1), ["3_0"])
    assert submit_chain(with_options(chain, steps=("report",))) == OK
    assert calls == [("report", ["jobs.report", "jobs.status"], "afterany:3")]


def test_trials_alone_have_no_report(chain: Chain, calls: list[tuple[Any, ...]]) -> None:
    assert submit_chain(with_options(chain, steps=("train",))) == OK
    assert [name for name, *_ in calls] == ["sweep"]


def test_a_dry_run_shows_the_trials_and_submits_nothing(chain: Chain, calls: list[tuple[Any, ...]]) -> None:
    dry = with_options(chain, steps=("train", "report"), dry_run=True)
    assert submit_chain(dry) == NOT_KNOWN
    assert calls == [("plan", dry.options)]
    with pytest.raises(ValueError, match=r"^--dry-run shows trials, whose names are known after packing: pack first"):
        submit_chain(with_options(chain, dry_run=True))
    assert len(calls) == 1


def test_a_chain_from_the_pack_on_is_checked_and_then_submitted(chain: Chain, calls: list[tuple[Any, ...]]) -> None:
    assert submit_chain(chain) == OK
    assert calls == [
        ("checked", ("--out", "data/set")),
        ("pack", ["shards.pack"], "afterok:5"),
        ("train", ["jobs.chain"], "afterok:12"),
    ]


@pytest.mark.parametrize(
    ("error", "noted", "stays"),
    [
        (ValueError("refused"), False, False),
        (ValueError("refused"), True, True),  # the pack is under way
        (Unavailable("no answer"), False, True),  # a job may have been taken
    ],
)
def test_the_new_folder_of_a_chain_that_was_refused_is_removed(
    chain: Chain,
    calls: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    noted: bool,
    stays: bool,
) -> None:
    def refuse(*given: object) -> str:
        (chain.folder / FOLDER).mkdir(parents=True)
        if noted:
            (chain.folder / CHAIN_NOTES).touch()
        raise error

    monkeypatch.setattr(module, "submit_job", refuse)
    with pytest.raises(type(error)):
        submit_from_pack(chain)
    assert chain.folder.exists() is stays


@pytest.mark.parametrize(("cluster", "ran"), [("slurm", "submitted"), ("local", "here"), ("debug", "here")])
def test_only_slurm_gets_jobs(chain: Chain, monkeypatch: pytest.MonkeyPatch, cluster: str, ran: str) -> None:
    monkeypatch.setattr(module, "submit_chain", lambda chain: "submitted")
    monkeypatch.setattr(module, "run_here", lambda chain: "here")
    assert run_chain(with_options(chain, cluster=cluster)) == ran  # type: ignore[comparison-overlap]


def test_what_a_pack_says_of_wrong_flags_comes_before_the_refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        ran.append((command, options))
        return SimpleNamespace(returncode=len(ran) - 1, stderr="no such folder\n")

    monkeypatch.setattr(subprocess, "run", run)
    require_pack(["--out", "a b"])
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match=r"^the pack \(--out 'a b'\) could not begin, as it says above"):
        require_pack(["--out", "a b"])
    assert capsys.readouterr().err == "no such folder\n"
    command, options = ran[0]
    assert command == [sys.executable, "-m", "shards.pack", "--out", "a b", "--check"]
    assert (options["stdout"], options["stderr"], options["text"]) == (subprocess.DEVNULL, subprocess.PIPE, True)


def test_a_job_of_a_chain_runs_a_copy_of_the_code_and_is_noted(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    def submit(function: object, items: list[Any], cluster: str, request: Request) -> list[Any]:
        given.append((function, items, cluster, request))
        return [SimpleNamespace(job_id=12, paths=SimpleNamespace(stdout=Path("/logs/[12]_0_log.out")))]

    snapshot = SimpleNamespace(variables=lambda: {"CODE": "abc"})
    folders: list[Path] = []
    monkeypatch.setattr(module, "submit", submit)
    monkeypatch.setattr(module, "take_snapshot", lambda folder: folders.append(folder) or snapshot)
    (chain.folder / FOLDER).mkdir(parents=True)  # as a submission makes it
    steps = [Step("jobs.report", ("x",))]
    assert submit_job(chain, "report", steps, "afterany:3") == "12"
    assert submit_job(chain, "pack", steps, None) == "12"
    (function, items, cluster, request), (*_, pack) = given
    assert (function, items, cluster) == (run_steps, [(str(Path.cwd()), steps)], "slurm")
    logs = chain.folder.absolute() / FOLDER
    assert (request.folder, request.name, request.max_parallel) == (logs, "petseg-lab-report", 1)
    assert (request.variables, folders) == ({"CODE": "abc"}, [chain.folder / "code"] * 2)
    assert request.resources == replace(chain.side("report"), dependency="afterany:3")
    assert pack.resources == replace(chain.side("pack"), dependency=None)  # not what the trials wait for
    assert (chain.folder / CHAIN_NOTES).read_text().splitlines() == [
        '{"step": "report", "job_id": "12", "dependency": "afterany:3", "log": "/logs/[12]_0_log.out"}',
        '{"step": "pack", "job_id": "12", "dependency": "", "log": "/logs/[12]_0_log.out"}',
    ]
    assert capsys.readouterr().out == (
        "report: job 12 (afterany:3), log /logs/[12]_0_log.out\npack: job 12, log /logs/[12]_0_log.out\n"
    )


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (("report", "pack"), ["report", "pack"]),
        (("pack", "report"), ["pack", "report"]),
        ((), ["--gpus", "1"]),
        (("train",), ["--gpus", "1", "train"]),  # they come first
    ],
)
def test_steps_follow_each_other_at_the_begin_of_the_line(
    chain: Chain, steps: tuple[Any, ...], words: list[str]
) -> None:
    options = replace(chain.options, steps=steps)
    with pytest.raises(ValueError, match=r"^begin with some of pack train report that follow each other: "):
        read_chain(options, words, None)


def test_the_flags_of_a_chain_are_those_of_its_sweep_and_of_its_pack(chain: Chain) -> None:
    options = replace(chain.options, set=("data.shards=data/set",))
    words = ["pack", "train", "report", "--name", "lab", "--side-partition", "cpu", "--set", "data.shards=data/set"]
    read = read_chain(options, words, ("--out", "data/set"))
    assert read.flags == ("--name", "lab", "--set", "data.shards=data/set")
    assert (read.pack_flags, read.options) == (("--out", "data/set"), options)
    assert read.spec.fixed["data.shards"] == "data/set"
    later = read_chain(replace(options, steps=("train",)), ["train"], None)
    assert (later.flags, later.pack_flags) == ((), ())


def test_a_pack_and_its_flags_go_together(chain: Chain) -> None:
    with pytest.raises(ValueError, match=r"^say what to pack at the end of the line: --pack --synthetic 400$"):
        read_chain(chain.options, list(chain.options.steps), None)
    with pytest.raises(ValueError, match=r"^--pack goes with the step pack: `jobs/chain.py pack train report`$"):
        read_chain(replace(chain.options, steps=("train", "report")), ["train", "report"], ())
    options = replace(chain.options, set=("data.shards=data/set",))
    with pytest.raises(ValueError, match=r"^the pack goes to b, and the sweep reads data/set: add --set data"):
        read_chain(options, list(options.steps), ("--out", "b"))
