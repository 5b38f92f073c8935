"""How a command begins and ends: its words, its log, its one line of an error, and its exit code."""

import errno
import io
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.cause import BY_ERRNO, Cause, ShardSetError, cause_of
from shards.command import (
    CANCELLED,
    FAILED,
    INTERRUPTED,
    NOT_KNOWN,
    OK,
    WRONG_USE,
    Failure,
    Interrupted,
    NotKnown,
    Unavailable,
    printable,
    run_command,
    typed,
    without_secrets,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("lr = 0: must be positive"), WRONG_USE, "error: lr = 0: must be positive\n"),
        (FileNotFoundError(2, "No such file", "x"), WRONG_USE, f"error: No such file: {Path.cwd() / 'x'}\n"),
        (Failure("the loss is nan"), FAILED, "failed: the loss is nan\n"),
        (Interrupted("saved"), INTERRUPTED, "interrupted: saved\n"),
        (Unavailable("the store"), INTERRUPTED, "not now: the store; run the same command again later\n"),
        (NotKnown("squeue is silent"), NOT_KNOWN, "not known: squeue is silent\n"),
        (KeyboardInterrupt(), CANCELLED, "interrupted\n"),
        (KeyboardInterrupt("saved so far"), CANCELLED, "interrupted: saved so far\n"),
        (OSError("no number"), WRONG_USE, "error: no number\n"),
        (OSError(17, "Exists", "a", None, Path("/b")), WRONG_USE, f"error: Exists: {Path.cwd() / 'a'} -> /b\n"),
        (OSError(9, "Bad", 3), WRONG_USE, "error: [Errno 9] Bad: 3\n"),
        (OSError(errno.ENOSPC, "Full"), INTERRUPTED,
         "no room: [Errno 28] Full; make room, then run the same command again\n"),
        (ValueError("a\x1b[2Jb\n c"), WRONG_USE, "error: a\\x1b[2Jb\n c\n"),
        (ZeroDivisionError("x"), FAILED, "bug: ZeroDivisionError: x (run again with --debug for the traceback)\n"),
    ],
)  # fmt: skip
def test_what_is_raised_ends_as_a_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: object) -> int:
        raise error

    assert run_command(main, []) == code
    assert capsys.readouterr().err == line
    assert run_command(main, ["--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_debug_is_taken_out_of_the_arguments() -> None:
    seen: list[list[str]] = []
    assert run_command(lambda argv: seen.append(list(argv)) or OK, ["--a", "--debug", "b"]) == OK
    assert seen == [["--a", "b"]]


def test_log_lines_go_to_what_stderr_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.command import _CurrentStderr

    log, later = logging.getLogger("test_command"), io.StringIO()
    handler = _CurrentStderr()
    monkeypatch.setattr(sys, "stderr", later)
    log.addHandler(handler)
    try:
        log.warning("seen")
    finally:
        log.removeHandler(handler)
    assert later.getvalue() == "seen\n"


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, INTERRUPTED), (errno.EDQUOT, INTERRUPTED), (errno.EACCES, WRONG_USE)]
)
def test_a_full_disk_is_no_wrong_use(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: object) -> int:
        raise OSError(number, os.strerror(number), "shard.tar")

    assert run_command(command, []) == code
    said = capsys.readouterr().err
    assert "shard.tar" in said
    assert ("make room, then run the same command again" in said) == (code == INTERRUPTED)


def test_the_words_are_those_of_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "--a", "--debug"])
    assert run_command(lambda argv: OK if argv == ["--a"] else FAILED) == OK
    assert run_command(lambda argv: OK if argv == [] else FAILED, []) == OK


@pytest.mark.parametrize("is_ignored", [True, False])
def test_ctrl_c_raises_again_once_a_command_runs_unless_a_shell_has_it_ignored(is_ignored: bool) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        run_command(lambda argv: OK, [])
        assert signal.getsignal(signal.SIGINT) is (signal.SIG_IGN if is_ignored else signal.default_int_handler)
    finally:
        signal.signal(signal.SIGINT, before)


LOGS = """
import logging, sys
from shards.command import run_command

def main(argv):
    for name in ("ours", "PIL", "urllib3", "asyncio", "filelock", "git"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "\\x1b[2J")
    return 7

sys.exit(run_command(main))
"""


@pytest.mark.parametrize(
    ("rank", "words", "levels"), [(None, [], ["INFO", "WARNING"]), ("3", ["--debug"], ["DEBUG", "INFO", "WARNING"])]
)
def test_log_lines_tell_time_rank_level_and_place_and_libraries_only_warn(
    rank: str | None, words: list[str], levels: list[str]
) -> None:
    env = {name: value for name, value in os.environ.items() if name != "RANK"} | ({"RANK": rank} if rank else {})
    done = subprocess.run(
        [sys.executable, "-c", LOGS, *words],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 7
    lines = [re.sub(r"^\d\d:\d\d:\d\d", "TIME", line) for line in done.stderr.splitlines()]
    who = f"TIME{' rank 3' if rank else ''}"
    assert lines == [
        *(f"{who} {level} ours: \\x1b[2J" for level in levels),
        *(f"{who} WARNING {name}: \\x1b[2J" for name in ("PIL", "urllib3", "asyncio", "filelock", "git")),
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc é 日本", "a\tb\nc é 日本"), ("\x00\x0b\r\x1f\x7f\x9f", "\\x00\\x0b\\r\\x1f\\x7f\\x9f"),
        ("\xad\u061c\u200b\u200f\u2028\u202e", r"\xad\u061c\u200b\u200f\u2028\u202e"),
        ("\u2060\u206f\ufeff\ufff9\ufffb", r"\u2060\u206f\ufeff\ufff9\ufffb"),
        ("\ud800\udcff\U000e0041", r"\ud800\udcff\U000e0041"), ("\\x1b", "\\x1b"),
    ],
)  # fmt: skip
def test_what_a_terminal_obeys_or_hides_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://host/a?token=s3c, and b", "see https://host/a and b"),
        ("(s3://key:word@bucket/x?sig=1)", "(s3://bucket/x)"),
        ("https://me:w?rd@host/x", "https://host/x"),
        ("'https://me@host/a b'@c", "'https://host/a b'@c"),
        ("mail me@host or ask? yes", "mail me@host or ask? yes"),
    ],
)
def test_addresses_are_shown_without_user_password_and_query(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_the_key_of_a_service_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert without_secrets("key abc, abcd") == "key ***, ***d"
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert without_secrets("key abc") == "key abc"


def test_a_command_is_shown_as_it_can_be_typed() -> None:
    assert typed("jobs/status.py", Path("runs/my lab"), 7) == "python jobs/status.py 'runs/my lab' 7"
    assert typed("x.py") == "python x.py"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Failure("x", Cause.NAN), Cause.NAN), (Failure("x"), None), (ShardSetError("x"), Cause.DATA),
        (OSError(errno.ENOSPC, "x"), Cause.DISK_FULL), (OSError(errno.EDQUOT, "x"), Cause.DISK_FULL),
        (OSError(errno.EIO, "x"), Cause.NODE_FAILURE), (OSError(errno.ESTALE, "x"), Cause.NODE_FAILURE),
        (OSError(errno.EACCES, "x"), None), (OSError("x"), None), (ValueError("x"), None),
    ],
)  # fmt: skip
def test_an_error_tells_its_cause(error: BaseException, cause: Cause | None) -> None:
    assert cause_of(error) is cause
    assert len(BY_ERRNO) == 4
    error.cause = "gpu_memory"  # of another library's errors: a word is no cause of ours
    assert cause_of(error) is (BY_ERRNO.get(error.errno) if isinstance(error, OSError) else None)


def test_an_interrupt_asks_for_another_start_only_where_it_says_so() -> None:
    assert (Interrupted("x").requeue, Interrupted("x", requeue=True).requeue) == (False, True)
