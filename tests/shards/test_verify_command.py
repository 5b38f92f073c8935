"""How findings are shown, and when a set is worth more workers."""

import os
from pathlib import Path

import pytest

from shards import verify as verify_module
from shards.integrity.damage import Damage
from shards.verify import DAMAGED, MIN_BYTES_FOR_WORKERS, _print_findings, main


@pytest.mark.parametrize(("show", "rows", "more"), [(1, 1, "and 2 more"), (2, 2, "and 1 more"), (3, 3, ""), (9, 3, "")])
def test_findings_of_each_shard_are_shown_to_a_limit_and_counted(
    capsys: pytest.CaptureFixture[str], show: int, rows: int, more: str
) -> None:
    findings = [Damage("a.tar", f"key{number}", number, "altered") for number in range(3)]
    _print_findings([*findings, Damage("b.tar", "other", None, "altered")], show)
    out = capsys.readouterr().out
    assert "4 findings" in out
    assert sum(f"key{number}" in out for number in range(3)) == rows
    assert "other" in out
    assert out.count(" more") == bool(more)
    assert more in out


@pytest.mark.parametrize(("size", "workers"), [(MIN_BYTES_FOR_WORKERS - 1, 1), (MIN_BYTES_FOR_WORKERS, 5)])
def test_workers_are_started_where_a_set_is_worth_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, workers: int
) -> None:
    (tmp_path / "train-000000.tar").touch()
    os.truncate(tmp_path / "train-000000.tar", size)  # a file with a hole takes no room
    asked: list[int] = []
    monkeypatch.setattr(verify_module, "default_workers", lambda: 5)
    monkeypatch.setattr(verify_module, "verify", lambda folder, decode, num_workers: asked.append(num_workers) or [1])
    monkeypatch.setattr(verify_module, "_print_findings", lambda findings, show: None)
    for flags in ([], ["--workers", "3"]):
        assert main([str(tmp_path), *flags]) == DAMAGED
    assert asked == [workers, 3]
