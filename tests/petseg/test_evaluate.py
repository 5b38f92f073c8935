import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from petseg.config import RunConfig
from petseg.evaluate import main
from petseg.run_folder import load_result
from petseg.train import train
from shards.command import run_command


def test_evaluate_says_what_training_said(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(train__test=True), tmp_path)
    assert run_command(main, [str(tmp_path), "--split", "test", "--pictures", "3"]) == 0
    out = capsys.readouterr().out
    assert "test: border=fg, 64 px, 30 pictures" in out
    written = json.loads((tmp_path / "evaluate-test.json").read_text())
    result = load_result(tmp_path)
    assert result is not None
    for name, value in written["metrics"].items():
        assert value == pytest.approx(result.metrics[name], abs=1e-6)
    assert len(written["dice"]) == 30
    with Image.open(tmp_path / "evaluate-test.png") as sheet:
        assert sheet.width == 3 * 192


def test_wrong_use_is_one_line(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: no run in {tmp_path}: it has no config.json\n"
    train(tiny(train__epochs=1), tmp_path)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        (checkpoint / "state.json").unlink()
    assert run_command(main, [str(tmp_path)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
