"""The contact sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.command import OK, WRONG_USE, run_command
from shards.manifest import load_index
from shards.show import ShowConfig, main, show


def test_a_sheet(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert run_command(main, [str(packed), "--out", str(out), "--count", "7", "--tile-px", "64"]) == OK
    assert "7 samples" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 64


def test_masks_are_drawn_over(packed: Path, tmp_path: Path) -> None:
    sheets = []
    for name, masks in (("with", True), ("without", False)):
        config = ShowConfig(packed, out=tmp_path / f"{name}.png", count=1, masks=masks)
        assert show(config) == 1
        sheets.append(np.asarray(Image.open(config.out)).astype(int))
    redder = (sheets[0] - sheets[1])[..., 0] - (sheets[0] - sheets[1])[..., 2]
    assert (redder > 20).mean() > 0.05


def test_chosen_keys_of_any_split(packed: Path, tmp_path: Path) -> None:
    keys = tuple(load_index(packed, f"{split}-000000.tar")[0].key for split in ("train", "val", "test"))
    assert show(ShowConfig(packed, out=tmp_path / "sheet.png", keys=keys)) == 3


def test_wrong_use(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "sheet.png")
    assert run_command(main, [str(packed), "--out", out, "--split", "dev"]) == WRONG_USE
    assert "it has train, val, test" in capsys.readouterr().err
    assert run_command(main, [str(packed), "--out", out, "--keys", "nobody_1"]) == WRONG_USE
    assert "no sample nobody_1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command(main, [str(packed), "--out", "sheet.jpg"])
    assert list(tmp_path.iterdir()) == []


def test_damage_points_to_verify(shard_set: Path, tmp_path: Path) -> None:
    (shard_set / "val-000000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"shards\.verify"):
        show(ShowConfig(shard_set, out=tmp_path / "sheet.png", split="val"))
