"""The sections of pictures and breeds, on a sweep of two real runs and their real shards."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jobs.design.expansion import expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.report import main
from jobs.reporting.page import render_page
from jobs.reporting.sections.breakdown import by_group
from jobs.reporting.sections.breakdown.by_group import build_by_group, kinds_of
from jobs.reporting.sections.gallery import MAX_TRIES, Gallery, build_gallery, dice_between, dispute, rival
from jobs.reporting.sections.samples import ValSplit, load_facts, load_samples
from jobs.reporting.statistics.per_image import read_dice
from jobs.reporting.statistics.records import Record, rank, read_records
from jobs.reporting.statistics.verdict import Leaderboard, build_leaderboard
from jobs.runs.sweep_file import find_sweep, save_sweep
from jobs.runs.trial import Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.runs.trials import plan_sweep
from petseg.config.values import trial_id
from petseg.data.store import open_store
from petseg.data.tars import TarReader
from petseg.metrics.masks import load_masks, save_masks
from petseg.run_folder.layout import VAL_MASKS_NAME, claim_folder
from petseg.training.loop import train
from shards.command import OK, run_command
from shards.manifest import load_manifest
from shards.pack import PackConfig
from shards.pack import pack as pack_shards

REPOSITORY = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards: 160 drawn pets, 8 of them val; runs/lab: two cells of one seed, finished."""
    root = tmp_path_factory.mktemp("pictures")
    shards = root / "shards"
    pack_shards(PackConfig(out=shards, synthetic=160, seed=3, image_size_px=64, samples_per_shard=64, workers=1))
    fixed = {
        "data.shards": str(shards), "data.image_size_px": 64, "data.threads": 1, "data.cache": "none", "model.width": 4,
        "train.budget_steps": 2, "train.batch_size": 16, "train.test": False, "tracking.overlays": 0,
    }  # fmt: skip
    spec = Spec("lab", {"augment.policy": ["none", "elastic"], "train.seed": [0]}, fixed)
    manifest, cells = load_manifest(shards), expand(spec)
    sweep = plan_sweep(spec, cells, ShardSets({str(shards): manifest}), root / "runs" / "lab")
    save_sweep(sweep)
    configs = {trial_id(cell.config, manifest.hash): cell.config for cell in cells}
    for trial in sweep.trials:
        claim_folder(configs[trial.id], manifest.hash, trial.folder)
        train(configs[trial.id], trial.folder)
        trial.write_state(TrialState("done", host="node1", job_id="1"))
    return root


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Iterator[Sweep]:
    """A copy to be spoilt; its trials still name the shards that were packed."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    return find_sweep("lab", tmp_path / "runs")


def named_set(sweep: Sweep) -> str:
    """The set that the sweep was trained on, as the user names it by --shards."""
    return sweep.shards


def gallery_of(sweep: Sweep, shards: str | None = None) -> Gallery:
    shards = named_set(sweep) if shards is None else shards
    found = build_gallery(rank(board_of(sweep).groups), sweep, shards)
    assert found is not None
    return found


def board_of(sweep: Sweep) -> Leaderboard:
    return build_leaderboard(sweep, read_records(sweep))


def page_of(sweep: Sweep, shards: str | None = None) -> str:
    return render_page(sweep, read_records(sweep), shards=named_set(sweep) if shards is None else shards)


def record_of(sweep: Sweep) -> Record:
    return read_records(sweep)[0]


def test_masks_and_truth_give_the_dice_that_was_measured(sweep: Sweep) -> None:
    for record in read_records(sweep):
        masks, found = load_masks(record.trial.folder), read_dice(record.trial.folder, "val")
        assert masks
        assert found
        wanted = dict(enumerate(masks.keys))
        samples, trouble = load_samples(ValSplit(record, sweep.manifest_hash, named_set(sweep)), wanted)
        assert (trouble, list(samples)) == ("", list(wanted))
        assert [dice_between(samples[i].truth, masks.of(i)) for i in wanted] == pytest.approx(found[1].tolist())


def test_page_shows_pictures_breeds_and_what_is_seen_on_them(sweep: Sweep) -> None:
    images: list[str] = []
    headings: list[int] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            if tag == "img":
                assert (dict(attributes)["src"] or "").startswith("data:image/webp;base64,")
                images.append(dict(attributes)["alt"] or "")
            if re.fullmatch(r"h[1-6]", tag):
                headings.append(int(tag[1]))

    text = page_of(sweep)
    Reader().feed(text)
    gallery = gallery_of(sweep)
    num_shots = sum(len(row) for _, row in gallery.rows)
    assert num_shots == 8
    assert len(images) == 2 * num_shots + 3 * len(gallery.disputed)
    assert sum("% of the picture is missed pet" in alt for alt in images) == num_shots + 2 * len(gallery.disputed)
    assert headings[0] == 1
    assert len(headings) > 10
    assert [pair for pair in pairwise(headings) if pair[1] > pair[0] + 1] == []
    assert len("".join(re.findall(r"data:image[^\"]+", text))) < 1_000_000
    for expected in ("Where two models disagree", "By breed", "All cats", "All dogs"):
        assert expected in text


def test_pictures_on_which_two_models_disagree(sweep: Sweep) -> None:
    gallery = gallery_of(sweep)
    assert gallery.is_first
    assert gallery.other
    assert gallery.other.record is not gallery.cell.record
    agreements = [one.agreement for one in gallery.disputed]
    assert agreements == sorted(agreements)
    assert agreements
    assert max(agreements) < 1
    masks = gallery.cell.masks
    assert masks
    save_masks(masks, gallery.other.record.trial.folder)
    assert gallery_of(sweep).disputed == ()
    assert "have the same mask of every val picture" in page_of(sweep)


def test_another_architecture_is_preferred(sweep: Sweep) -> None:
    gallery = gallery_of(sweep)
    assert gallery.other
    first, second = gallery.cell, gallery.other
    far = replace(second.record, values={**second.record.values, "model.arch": "resnet34_unet"})
    for cells in (
        [(second.group, second.record), (first.group, far)],
        [(first.group, far), (second.group, second.record)],
    ):
        found = rival(first, cells)
        assert found
        assert found.record is far
    assert rival(first, [(first.group, first.record)]) is None
    other_size = replace(first, masks=replace(first.masks, stored=first.masks.stored[:, :32]))
    assert rival(other_size, [(second.group, second.record)]) is None
    assert dispute(first, first) == []


def test_cells_without_masks_are_passed_over_a_few_times(sweep: Sweep, tmp_path: Path) -> None:
    gallery = gallery_of(sweep)
    assert gallery.other
    first, second = gallery.cell, gallery.other
    without = replace(second.record.trial_status, trial=Trial("none", {}, tmp_path / "none"))
    bare = (second.group, replace(second.record, trial_status=without))
    for tries, is_found in ((1, True), (MAX_TRIES - 1, True), (MAX_TRIES, False)):
        found = rival(first, [*[bare] * tries, (second.group, second.record)])
        assert (found is not None) == is_found


def test_an_unnamed_shard_set_is_not_opened(sweep: Sweep, made: Path) -> None:
    """It is where the trials read it, but their config.json could be a stranger's."""
    text = page_of(sweep, "")
    assert "No pictures here: a report opens no shards by itself: name their folder by --shards" in text
    assert "python jobs/report.py lab --shards FOLDER" in text
    assert "data:image" not in text
    keys = [shot.key for _, row in gallery_of(sweep, "").rows for shot in row]
    assert len(keys) == 8
    assert [key for key in keys if key not in text.replace("<wbr>", "")] == []
    assert "Not known here: the pictures&#39; keys name no breeds" in text  # eight pictures of eight breeds
    assert run_command(main, [str(sweep.folder), "--shards", str(made / "shards")]) == OK
    assert "data:image" in (sweep.folder / "report.html").read_text()


def test_other_shards_and_damaged_ones_are_not_shown(sweep: Sweep, made: Path, tmp_path: Path) -> None:
    other = replace(sweep, manifest_hash="0" * 64)
    assert "holds another shard set than the sweep's" in gallery_of(other).trouble
    assert "from where a report fetches nothing" in gallery_of(sweep, "s3://pets/shards").trouble
    broken = Path(shutil.copytree(made / "shards", tmp_path / "broken"))
    (tar,) = (broken / shard.name for shard in load_manifest(broken).of_split("val"))
    content = bytearray(tar.read_bytes())
    tar.write_bytes(bytes(byte ^ 0x55 if i > 600 else byte for i, byte in enumerate(content)))
    gallery = gallery_of(sweep, str(broken))
    assert gallery.trouble
    assert not any(shot.photo for _, row in gallery.rows for shot in row)


def test_runs_of_an_earlier_version_are_listed_without_pictures(sweep: Sweep) -> None:
    first = gallery_of(sweep).cell.record
    (first.trial.folder / VAL_MASKS_NAME).unlink()
    assert not gallery_of(sweep).is_first
    assert "the first cell of the leaderboard that kept its masks" in page_of(sweep)
    for trial in sweep.trials:
        (trial.folder / VAL_MASKS_NAME).write_bytes(b"PK\x03\x04 cut off")
    gallery = gallery_of(sweep)
    assert (gallery.is_first, gallery.other, gallery.disputed) == (True, None, ())
    text = page_of(sweep)
    assert "none of the finished runs kept its masks" in text
    assert "when its result.json is deleted and the sweep is started again" in text
    assert "data:image" not in text


def test_breeds_of_the_shards_hardest_first(sweep: Sweep) -> None:
    board = board_of(sweep)
    breeds = build_by_group(board, sweep, named_set(sweep))
    assert breeds
    assert board.val
    assert [group.key for group in breeds.cells] == [group.key for group in board.val.groups]
    assert [row.name for row in breeds.wider] == ["cat", "dog"]
    assert sum(row.num_pictures for row in breeds.wider) == sum(row.num_pictures for row in breeds.rows) == 8
    first = [row.means[0].value for row in breeds.rows]
    assert first == sorted(first)
    whole = sum(row.means[0].value * row.num_pictures for row in breeds.rows) / 8
    mean = board.val.mean(board.val.groups[0])
    assert mean
    assert whole == pytest.approx(mean.value)
    record = record_of(sweep)
    keys = read_dice(record.trial.folder, "val")[0]
    facts, trouble = load_facts(ValSplit(record, sweep.manifest_hash, named_set(sweep)), keys)
    assert trouble == ""
    assert [one["breed"] for one in facts] == [key.rpartition("_")[0] for key in keys]


def test_breeds_from_keys_or_not_at_all(sweep: Sweep, tmp_path: Path) -> None:
    where = ValSplit(record_of(sweep), sweep.manifest_hash, str(tmp_path / "gone"))
    kinds, trouble = kinds_of(["Bengal_1", "Bengal_2", "pug_1", "pug_2"], where)
    assert (kinds, trouble) == ([("Bengal", "cat")] * 2 + [("pug", "dog")] * 2, "")
    for keys in (["1", "2", "3"], ["IMG_1", "IMG_2", "IMG_3"], ["a_1", "b_2", "c_3"]):
        kinds, trouble = kinds_of(keys, where)
        assert kinds == []
        assert trouble.startswith("no shard set in")


@pytest.mark.parametrize(("limit", "read"), [(3, True), (2, False)])
def test_facts_are_read_of_so_many_pictures(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, read: bool
) -> None:
    told = [{"breed": "Bengal"}, {"breed": "Bengal"}, {"breed": "pug"}]
    monkeypatch.setattr(by_group, "MAX_FACTS", limit)
    monkeypatch.setattr(by_group, "load_facts", lambda where, keys: (told, ""))
    monkeypatch.setattr(by_group, "kinds_of_samples", lambda keys, facts: [one["breed"] for one in facts])
    where = ValSplit(record_of(sweep), sweep.manifest_hash, str(tmp_path / "gone"))
    kinds, trouble = kinds_of(["1", "2", "3"], where)
    assert kinds == (["Bengal", "Bengal", "pug"] if read else [])
    assert trouble == ("" if read else "val has more than 2 pictures, and their facts are not read")


@pytest.mark.slow
def test_pictures_need_no_torch(sweep: Sweep) -> None:
    script = "import sys; from jobs.report import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", script, str(sweep.folder), "--shards", named_set(sweep)]
    subprocess.run(command, check=True, timeout=120, cwd=REPOSITORY, capture_output=True)
    assert "data:image" in (sweep.folder / "report.html").read_text()


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_a_picture_is_drawn_as_the_network_saw_it(sweep: Sweep, fit: str) -> None:
    """In a rectangle, squashed or with margins that do not count."""
    record = record_of(sweep)
    assert record.config
    data = record.config["data"] | {"image_size_px": "32x96", "fit": fit}
    where = ValSplit(replace(record, config=record.config | {"data": data}), sweep.manifest_hash, named_set(sweep))
    reader = TarReader(open_store(named_set(sweep)), "val", "32x96", fit)
    samples, trouble = load_samples(where, {0: reader.key(0)})
    assert trouble == ""
    image, labels = np.empty((1, 32, 96, 3), np.uint8), np.empty((1, 32, 96), np.uint8)
    reader.load(np.array([0]), image, labels)
    assert np.abs(samples[0].image.astype(int) - image[0]).mean() < 3  # Pillow's bilinear, and torch's
    assert np.array_equal(samples[0].counted, labels[0] != 255)
    assert samples[0].counted.all() == (fit == "squash")
    values = reader.store.manifest.source.values
    assert np.array_equal(samples[0].truth, np.isin(labels[0], (values["pet"], values["border"])))
