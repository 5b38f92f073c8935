"""Scripts in a cluster's folder that stand before Slurm's own commands, and the commands themselves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from slurm.rehearsal import client
from slurm.rehearsal.answers import BUSY, COMMANDS, Answer, parse_answers, render_script, set_answers
from slurm.rehearsal.client import ask, client_env, daemon_env, order


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with stand-ins for the real commands, which print their name and their arguments."""
    folder = tmp_path / "real"
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).write_text('#!/bin/sh\necho "real ${0##*/}" "$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def said(root: Path, *command: str) -> tuple[int, str, str]:
    done = subprocess.run(command, env=client_env(root), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_answers_hold_until_others_are_set(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cluster"
    root.mkdir()
    set_answers(root, [Answer("squeue", fails="first-1"), Answer("sinfo", fails="always", words="it's away")])
    assert said(root, "squeue", "-h") == (1, "", f"squeue: error: {BUSY}\n")
    assert said(root, "squeue", "-h") == (0, "real squeue -h\n", "")
    assert said(root, "sinfo") == (1, "", "sinfo: error: it's away\n")
    assert ask(root, ["sinfo"]) == "real sinfo"  # the rehearsal itself is never disturbed
    monkeypatch.setenv("PATH", client_env(root)["PATH"])  # whoever sets answers may have the variables of `env`
    set_answers(root, [Answer("squeue", fails="first-1")])
    assert said(root, "squeue") == (1, "", f"squeue: error: {BUSY}\n")  # counted from here on
    assert said(root, "squeue") == (0, "real squeue\n", "")
    assert said(root, "sinfo") == (0, "real sinfo\n", "")
    set_answers(root, [])
    assert list((root / "bin").iterdir()) == []


def test_a_command_that_is_not_there_cannot_be_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^no squeue on PATH that could be disturbed$"):
        set_answers(tmp_path, [Answer("squeue", 1)])


def test_a_lost_answer_of_a_command_that_fails_is_its_own_failure(tmp_path: Path) -> None:
    script, real = tmp_path / "sbatch", tmp_path / "real"
    real.write_text("#!/bin/sh\necho refused >&2\nexit 3\n")
    script.write_text(render_script(Answer("sbatch", fails="always", kind="lose"), str(real), tmp_path / "calls"))
    for path in (real, script):
        path.chmod(0o755)
    done = subprocess.run([script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, "refused\n")


def test_a_delay_comes_before_all_else() -> None:
    lines = render_script(Answer("sbatch", 2.5, "every-3"), "/usr/bin/sbatch", Path("/r/calls")).splitlines()
    assert lines[2:5] == ["sleep 2.5", "echo >>/r/calls", "n=$(wc -l </r/calls)"]
    assert lines[5] == 'if [ "$((n % 3))" -eq 0 ]; then'
    assert lines[-1] == 'exec /usr/bin/sbatch "$@"'
    assert "sleep" not in render_script(Answer("sbatch"), "/usr/bin/sbatch", Path("/r/calls"))


@pytest.mark.parametrize("delay_s", [0.0, 3600.0])
def test_the_longest_and_the_shortest_delay(delay_s: float) -> None:
    assert parse_answers([f"squeue={delay_s:g}"], [], []) == (Answer("squeue", delay_s),)
    with pytest.raises(ValueError, match=r"^--slow squeue=3600\.1: must be from 0 to 3600 seconds$"):
        Answer("squeue", 3600.1)


def test_flags_may_have_spaces_and_need_a_value() -> None:
    assert parse_answers([], [" squeue = always: no way "], []) == (Answer("squeue", fails="always", words="no way"),)
    assert parse_answers([], ["squeue=always:"], []) == (Answer("squeue", fails="always", words=BUSY),)
    for flag in ("squeue= ", "squeue"):
        with pytest.raises(ValueError, match=f"^--slow {flag}: must be COMMAND=SECONDS$"):
            parse_answers([flag], [], [])
    with pytest.raises(ValueError, match=r"^--lose squeue: must be COMMAND=WHEN\[:WORDS\]$"):
        parse_answers([], [], ["squeue"])


@pytest.mark.parametrize("when", ["first-10", "every-1", "always"])
def test_when_a_command_may_fail(when: str) -> None:
    assert Answer("squeue", fails=when).fails == when


@pytest.mark.parametrize("when", ["first", "every-", "first-01", "always-2", "every-2x", "xalways"])
def test_other_words_for_when_are_refused(when: str) -> None:
    with pytest.raises(ValueError, match=rf"^--fail squeue={when}: say when it fails: always, first-N"):
        Answer("squeue", fails=when)


def test_nothing_of_a_surrounding_job_reaches_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/r/bin:/usr/bin")
    for name in ("SLURM_JOB_ID", "SBATCH_ACCOUNT", "SLURM_CONF"):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("LAB", "kept")
    daemons, clients = daemon_env(Path("/r")), client_env(Path("/r"))
    for environ, path in ((daemons, "/usr/bin:/usr/sbin:/sbin"), (clients, "/r/bin:/usr/bin")):
        names = {name for name in environ if name.startswith(("SLURM_", "SBATCH_"))}
        assert names == {"SLURM_CONF"}
        assert (environ["SLURM_CONF"], environ["LAB"], environ["PATH"]) == ("/r/etc/slurm.conf", "kept", path)
    assert clients["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in daemons or os.environ.get("GLOO_SOCKET_IFNAME")


def test_what_slurm_answers_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(tmp_path, ["echo", " two words "]) == "two words"
    assert ask(tmp_path, ["sh", "-c", "echo partly; exit 1"]) == ""
    order(tmp_path, ["sh", "-c", "echo noise >&2"])
    own = f"{tmp_path}/etc/slurm.conf"
    assert ask(tmp_path, ["sh", "-c", "echo $SLURM_CONF"]) == own
    order(tmp_path, ["sh", "-c", f"[ $SLURM_CONF = {own} ]"])
    with pytest.raises(ValueError, match=r"^sh -c echo no >&2; echo way >&2; exit 1: no way$"):
        order(tmp_path, ["sh", "-c", "echo no >&2; echo way >&2; exit 1"])
    monkeypatch.setattr(client, "TIMEOUT_S", 0.05)
    assert ask(tmp_path, ["sleep", "600"]) == ""
    with pytest.raises(ValueError, match=rf"^sleep got no answer in 0 s: see {tmp_path}/log/slurmctld\.log$"):
        order(tmp_path, ["sleep", "600"])
