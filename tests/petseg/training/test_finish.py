"""What a run leaves at its end: groups of pictures where the set has them, and overlays of the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from petseg.metrics.masks import load_masks, store
from petseg.run.parts import Parts
from petseg.run.run import Run
from petseg.run_folder.layout import METRICS_NAME
from petseg.training import finish
from petseg.training.finish import fixed_positions, groups_of, load_best, save_val_masks
from shards.command import Failure


class Facts:
    """The JSON of samples, some of which cannot be read."""

    def __init__(self, facts: Sequence[dict[str, Any] | None]) -> None:
        self._facts = facts

    def __len__(self) -> int:
        return len(self._facts)

    def facts(self, position: int) -> dict[str, Any]:
        found = self._facts[position]
        if found is None:
            raise Failure("damaged")
        return found


def parts_of(packer: dict[str, Any], *facts: dict[str, Any] | None) -> Parts:
    split = SimpleNamespace(tars=Facts(facts))
    return cast(Parts, SimpleNamespace(manifest=SimpleNamespace(packer=packer), splits={"val": split}))


@pytest.mark.parametrize("origin", ["pairs", "coco"])
def test_groups_are_kept_where_each_picture_has_one(origin: str, caplog: pytest.LogCaptureFixture) -> None:
    packer = {origin: {"group_by": "(.*)_"}}
    assert groups_of(parts_of(packer, {"group": "v1"}, {"group": 2}), "val") == ["v1", "2"]
    assert groups_of(parts_of(packer, {"group": "v1"}, {}), "val") == []
    assert groups_of(parts_of(packer, {"group": "v1"}, {"group": ""}), "val") == []
    assert not caplog.text
    assert groups_of(parts_of(packer, {"group": "v1"}, None), "val") == []  # no reason to lose the run
    assert "val: the report will not know the groups of the pictures (damaged)" in caplog.text
    assert groups_of(parts_of({origin: {"group_by": ""}}, {"group": "v1"}), "val") == []


@pytest.mark.parametrize(
    ("num_samples", "count", "positions"),
    [(10, 3, [0, 3, 6]), (8, 4, [0, 2, 4, 6]), (3, 3, [0, 1, 2]), (0, 4, []), (5, 0, [])],
)
def test_overlays_are_of_evenly_spread_pictures(num_samples: int, count: int, positions: list[int]) -> None:
    assert fixed_positions(num_samples, count) == positions


def test_a_split_with_fewer_pictures_than_overlays_shows_each_once() -> None:
    assert fixed_positions(2, 4) == [0, 1]


class Keys:
    """A split of two samples."""

    def __len__(self) -> int:
        return 2

    def key(self, position: int) -> str:
        return f"cat_{position}"


def test_masks_of_a_rectangle_keep_their_width(tmp_path: Path) -> None:
    """Rows are kept as bits: their width cannot be told from their bytes."""
    drawn = np.random.default_rng(0).integers(0, 2, (2, 3, 13)).astype(np.uint8)
    parts: Any = SimpleNamespace(
        splits={"val": Keys()}, config=SimpleNamespace(data=SimpleNamespace(size_px=(3, 13))), folder=tmp_path
    )
    measured: Any = SimpleNamespace(masks=store(drawn, packed=True), target=SimpleNamespace(is_binary=True))
    save_val_masks(parts, measured)
    found = load_masks(tmp_path)
    assert found is not None
    assert found.keys == ("cat_0", "cat_1")
    assert np.array_equal(np.stack([found.of(number) for number in range(2)]), drawn)


def run_with_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch, best: int) -> tuple[Run, list[Path]]:
    """A run of two epochs with checkpoints of steps 10 and 20, and the folders that weights are loaded from."""
    (folder / METRICS_NAME).write_text('{"epoch": 1}\n{"epoch": 2}\n')
    loaded: list[Path] = []
    kept = [SimpleNamespace(step=step, folder=folder / str(step)) for step in (10, 20)]
    monkeypatch.setattr(finish, "list_checkpoints", lambda _: kept)
    monkeypatch.setattr(finish, "load_weights", lambda source, model: loaded.append(source))
    progress = SimpleNamespace(best=SimpleNamespace(step=best))
    return cast(Run, SimpleNamespace(parts=SimpleNamespace(folder=folder, bare_model=None), progress=progress)), loaded


@pytest.mark.parametrize("best", [10, 20])
def test_a_run_is_measured_with_its_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    run, loaded = run_with_checkpoints(tmp_path, monkeypatch, best)
    assert load_best(run) == [{"epoch": 1}, {"epoch": 2}]
    assert loaded == [tmp_path / str(best)]


def test_no_other_weights_stand_in_for_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, loaded = run_with_checkpoints(tmp_path, monkeypatch, best=15)
    with pytest.raises(Failure, match=r"lacks the best checkpoint, step 15: delete .*checkpoints to train again"):
        load_best(run)
    run, loaded = run_with_checkpoints(tmp_path, monkeypatch, best=10)
    (tmp_path / METRICS_NAME).write_text("")
    with pytest.raises(Failure, match=r"metrics\.jsonl has no epochs of this run"):
        load_best(run)
    assert not loaded


def scores_of(counts: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(counts=counts, boundary_iou=counts[..., 0] / 10.0, hd95_px=counts[..., 0] * 1.0)


@pytest.mark.parametrize("rules", [("fg",), ("fg", "bg")])
def test_what_is_kept_of_each_picture(tmp_path: Path, rules: tuple[str, ...]) -> None:
    """With one class the axis of classes is left out, and with one rule the arrays by rule."""
    own, other = np.array([[[4, 1, 1]], [[2, 0, 3]]]), np.array([[[5, 0, 1]], [[2, 0, 1]]])
    network = dict(zip(rules, (scores_of(own), scores_of(other)), strict=False))
    loss, confusion = np.array([0.5, 0.25]), np.eye(2, dtype=np.int64)
    one = SimpleNamespace(per_image=SimpleNamespace(loss=loss), own=network["fg"], network=network, confusion=confusion)
    parts: Any = SimpleNamespace(splits={"val": Keys()}, manifest=SimpleNamespace(packer={}), folder=tmp_path)
    finish.save_per_image(parts, cast(Any, {"val": one}))
    with np.load(tmp_path / "per_image.npz", allow_pickle=False) as kept:
        arrays = dict(kept)
    by_rule = {f"val/{rule}/{column}" for rule in rules for column in ("counts", "boundary_iou", "hd95_px")}
    columns = {"val/keys", "val/loss", "val/counts", "val/boundary_iou", "val/hd95_px", "val/confusion"}
    assert arrays.keys() == columns | (by_rule if len(rules) > 1 else set())
    assert arrays["val/counts"].tolist() == own[:, 0].tolist()
    assert arrays["val/boundary_iou"].tolist() == [0.4, 0.2]
    if len(rules) > 1:
        assert arrays["val/bg/counts"].tolist() == other[:, 0].tolist()
