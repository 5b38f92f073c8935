"""Which trials of an observed sweep are submitted again, refused or released."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.launch.retry import Decision, Wanted, decide, more_accumulation, require_some
from jobs.runs.trial import Sweep
from jobs.state.observed import Observed
from jobs.state.triage import Diagnosis
from jobs.state.trial_status import TrialStatus
from jobs.state.waits import Kind, Wait
from shards.cause import Cause
from shards.command import NotKnown
from tests.jobs.written_trials import sweep_of

CAUSES = [Cause.GPU_MEMORY, Cause.NAN, Cause.KILLED]
WAITS: list[Kind] = ["failed_launch", "held", "never", "blocked"]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path / "runs" / "lab", 9)


@pytest.fixture
def observed(sweep: Sweep) -> Observed:
    """0 without GPU memory, 1 NaN, 2 killed, 3 failed to start and is held, 4 held, 5 and 6 wait, 7 runs, 8 done."""
    rows = [
        TrialStatus(trial, "failed", verdict=Diagnosis(cause, f"mend {cause}", cause is not Cause.NAN, "x"))
        for trial, cause in zip(sweep.trials, CAUSES, strict=False)
    ]
    rows += [
        TrialStatus(trial, "queued", wait=Wait(kind, f"Reason{kind}", f"advice on {kind}"))
        for trial, kind in zip(sweep.trials[3:], WAITS, strict=False)
    ]
    rows += [TrialStatus(sweep.trials[7], "running"), TrialStatus(sweep.trials[8], "done")]
    return Observed(sweep, tuple(rows))


def numbers(rows: tuple[TrialStatus, ...]) -> str:
    return "".join(row.trial.id[0] for row in rows)


@pytest.mark.parametrize(
    ("wanted", "submit", "refused", "release"),
    [
        (Wanted(failed=True), "02", "1", "3"),
        (Wanted(failed=True, even_so=True), "012", "", "3"),
        (Wanted(held=True), "", "", "34"),
        (Wanted(failed=True, held=True), "02", "1", "34"),
        (Wanted(by_name=True), "02", "1", "34"),
        (Wanted(failed=True, by_name=True), "02", "1", "3"),
        (Wanted(held=True, by_name=True), "", "", "34"),
        (Wanted(cause=Cause.KILLED), "2", "", ""),
        (Wanted(cause=Cause.KILLED, by_name=True), "2", "", ""),
        (Wanted(cause=Cause.KILLED, held=True), "2", "", ""),
        (Wanted(cause=Cause.NAN), "", "1", ""),
        (Wanted(cause=Cause.NAN, even_so=True), "1", "", ""),
        (Wanted(cause=Cause.TIMEOUT), "", "", ""),
    ],
)
def test_the_flags_choose_what_is_submitted_refused_and_released(
    observed: Observed, wanted: Wanted, submit: str, refused: str, release: str
) -> None:
    decision = decide(observed, wanted)
    assert (numbers(decision.submit), numbers(decision.release)) == (submit, release)
    assert [(row.trial.id[0], why) for row, why in decision.refused] == [(one, "mend nan") for one in refused]
    changed = [observed.sweep.trials[0].id] if "0" in submit else []
    assert decision.overrides == {identifier: {"train.accumulation_steps": 2} for identifier in changed}


def test_a_pass_of_one_sample_is_refused_and_the_others_are_still_decided(observed: Observed) -> None:
    trial = observed.sweep.trials[0]
    (trial.folder / "overrides.json").write_text(json.dumps({"train.accumulation_steps": 32}))
    decision = decide(observed, Wanted(failed=True, even_so=True))
    assert (numbers(decision.submit), decision.overrides) == ("12", {})
    ((row, why),) = decision.refused
    assert (row.trial, why) == (trial, "a pass has one sample already: choose a smaller model or picture")


@pytest.mark.parametrize(
    ("batch_size", "config", "override", "more"),
    [
        (32, 0, None, 2),  # as many as fit, and none fitted
        (1, 0, None, None),
        (32, 1, None, 2),
        (32, 1, 4, 8),
        (32, 4, 0, 2),
        (12, 3, None, 6),
        (12, 4, None, 12),
        (12, 6, None, 12),
        (12, 12, None, None),
        (2, 1, None, 2),
        (15, 1, None, 3),
    ],
)
def test_the_next_accumulation_starts_from_the_last_change_and_divides_the_batch(
    tmp_path: Path, batch_size: int, config: int, override: int | None, more: int | None
) -> None:
    train = {"batch_size": batch_size, "accumulation_steps": config}
    (tmp_path / "config.json").write_text(json.dumps({"config": {"train": train}}))
    if override is not None:
        (tmp_path / "overrides.json").write_text(json.dumps({"train.accumulation_steps": override}))
    assert more_accumulation(tmp_path) == more


def test_a_config_without_a_batch_size_is_refused_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"config": {"train": {"accumulation_steps": 1}}}))
    with pytest.raises(ValueError, match=r"its config\.json has no 'batch_size'"):
        more_accumulation(tmp_path)


NOTHING = Decision((), {}, (), ())


def test_a_decision_with_anything_in_it_is_enough(observed: Observed) -> None:
    row = observed.rows[0]
    for some in (Decision((row,), {}, (), ()), Decision((), {}, ((row, "why"),), ()), Decision((), {}, (), (row,))):
        require_some(some, observed, Wanted(failed=True))


def test_without_anything_to_do_the_states_and_the_next_command_are_told(observed: Observed) -> None:
    folder = observed.sweep.folder
    ids = [trial.id for trial in observed.sweep.trials]
    waiting = observed.of(ids[5:])
    with pytest.raises(ValueError, match="none of these 4 trials has failed") as raised:
        require_some(NOTHING, waiting, Wanted(failed=True))
    assert str(raised.value) == (
        "none of these 4 trials has failed or was interrupted (done, queued, running): see "
        f"`python jobs/cancel.py {folder}`; Reasonblocked: advice on blocked; Reasonnever: advice on never"
    )
    with pytest.raises(ValueError, match=rf"trials has failed.*\(done\): see `python jobs/status\.py {folder}`$"):
        require_some(NOTHING, observed.of(ids[8:]), Wanted(failed=True))
    with pytest.raises(ValueError, match=rf"none of these 2 trials is held: see `python jobs/status\.py {folder}`"):
        require_some(NOTHING, observed.of(ids[7:]), Wanted(held=True))
    with pytest.raises(ValueError, match="none of these 3 trials is held"):
        require_some(NOTHING, observed.of(ids[:3]), Wanted(held=True))
    words = ("stalled", "running", "queued", "planned", "done")
    several = Observed(observed.sweep, tuple(TrialStatus(observed.sweep.trials[0], word) for word in words))
    with pytest.raises(ValueError, match=r"interrupted \(done, planned, queued, running, stalled\)"):
        require_some(NOTHING, several, Wanted(failed=True))
    with pytest.raises(ValueError, match=r"^none of them ended by timeout, but by gpu_memory, killed, nan$"):
        require_some(NOTHING, observed, Wanted(cause=Cause.TIMEOUT))
    with pytest.raises(ValueError, match="none of these 2 trials has failed"):
        require_some(NOTHING, observed.of(ids[7:]), Wanted(cause=Cause.TIMEOUT))


def test_a_silent_slurm_is_named_before_anything_is_said_of_the_trials(observed: Observed) -> None:
    row = TrialStatus(observed.sweep.trials[0], "unknown", silence="timed out")
    with pytest.raises(NotKnown, match="Slurm does not answer"):
        require_some(NOTHING, Observed(observed.sweep, (row,)), Wanted(held=True))
