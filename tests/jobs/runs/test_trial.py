"""Which jobs a sweep's folder says its trials had."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.trial import SUBMISSIONS_NAME, Submission, Trial
from tests.jobs.written_trials import sweep_of


def test_only_a_last_line_that_a_kill_cut_short_is_left_out_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = sweep_of(tmp_path / "runs" / "lab", 1)
    (trial,) = sweep.trials
    sweep.add_submissions([Submission(trial.id, "12", "slurm", "")])
    path = sweep.folder / SUBMISSIONS_NAME
    whole = path.read_text()
    path.write_text(whole + '{"trial": "0')
    with caplog.at_level(logging.WARNING):
        assert [one.job_id for one in sweep.all_submissions()] == ["12"]
        assert not caplog.records
        path.write_text('{"trial": "0\n' + whole)
        assert [one.job_id for one in sweep.all_submissions()] == ["12"]
    assert f"{path}:1 is damaged" in caplog.text


@pytest.mark.parametrize(
    ("axes", "label"),
    [
        ({"model.arch": "unet", "augment.policy": "elastic", "train.seed": 3}, "unet elastic"),
        ({"model.arch": "unet"}, "unet"),
        ({"train.seed": 3}, "all trials"),
        ({}, "all trials"),
    ],
)
def test_a_cell_is_called_by_its_values_but_the_seed(axes: dict[str, Any], label: str) -> None:
    assert Trial("0123456789", axes, Path("none")).cell == label
