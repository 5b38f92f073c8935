"""Commands of Slurm's that are tried again, and those that are not; with stand-ins for the commands."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.command import Unavailable, run_command
from slurm import cluster, patience
from slurm.patience import Deadline, Reply, call, run
from slurm.rehearsal.answers import Answer, render_script
from slurm.submission import Refused, hand_over

AWAY = "Unable to contact slurm controller (connect failure)"
FULL = "Slurm temporarily unable to accept job, sleeping and retrying"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a command of that name on PATH, which fails as told and else prints; returns the file with its calls."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(patience, "PAUSES_S", (0.01,))

    def make(name: str, prints: str, fails: str = "", words: str = AWAY, kind: str = "fail") -> Path:
        real, calls = tmp_path / f"real-{name}", tmp_path / f"{name}.calls"
        real.write_text(f"#!/bin/sh\necho done >>{tmp_path}/{name}.done\nprintf '%s\\n' '{prints}'\n")
        (tmp_path / name).write_text(render_script(Answer(name, 0, fails, kind, words), str(real), calls))  # type: ignore[arg-type]
        for path in (real, tmp_path / name):
            path.chmod(0o755)
        return calls

    return make


def times(calls: Path) -> int:
    return len(calls.read_text().splitlines())


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        (f"sbatch: error: Batch job submission failed: {AWAY}", True),
        (f"sbatch: error: {FULL}\nsbatch: error: Batch job submission failed: Resource temporarily unavailable", True),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        ("sbatch: error: Slurm backup controller in standby mode", True),
        ("slurm_load_jobs error: Zero Bytes were transmitted or received", True),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", False),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", False),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", False),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid", False),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", False),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", False),
        ("", False),
    ],
)  # fmt: skip
def test_transient_errors_are_known_by_their_message(words: str, passes: bool):
    assert Reply("", words, 1).passes == passes
    assert Reply("", words, None).passes  # whatever it has said: it did not answer in time


def test_transient_errors_are_logged_and_retried(stand_in: Callable[..., Path], caplog: pytest.LogCaptureFixture):
    calls = stand_in("squeue", "12|RUNNING", "first-2")
    assert call(["squeue", "--me"]) == "12|RUNNING\n"
    assert times(calls) == 3
    assert [record.getMessage() for record in caplog.records] == [f"squeue: {AWAY}; trying again in 0 s"] * 2


def test_refusals_are_not_retried(stand_in: Callable[..., Path], caplog: pytest.LogCaptureFixture):
    calls = stand_in("scancel", "", "always", "Access/permission denied")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        call(["scancel", "7"])
    assert caught.value.stderr == "scancel: error: Access/permission denied\n"
    assert times(calls) == 1
    assert not caplog.records


def test_patience_ends_with_exit_code_75(
    stand_in: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls = stand_in("squeue", "", "always")
    monkeypatch.setattr(patience, "PATIENCE_S", 0.5)
    monkeypatch.setattr(patience, "PAUSES_S", (0.01, 0.01, 9.0))
    assert run_command(lambda argv: len(call(["squeue"])), []) == 75
    said = f"not now: squeue: {AWAY} (tried for 0 s); run the same command again later\n"
    assert capsys.readouterr().err == said
    assert times(calls) == 3


def test_a_silent_command_is_ended_and_its_messages_are_logged_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    script = tmp_path / "sbatch"
    script.write_text(f"#!/bin/sh\necho 'sbatch: error: {FULL}' >&2\nexec sleep 600\n")
    script.chmod(0o755)
    monkeypatch.setattr(patience, "QUIET_S", 0.2)
    with caplog.at_level(logging.WARNING):
        reply = run([str(script)], Deadline(1.0))
    assert reply.returncode is None
    assert reply.passes
    assert reply.complaint == FULL
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if FULL in line]) == 1  # once, however long it waits


def test_a_command_does_not_read_the_terminal() -> None:
    """The answer to a question that is still to be asked, for instance."""
    reading, writing = os.pipe()
    kept = os.dup(0)
    os.write(writing, b"typed\n")
    os.close(writing)
    os.dup2(reading, 0)
    try:
        assert run(["cat"], Deadline(10)) == Reply("", "", 0)
        assert os.read(0, 100) == b"typed\n"
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)


def test_states_of_jobs_are_asked_for_again_where_there_is_time(stand_in: Callable[..., Path]):
    calls = stand_in("squeue", "12|RUNNING|None|node1", "first-1")
    assert cluster.job_states(["12"])["12"].state == "RUNNING"
    assert times(calls) == 2
    calls.write_text("")
    assert cluster.job_states(["12"], timeout_s=5)["12"].state == "UNKNOWN"
    assert times(calls) == 1


def test_a_missing_command_is_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        call(["squeue"])


def test_an_answer_that_is_lost_is_asked_for(
    stand_in: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """slurmctld has taken the array: it is not handed over again."""
    calls = stand_in("sbatch", "45", "first-1", kind="lose")
    stand_in("squeue", "45_0|petseg:0123\n45_1|petseg:0123")
    assert hand_over(tmp_path / "job.sh", {"PATH": f"{tmp_path}:/usr/bin:/bin"}, "petseg:0123") == "45"
    assert times(calls) == 1
    assert "but Slurm has taken the jobs, as 45" in caplog.text


def test_an_array_that_was_not_taken_is_handed_over_again(stand_in: Callable[..., Path], tmp_path: Path):
    calls = stand_in("sbatch", "46;cluster", "first-2")
    stand_in("squeue", "45_0|petseg:other")
    assert hand_over(tmp_path / "job.sh", {"PATH": f"{tmp_path}:/usr/bin:/bin"}, "petseg:0123") == "46"
    assert times(calls) == 3


def test_what_sbatch_refuses_is_handed_over_once(stand_in: Callable[..., Path], tmp_path: Path):
    calls = stand_in("sbatch", "", "always", "Batch job submission failed: Invalid partition name specified")
    with pytest.raises(Refused, match="Invalid partition"):
        hand_over(tmp_path / "job.sh", {"PATH": f"{tmp_path}:/usr/bin:/bin"}, "petseg:0123")
    assert times(calls) == 1


def test_an_answer_without_a_job_id_is_a_refusal(stand_in: Callable[..., Path], tmp_path: Path):
    stand_in("sbatch", "welcome to the cluster")
    with pytest.raises(Refused, match="no job id: welcome"):
        hand_over(tmp_path / "job.sh", {"PATH": f"{tmp_path}:/usr/bin:/bin"}, "petseg:0123")


def test_whether_an_array_was_taken_can_be_unknown(
    stand_in: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stand_in("sbatch", "45", "always", kind="lose")
    stand_in("squeue", "", "always")
    monkeypatch.setattr("slurm.submission.ASK_S", 0.1)
    monkeypatch.setattr(patience, "PAUSES_S", (0.01, 9.0))
    with pytest.raises(Unavailable, match="whether it took the jobs is not known"):
        hand_over(tmp_path / "job.sh", {"PATH": f"{tmp_path}:/usr/bin:/bin"}, "petseg:0123")


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (Reply("", "sbatch: error: one\nsbatch: fatal: two\n\n", 1), "one; two"),
        (Reply("said", "", None), "no answer"),
        (Reply("said", " \n", 7), "exit code 7"),
        (Reply("", "a note: error: of ours", 1), "a note: error: of ours"),
    ],
)
def test_a_complaint_is_one_line_whatever_was_said(reply: Reply, complaint: str):
    assert reply.complaint == complaint


def test_a_refusal_carries_all_that_the_command_said(stand_in: Callable[..., Path], tmp_path: Path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho partly; echo no >&2; exit 3\n")
    (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        call(["scontrol", "show", "job"])
    error = caught.value
    assert (error.returncode, error.cmd, error.output, error.stderr) == (
        3, ["scontrol", "show", "job"], "partly\n", "no\n"
    )  # fmt: skip


def test_pauses_grow_and_the_last_one_repeats():
    assert [pause for pause, _ in zip(patience.pauses(), range(6), strict=False)] == [1, 2, 4, 8, 8, 8]


def test_patience_is_that_of_the_caller_or_else_the_usual_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(patience, "PATIENCE_S", 12.0)
    assert (Deadline().patience_s, Deadline(0.0).patience_s, Deadline(5).patience_s) == (12.0, 0.0, 5)
    assert 0 < Deadline().left_s <= 12
    assert Deadline(0.0).left_s == 0
    slept: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    Deadline(500).wait(2.0, "squeue: busy")
    assert (slept, caplog.messages) == ([2.0], ["squeue: busy; trying again in 2 s"])
    with pytest.raises(Unavailable, match=r"^squeue: busy \(tried for 5 s\)$"):
        Deadline(5).wait(5.0, "squeue: busy")
    assert slept == [2.0]


def test_a_slow_command_that_says_nothing_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(patience, "QUIET_S", 0.02)
    assert run(["sh", "-c", "sleep 0.2; echo done; exit 4"], Deadline(60)) == Reply("done\n", "", 4)
    (message,) = caplog.messages
    assert re.fullmatch(r"sh: no answer yet; waiting for up to (59|60) s", message)


def test_a_command_is_ended_with_whoever_waits_for_it(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C, or an error of ours."""
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            if not started:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(patience.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(["sleep", "600"], Deadline(60))
    assert started[0].returncode == -signal.SIGTERM


def test_a_command_that_ignores_its_end_is_killed(monkeypatch: pytest.MonkeyPatch):
    class Hasty(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            return super().wait(timeout and min(timeout, 0.05))

    stubborn = ["sh", "-c", "trap '' TERM; echo; exec sleep 600"]
    with Hasty(stubborn, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        patience._end(process)
        assert process.returncode == -signal.SIGKILL


def test_a_command_runs_in_the_environment_that_it_is_given():
    assert run(["sh", "-c", "echo $A $HOME"], Deadline(60), {"A": "b", "PATH": os.environ["PATH"]}).stdout == "b\n"


def test_output_that_is_no_utf8_is_an_answer_too():
    assert run(["printf", r"\377 ok"], Deadline(60)).stdout == "\ufffd ok"
