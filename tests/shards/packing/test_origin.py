"""The flags of a pack at their limits, and where the samples that they ask for come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shards.labels.rules import load_rules
from shards.packing import origin
from shards.packing.options import PackConfig
from shards.packing.origin import list_again, list_files, listed_samples
from shards.sources.coco import CocoOptions
from shards.sources.patterns import PairOptions, SplitOptions
from shards.sources.pets.oxford import read_folder
from tests.scenes import Scenes

ANY = {"images": "i/{key}.jpg", "masks": "m/{key}.png", "classes": "c.toml"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"samples_per_shard": 0}, "--samples-per-shard is 0, but must be at least 1"),
        ({"image_size_px": -1}, "--image-size-px is -1, but must be at least 0"),
        ({"workers": -1}, "--workers is -1, but must be at least 0"),
        ({"seed": -1}, "--seed is -1, but must be at least 0"),
        ({"max_corrupt": -1}, "--max-corrupt is -1, but must be at least 0"),
        ({"coco": "x.json"}, "--coco needs --images PATTERN"),
        ({"classes": "x.toml"}, "--classes needs --images PATTERN"),
        ({"splits_from": (Path("x"),)}, "--splits-from needs --images PATTERN"),
        ({"test_share": 0.1}, "--test-share needs --images PATTERN"),
        ({"group_by": "x"}, "--group-by needs --images PATTERN"),
        ({"download": True}, "name exactly one of --source DIR, --download, --synthetic N, --images PATTERN (2 given)"),
        ({"synthetic": 0}, "name exactly one of --source DIR, --download, --synthetic N, --images PATTERN (0 given)"),
        (
            {"synthetic": 0, "source": Path("x"), "synthetic_folder": Path("x")},
            "--synthetic-folder is where drawn pets are kept: it needs --synthetic N",
        ),
        ({"synthetic": 0, **ANY, "coco": "x.json"}, "--images needs either --masks PATTERN or --coco JSON"),
        (
            {"synthetic": 0, **ANY, "classes": ""},
            "--masks needs --classes TOML; `--classes auto` writes one from what is in the masks",
        ),
        (
            {"synthetic": 0, **ANY, "classes": "auto", "check": True},
            "--classes auto packs nothing, so there is nothing to --check: leave one of them out",
        ),
        ({"synthetic": 0, **ANY, "test_share": 0.91}, "--test-share is 0.91: from 0 to 0.9 of the samples"),
    ],
)
def test_flags_that_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PackConfig(**{"synthetic": 9, **flags})


@pytest.mark.parametrize(
    "flags",
    [
        {"synthetic": 1, "samples_per_shard": 1, "image_size_px": 0, "workers": 0, "seed": 0, "max_corrupt": 0},
        {"download": True},
        {"source": Path("x")},
        {"images": "i", "coco": "c.json"},  # its categories are the classes
        {"images": "i", "coco": "c.json", "classes": "auto"},
        {**ANY, "check": True},
        {**ANY, "classes": "auto"},
    ],
)
def test_flags_that_are_taken(flags: dict[str, Any]) -> None:
    assert PackConfig(**flags).out == Path("data/shards")


def test_what_the_sources_are_told() -> None:
    splits = {"splits_from": (Path("lists"),), "val_share": 0.1, "test_share": 0.2, "group_by": "x", "seed": 7}
    wanted = SplitOptions((Path("lists"),), 0.1, 0.2, "x", 7)
    config = PackConfig(**ANY, **splits)
    assert config.pairs() == PairOptions("i/{key}.jpg", "m/{key}.png", wanted, takes_nearest=False)
    assert PackConfig(**ANY, **splits, lossy_masks="nearest").pairs().takes_nearest
    config = PackConfig(images="i", coco="c.json", **splits)
    assert config.coco_options() == CocoOptions("i", "c.json", wanted)


def test_as_many_processes_as_are_asked_for_or_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.packing.options.workers_for", lambda count: 100 + count)
    assert PackConfig(synthetic=9, workers=3).num_workers(5) == 3
    assert PackConfig(synthetic=9).num_workers(5) == 105


@pytest.mark.parametrize("kept", [False, True])
def test_drawn_pictures_lie_aside_or_where_they_are_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    drawn: list[tuple[Path, dict[str, int]]] = []

    def draw(folder: Path, **options: int) -> None:
        drawn.append((folder, options))

    monkeypatch.setattr(origin.synthetic, "draw_folder", draw)
    monkeypatch.setattr(origin.oxford, "read_folder", lambda folder: folder)
    folder = tmp_path / "kept" if kept else None
    config = PackConfig(synthetic=9, seed=4, workers=2, synthetic_folder=folder, synthetic_longer_side_px=77)
    with listed_samples(config, tmp_path / "staging") as listing:
        assert listing == (tmp_path / "kept" if kept else tmp_path / "staging" / "drawn")
    assert drawn == [(listing, {"number": 9, "seed": 4, "longer_side_px": 77, "num_workers": 2})]


def test_a_download_goes_where_it_is_to_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin.oxford, "download", lambda root: root / "there")
    monkeypatch.setattr(origin.oxford, "read_folder", lambda folder: folder)
    with listed_samples(PackConfig(download=True, download_root=tmp_path), tmp_path / "staging") as listing:
        assert listing == tmp_path / "there"


def test_a_source_that_is_there_is_read_as_it_is(odd, many_scenes: Scenes, tmp_path: Path) -> None:
    odd.add("pug_1")
    assert list_files(PackConfig(source=odd.root)).samples == read_folder(odd.root).samples
    with listed_samples(many_scenes.config(tmp_path / "set"), tmp_path) as listing:
        assert len(listing.samples) == 30
        assert listing.classes is not None
        assert listing.classes.names == ("road", "tree", "car")


@pytest.mark.parametrize("with_table", [False, True])
def test_categories_are_the_classes_unless_a_table_says_it(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch, with_table: bool
) -> None:
    monkeypatch.setattr(origin.coco, "read_coco", lambda *words: words)
    config = PackConfig(images="i", coco="c.json", classes=str(scenes.table) if with_table else "")
    rules = load_rules(scenes.table) if with_table else None
    assert list_files(config) == (CocoOptions("i", "c.json"), rules)


def test_samples_are_listed_again_by_what_the_manifest_says(odd, many_scenes: Scenes, tmp_path: Path) -> None:
    listing = list_files(many_scenes.config(tmp_path / "set"))
    packer = {"seed": 0, **listing.settings}
    again = list_again(packer, many_scenes.root)
    assert [sample.row() for sample in again.samples] == [sample.row() for sample in listing.samples]
    odd.add("pug_1")
    assert list_again({"seed": 0}, odd.root).samples == read_folder(odd.root).samples


@pytest.mark.parametrize(
    ("packer", "error"),
    [
        ({"pairs": {}}, "KeyError('splits_from')"),
        ({"coco": {}}, "KeyError('splits_from')"),
        ({"pairs": 3}, "TypeError(\"'int' object is not subscriptable\")"),
        ({"coco": {"splits_from": 3}}, "TypeError(\"'int' object is not iterable\")"),
    ],
)
def test_a_manifest_that_does_not_say_how_its_set_was_packed(
    packer: dict[str, Any], error: str, tmp_path: Path
) -> None:
    message = f"the manifest does not say how the set was packed ({error})"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        list_again({"seed": 0, **packer}, tmp_path)
