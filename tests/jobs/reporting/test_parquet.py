"""The leaderboard as a Parquet file."""

import sys

import pytest

from jobs import report
from jobs.reporting.parquet import unify
from jobs.runs.trial import Sweep
from shards.command import OK, WRONG_USE, run_command
from tests.jobs.reporting.short_sweep import additive, finish


def test_parquet_has_the_rows_with_their_types(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for trial in sweep.trials[1:]:
        finish(trial, additive(trial))
    assert run_command(report.main, [str(sweep.folder), "--format", "parquet"]) == OK
    table = parquet.read_table(sweep.folder / "leaderboard.parquet")
    assert table.num_rows == 8
    assert str(table.schema.field("val_dice").type) == "double"
    assert table["optim.lr"].to_pylist() == pytest.approx([row["optim.lr"] for row in table.to_pylist()])
    assert table["val_dice"].to_pylist()[-1] is None
    assert table.schema.metadata[b"sweep"] == b"lab"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run_command(report.main, [str(sweep.folder), "--format", "parquet"]) == WRONG_USE
    assert "pip install 'petseg[parquet]'" in capsys.readouterr().err


def test_columns_of_one_type() -> None:
    assert unify([1, 0.5, None]) == [1.0, 0.5, None]
    assert unify(["unet", None]) == ["unet", None]
    assert unify([1, "auto", None]) == ["1", "auto", None]
    assert unify([True, 2]) == ["True", "2"]
