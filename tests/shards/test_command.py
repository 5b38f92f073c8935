import errno
import logging
import os
from pathlib import Path

import pytest

from shards.command import CANCELLED, FAILED, INTERRUPTED, OK, WRONG_USE, Failure, Interrupted, run_command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("lr = 0: must be positive"), WRONG_USE, "error: lr = 0: must be positive\n"),
        (FileNotFoundError(2, "No such file", "x"), WRONG_USE, f"error: No such file: {Path.cwd() / 'x'}\n"),
        (Failure("the loss is nan"), FAILED, "failed: the loss is nan\n"),
        (Interrupted("saved"), INTERRUPTED, "interrupted: saved\n"),
        (KeyboardInterrupt(), CANCELLED, "interrupted\n"),
        (ZeroDivisionError("x"), FAILED, "bug: ZeroDivisionError: x (run again with --debug for the traceback)\n"),
    ],
)
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


def test_log_lines_go_to_what_stderr_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    from shards.command import _CurrentStderr

    log = logging.getLogger("test_command")
    handler = _CurrentStderr()
    log.addHandler(handler)
    try:
        log.warning("seen")
    finally:
        log.removeHandler(handler)
    assert "seen" in capsys.readouterr().err


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
