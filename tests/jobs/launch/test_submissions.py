"""What reaches Slurm or this machine of the trials of a sweep, and what is told and undone if not all of it fits."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.launch import submit as module
from jobs.launch.cancel import shared_job_warnings
from jobs.launch.submit import Submitted, report_end, resubmit, submit_trials
from jobs.runs.launch import Launch, save_launch
from jobs.runs.trial import Submission, Sweep
from jobs.runs.trial_state import TrialState
from jobs.state.observed import Observed
from jobs.state.processes import HERE
from jobs.state.trial_status import TrialStatus
from petseg.run_folder.layout import Pruned, load_overrides, save_overrides, save_pruned
from shards.cause import Cause
from shards.command import FAILED, INTERRUPTED, OK
from shards.files import NotRegular
from slurm.resources import Resources
from tests.jobs.written_trials import finish, sweep_of

GPU = Resources(gpus_per_node=2, cpus_per_task=6)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 5)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the submission was given; it takes the first two jobs."""
    calls: list[Any] = []

    def submit(task: Any, folders: Any, cluster: str, request: Any, on_job: Any) -> list[Any]:
        calls.append((task, folders, cluster, request))
        jobs = [SimpleNamespace(job_id=f"7_{n}", paths=SimpleNamespace(stdout=f"{n}.out")) for n in range(2)]
        for index, job in enumerate(jobs):
            on_job(index, job, "submitted")
        return jobs

    monkeypatch.setattr(module, "submit", submit)
    monkeypatch.setattr(
        module, "take_snapshot", lambda folder: SimpleNamespace(variables=lambda: {"CODE": str(folder)})
    )
    return calls


def test_a_job_gets_its_trials_and_what_does_not_fit_is_left(sweep: Sweep, sent: list[Any]) -> None:
    launch = Launch("slurm", replace(GPU, gpus_per_node=1, cpus_per_task=7), 4, trials_per_job=2, trials_at_once=2)
    submitted = submit_trials(launch, sweep, sweep.trials, frozenset({"b", "a"}))
    assert submitted == Submitted(sweep.trials, sweep.trials[4:])
    ((task, folders, cluster, request),) = sent
    assert list(vars(task).values())[:4] == [1, 3, 2, ("a", "b")]
    names = [str(trial.folder.absolute()) for trial in sweep.trials]
    assert (folders, cluster) == ([names[:2], names[2:4], names[4:]], "slurm")
    assert (request.folder, request.resources) == (sweep.folder / "logs", launch.resources)
    assert (request.name, request.max_parallel, request.as_many_as_fit) == ("petseg-lab", 4, True)
    assert request.variables == {"CODE": str(sweep.folder / "code")}
    noted = [(one.trial, one.job_id, one.cluster) for one in sweep.all_submissions()]
    assert noted == [(trial.id, f"7_{n // 2}", "slurm") for n, trial in enumerate(sweep.trials[:4])]
    token = request.announce(range(1, 2))
    cut_off = [(one.trial, one.job_id, one.place, one.intent) for one in sweep.all_submissions()[4:]]
    assert cut_off == [(trial.id, "", 0, token) for trial in sweep.trials[2:4]]
    request.withdraw(token)
    assert len(sweep.all_submissions()) == 4


@pytest.mark.parametrize(("cores", "at_once", "threads"), [(7, 2, 3), (1, 2, 1), (1, 1, 1), (4, 1, 4)])
def test_trials_side_by_side_share_the_cores_of_their_job(
    sweep: Sweep, sent: list[Any], cores: int, at_once: int, threads: int
) -> None:
    resources = Resources(gpus_per_node=0, cpus_per_task=cores)
    submit_trials(Launch("slurm", resources, 0, 2, at_once), sweep, sweep.trials)
    assert sent[0][0].threads == threads


def test_logs_are_not_written_through_a_link(sweep: Sweep, sent: list[Any], tmp_path: Path) -> None:
    (sweep.folder / "logs").symlink_to(tmp_path)
    with pytest.raises(NotRegular):
        submit_trials(Launch("slurm", GPU, 0, 1), sweep, sweep.trials)
    assert sent == []


@pytest.mark.parametrize(
    ("cluster", "max_parallel", "asked", "dependency"),
    [("slurm", 3, 1, "afterany:5"), ("slurm", 9, 1, None), ("slurm", 0, 0, None), ("debug", 3, 0, None)],
)
def test_the_jobs_of_earlier_submissions_count_where_there_is_a_limit(
    sweep: Sweep, sent: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    cluster: Any, max_parallel: int, asked: int, dependency: str | None,
) -> None:  # fmt: skip
    looks: list[Sweep] = []
    monkeypatch.setattr(module, "observe", lambda sweep: looks.append(sweep) or SimpleNamespace(slurm_jobs=("5_0",)))
    resources = Resources(gpus_per_node=0, cpus_per_task=6)
    with caplog.at_level(logging.INFO, "jobs.launch.submit"):
        submit_trials(Launch(cluster, resources, max_parallel, 2), sweep, sweep.trials)
    assert (len(looks), sent[0][3].resources.dependency) == (asked, dependency)
    told = "--max-parallel 3: the new jobs wait until the 1 jobs of earlier submissions have ended"
    assert (told in caplog.text) == (dependency is not None)


def test_the_end_of_a_submission_is_told(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    launch = Launch("slurm", GPU, 0, 1)
    assert report_end(launch, sweep, Submitted(sweep.trials)) == OK
    assert capsys.readouterr().out == ""
    assert report_end(launch, sweep, Submitted(sweep.trials, sweep.trials[3:])) == INTERRUPTED
    out = capsys.readouterr().out
    assert out.startswith("2 of 5 trials are left as planned")
    assert "--trials-per-job puts several trials into each job" in out
    report_end(replace(launch, trials_per_job=2), sweep, Submitted(sweep.trials, sweep.trials[3:]))
    assert "--trials-per-job" not in capsys.readouterr().out


def test_trials_of_this_machine_that_did_not_finish_are_errors(sweep: Sweep, caplog: pytest.LogCaptureFixture) -> None:
    launch = Launch("local", replace(GPU, gpus_per_node=0), 1, 1)
    first, second = sweep.trials[:2]
    finish(first)
    assert report_end(launch, sweep, Submitted((first,))) == OK
    assert report_end(launch, sweep, Submitted((first, second))) == FAILED
    assert caplog.messages == [f"{second.id} {second.label}: planned"]


def test_a_retry_changes_the_trials_that_were_submitted_and_no_others(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third has no change, and the second did not fit."""
    save_launch(Launch("slurm", GPU, 0, 1), sweep.folder)
    first, second, third, *_ = sweep.trials
    save_overrides({"train.accumulation_steps": 2, "train.compile": False}, first.folder)
    save_overrides({"train.accumulation_steps": 4}, second.folder)
    order: list[Any] = []

    @contextlib.contextmanager
    def lock(folder: Path) -> Iterator[None]:
        order.append("locked")
        yield
        order.append("unlocked")

    def submit(launch: Launch, sweep: Sweep, trials: Any, named: Any) -> Submitted:
        during = [load_overrides(trial.folder) for trial in trials]
        order.append((launch.resources.exclude, [trial.id for trial in trials], during, named))
        sweep.add_submissions([Submission(first.id, "8", "slurm", "")])
        return Submitted(tuple(trials), (second, third))

    monkeypatch.setattr(module, "launcher_lock", lock)
    monkeypatch.setattr(module, "reconcile", lambda sweep: order.append("reconciled"))
    monkeypatch.setattr(module, "submit_trials", submit)
    ids = [third.id, second.id, first.id]
    more = {first.id: {"train.accumulation_steps": 4}, second.id: {"train.accumulation_steps": 8}}
    assert resubmit(sweep.folder, ids, more, ["node3"]) == INTERRUPTED
    changed = [{"train.accumulation_steps": 4, "train.compile": False}, {"train.accumulation_steps": 8}, {}]
    asked = ("node3", [first.id, second.id, third.id], changed, frozenset())
    assert order == ["locked", "reconciled", asked, "unlocked"]
    assert [load_overrides(trial.folder) for trial in (first, second, third)] == [
        changed[0], {"train.accumulation_steps": 4}, {},
    ]  # fmt: skip


def test_a_retry_that_is_refused_changes_no_trial_that_it_did_not_submit(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next retry would start from a change that no job has tried. The first array was taken."""
    save_launch(Launch("slurm", GPU, 0, 1), sweep.folder)
    first, second = sweep.trials[:2]
    save_overrides({"train.accumulation_steps": 2}, second.folder)
    for trial in (first, second):
        sweep.add_submissions([Submission(trial.id, "7", "slurm", "")])

    def submit(launch: Launch, sweep: Sweep, trials: Any, named: Any) -> Submitted:
        sweep.add_submissions([Submission(first.id, "8", "slurm", "")])
        raise ValueError("sbatch: error: invalid account")

    monkeypatch.setattr(module, "submit_trials", submit)
    more = {first.id: {"train.accumulation_steps": 2}, second.id: {"train.accumulation_steps": 4}}
    with pytest.raises(ValueError, match="invalid account"):
        resubmit(sweep.folder, [first.id, second.id], more)
    assert [load_overrides(trial.folder) for trial in (first, second)] == [{"train.accumulation_steps": 2}] * 2


def test_a_warning_names_the_other_trials_of_the_jobs_that_end(sweep: Sweep) -> None:
    """The second shares the job of the first, as the third does, which is done; the fourth has another job."""
    for trial, job_id in zip(sweep.trials, ("7", "7", "7", "8"), strict=False):
        sweep.add_submissions([Submission(trial.id, job_id, "slurm", "")])
    finish(sweep.trials[2])
    given = sweep.submissions()
    rows = Observed(sweep, tuple(TrialStatus(t, "running", submission=given.get(t.id)) for t in sweep.trials)).rows
    assert list(shared_job_warnings(sweep, rows[:1])) == [
        f"their jobs have other trials too, which end with them: {sweep.trials[1].id}"
    ]
    assert list(shared_job_warnings(sweep, rows[:2])) == list(shared_job_warnings(sweep, rows[3:])) == []


@pytest.mark.parametrize("allowed", [False, True])
def test_a_retry_fetches_from_what_its_trials_name_once_the_user_knows_it(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """The first two trials read over the network, the third a folder."""
    save_launch(Launch("slurm", GPU, 0, 1), sweep.folder)
    shards = ["https://b.org/set", "https://a.org/set", "data/shards"]
    for trial, location in zip(sweep.trials, shards, strict=False):
        (trial.folder / "config.json").write_text(json.dumps({"config": {"data": {"shards": location}}}))
    calls: list[Any] = []
    monkeypatch.setattr(module, "require_known", lambda location, where: calls.append((location, where)))
    monkeypatch.setattr(module, "remember", lambda named: calls.append(named))
    monkeypatch.setattr(module, "submit_trials", lambda *words: calls.append(words[3]) or Submitted(tuple(words[2])))
    assert module.remote_sets(sweep.trials) == ["https://a.org/set", "https://b.org/set"]
    assert resubmit(sweep.folder, [trial.id for trial in sweep.trials], {}, allow_pipe=allowed) == OK
    named = frozenset(shards[:2])
    asked = [] if allowed else [(one, f"{sweep.folder}, in its trials' config.json,") for one in sorted(named)]
    assert sorted(calls[:-2]) == asked
    assert calls[-2:] == [named, named]


def test_a_launcher_that_is_stopped_marks_what_it_had_begun(sweep: Sweep) -> None:
    """The first was pruned, the second had no time to write a state, and the third has that of another job."""
    early, begun, other = sweep.trials[:3]
    save_pruned(Pruned(early.id, 4, 10, 3, 0.7, 0.6, 0.65, 16, "node9", 60.0), early.folder)
    other.write_state(TrialState("failed", host="elsewhere", job_id="6", error="KeyError"))
    told = module._report_stop(sweep.trials[:3], [(trial, "7") for trial in (early, begun, other)])
    assert told == "0 of 3 trials are done; the same command resumes the others from what is saved"
    assert early.state() == TrialState()
    for trial in (begun, other):
        state = trial.state()
        assert (state.status, state.host, state.job_id, state.cause) == ("interrupted", HERE, "7", Cause.STOPPED)


def test_a_ctrl_c_notes_the_jobs_that_run_and_says_how_many_are_done(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []

    @contextlib.contextmanager
    def show(progress: Any, lines: bool) -> Iterator[None]:
        shown.append(lines)
        yield
        shown.append("closed")

    def submit(task: Any, folders: Any, cluster: str, request: Any, on_job: Any) -> list[Any]:
        on_job(0, SimpleNamespace(job_id="7", paths=SimpleNamespace(stdout="0.out")), "started")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "submit", submit)
    monkeypatch.setattr(module, "shown", show)
    monkeypatch.setattr(module, "take_snapshot", lambda folder: SimpleNamespace(variables=dict))
    finish(sweep.trials[4])
    for cluster in ("local", "debug"):
        launch = Launch(cluster, Resources(gpus_per_node=0), 1, trials_per_job=2)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt, match="1 of 5 trials are done"):
            submit_trials(launch, sweep, sweep.trials)
    assert shown == [True, "closed", False, "closed"]
    assert [trial.state().status for trial in sweep.trials] == ["interrupted", "interrupted", "", "", ""]
    assert {one.trial for one in sweep.all_submissions()} == {trial.id for trial in sweep.trials[:2]}
