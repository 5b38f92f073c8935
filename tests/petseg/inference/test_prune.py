"""`petseg.compress prune`: a smaller weights file, which a run of that width starts with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petseg.compress import main as compress
from petseg.config import RunConfig
from petseg.inference.header import petseg_version
from petseg.inference.prune import prune, slim_width
from petseg.inference.weights_file import load_model
from petseg.inference.winner import write_winner
from petseg.models.networks import Network
from petseg.training.loop import train
from shards.command import OK, WRONG_USE, run_command
from tests.petseg.inference.test_export import UNET, header_of, write_weights


@pytest.fixture
def winner(tiny: Callable[..., RunConfig], tmp_path: Path) -> Path:
    out = tmp_path / "winner.safetensors"
    train(tiny(model__width=8, train__epochs=1), tmp_path / "run")
    write_winner([tmp_path / "run"], out, "best", average=False, measurement=None)
    return out


def test_a_pruned_network_starts_a_run_of_its_width(
    tiny: Callable[..., RunConfig], winner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pruned.safetensors"
    assert run_command(compress, ["prune", "--weights", str(winner), "--keep", "0.5", "--out", str(out)]) == OK
    said = capsys.readouterr().out
    assert "unet, width 8 -> 4: 270,906 -> 68,062 parameters (25.1%)" in said
    assert f"--model.width 4 --model.init {out}" in said
    header, _ = load_model(out)
    assert header.models[0].width == 4
    assert header.measured == {}
    assert [one.metrics for one in header.runs] == [{}]  # those of the whole network are not its own
    config = tiny(model__width=4, model__init=str(out), distill__teacher=str(winner), train__epochs=1)
    assert train(config, tmp_path / "tuned").parameters == 68_062


def test_the_whole_width_keeps_all_bits(winner: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.safetensors"
    assert run_command(compress, ["prune", "--weights", str(winner), "--keep", "1", "--out", str(out)]) == OK
    before, after = (load_model(path)[1].state_dict() for path in (winner, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "0"], r"--keep 0.0: must lie in (0, 1]"),
        (["--out", "pruned.pt"], "--out pruned.pt: its name must end in .safetensors"),
        (["--out", "gone/pruned.safetensors"], "there is no folder"),
        (["--out", "winner.safetensors"], "is the file that is pruned: choose another name"),
        (["--weights", "gone.safetensors"], "gone.safetensors: there is no such file"),
    ],
)
def test_what_cannot_be_pruned_is_told(
    winner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(winner.parent)
    given = {"--weights": winner.name, "--out": "pruned.safetensors"} | {words[0]: words[1]}
    flags = [word for pair in given.items() for word in pair]
    assert run_command(compress, ["prune", *flags]) == WRONG_USE
    assert said in capsys.readouterr().err


def test_an_ensemble_is_refused(winner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = tmp_path / "both.safetensors"
    write_winner([tmp_path / "run", tmp_path / "run"], both, "best", average=False, measurement=None)
    words = ["prune", "--weights", str(both), "--out", str(tmp_path / "pruned.safetensors")]
    assert run_command(compress, words) == WRONG_USE
    assert "is an ensemble of 2 networks: prune the file of one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("width", "keep", "slim"), [(16, 0.5, 8), (16, 1.0, 16), (16, 0.4, 6), (6, 0.01, 2), (4, 0.9, 4)]
)
def test_a_width_is_even(width: int, keep: float, slim: int) -> None:
    assert slim_width(width, keep) == slim


def test_a_pruned_file_takes_the_place_of_another_one_and_says_who_wrote_it(tmp_path: Path) -> None:
    """Its runs stay, without the numbers of the whole network."""
    measured = {"split": "val", "metrics": {"val/dice": 0.5}}
    origin = replace(header_of().runs[0], evaluations={"val": {"metrics": {}}})
    whole = header_of(replace(UNET, width=8), runs=(origin,), measured=measured, petseg="0.0.1")
    weights, out = write_weights(tmp_path, whole), tmp_path / "pruned.safetensors"
    out.write_bytes(b"of before")
    found = prune(weights, 0.5, out)
    header, _ = load_model(out)
    assert header == found.header
    assert header == replace(
        whole, models=(UNET,), measured={}, runs=(replace(origin, metrics={}, evaluations={}),), code=header.code,
        petseg=petseg_version(),
    )  # fmt: skip
    assert (found.width_before, found.parameters < found.parameters_before / 3) == (8, True)


def test_a_network_whose_encoder_has_no_width_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = header_of(Network("fpn", 4, "bilinear", "resnet18", False))
    monkeypatch.setattr("petseg.inference.prune.load_model", lambda _: (header, None))
    said = "^w is a fpn, whose encoder has no width: only unet and resnet34_unet can be pruned; let a small network"
    with pytest.raises(ValueError, match=said):
        prune(Path("w"), 0.5, tmp_path / "out.safetensors")


def test_what_cannot_be_read_back_is_no_pruned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def load(path: Path) -> Any:
        asked.append(path)
        if len(asked) > 1:
            raise ValueError("it cannot be read back")
        return load_model(path)

    monkeypatch.setattr("petseg.inference.prune.load_model", load)
    weights = write_weights(tmp_path, header_of())
    with pytest.raises(ValueError, match="it cannot be read back"):
        prune(weights, 1.0, tmp_path / "out.safetensors")
    assert asked == [weights, tmp_path / "out.safetensors"]
