"""A pack into a folder that has a set: which other wishes are refused, in which words, and what is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shards import pack as pack_module
from shards.classes import ClassEntry
from shards.command import OK, Failure, run_command
from shards.labels.faults import Fault
from shards.labels.rules import load_rules
from shards.manifest import MANIFEST_NAME, Manifest, Shard, Source, Split, load_manifest, save_manifest
from shards.near_duplicates.note import NEAR_DUPLICATES_NAME, NearDuplicates
from shards.pack import Outcome, PackConfig, _identity_of, _print_summary, check, main, pack
from shards.packing import publish
from shards.packing.pictures import ODDITIES
from shards.packing.plan import BuildOptions, ShardPlan
from shards.sources.listing import Listed, Listing


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def config_of(source: Path, out: Path, **changes: object) -> PackConfig:
    return PackConfig(**({"out": out, "source": source, "samples_per_shard": 10, "workers": 1} | changes))


def different(out: Path, why: str) -> str:
    return f"{out} holds a different shard set ({why}): --overwrite replaces it, or choose another --out"


def refusal(use, config: PackConfig) -> str:
    before = files_of(config.out)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message follows
        use(config)
    assert files_of(config.out) == before
    return str(error.value)


@pytest.mark.parametrize("use", [pack, check])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"image_size_px": 32}, "its image_size_px is 0, not 32"),
        ({"samples_per_shard": 11}, "its samples_per_shard is 10, not 11"), ({"seed": 1}, "its seed is 0, not 1"),
        ({"drop_duplicates": True}, "it was packed without --drop-duplicates"),
    ],
)  # fmt: skip
def test_a_set_of_other_settings_is_not_replaced(shard_set: Path, drawn: Path, use, change: dict, why: str) -> None:
    assert refusal(use, config_of(drawn, shard_set, **change)) == different(shard_set, why)
    check(config_of(drawn, shard_set, **change, overwrite=True))
    check(config_of(drawn, shard_set))


@pytest.mark.parametrize("use", [pack, check])
def test_what_another_version_or_program_left_is_not_replaced(shard_set: Path, drawn: Path, use) -> None:
    manifest = load_manifest(shard_set)
    save_manifest(replace(manifest, packer=manifest.packer | {"jpeg_quality": 90}), shard_set)
    assert refusal(use, config_of(drawn, shard_set)) == different(shard_set, "its jpeg_quality is 90, not 95")
    (shard_set / MANIFEST_NAME).write_text("{}")
    said = refusal(use, config_of(drawn, shard_set))
    version = "has format version None, this petseg reads 1 and 2"
    assert said == f"{shard_set / MANIFEST_NAME} {version}: pack it again, with --overwrite"
    check(config_of(drawn, shard_set, overwrite=True))
    (shard_set / MANIFEST_NAME).unlink()
    assert refusal(use, config_of(drawn, shard_set)) == different(shard_set, "it has shards without a manifest")
    check(config_of(drawn, shard_set, overwrite=True))


def test_a_table_that_differs_is_not_replaced(scenes, tmp_path: Path) -> None:
    for number in range(4):
        scenes.add(f"s{number}", "train" if number else "val")
    config = scenes.config(tmp_path / "set")
    pack(config)
    check(config)
    text = scenes.table.read_text()
    scenes.table.write_text(text.replace("#00ff00", "#00ff01"))
    for use in (check, pack):
        assert refusal(use, config) == different(config.out, "its classes have other colours")
    scenes.table.write_text(text.replace('"car"', '"lorry"'))
    said = refusal(check, config)
    assert said.startswith(f"{config.out} holds a different shard set (")
    assert "lorry" in said
    assert "car" in said
    check(replace(config, overwrite=True))
    manifest = load_manifest(config.out)
    assert manifest.classes is not None
    assert manifest.classes.classes[1] == ClassEntry("tree", 1, (0, 255, 0))


def test_a_set_of_three_values_has_no_table_to_compare(scenes, shard_set: Path) -> None:
    scenes.add("s0")
    scenes.add("s1", "val")
    config = scenes.config(shard_set, samples_per_shard=10)
    assert refusal(check, config) == different(shard_set, "one has a class table, and the other has none")


def test_a_check_alone_packs_nothing_and_asks_for_no_folder(drawn: Path, tmp_path: Path, shard_set: Path) -> None:
    before = files_of(shard_set)
    for out in (tmp_path / "nowhere", shard_set):
        words = ["--source", str(drawn), "--out", str(out), "--samples-per-shard", "10", "--check"]
        assert run_command(main, words) == OK
    assert files_of(shard_set) == before
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ValueError, match="is not a folder"):
        check(config_of(tmp_path / "pictures", tmp_path / "nowhere"))
    check(PackConfig(out=tmp_path / "nowhere", download=True))  # which shows the pictures


def test_a_set_that_is_there_gets_the_note_that_it_lacks(shard_set: Path, packed: Path, drawn: Path) -> None:
    (shard_set / NEAR_DUPLICATES_NAME).unlink()
    inodes = {path.name: path.stat().st_ino for path in shard_set.iterdir()}
    outcome = pack(config_of(drawn, shard_set))
    assert outcome.was_there
    assert outcome.manifest == load_manifest(packed)
    assert files_of(shard_set) == files_of(packed)
    assert {name: (shard_set / name).stat().st_ino for name in inodes} == inodes


@pytest.mark.parametrize("drops", [True, False])
def test_the_work_is_done_as_it_was_asked_for(
    scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drops: bool
) -> None:
    """Pictures are compared as they are packed; the workers are as many as the samples are worth, or as were named."""
    for number in range(4):
        scenes.add(f"s{number}", "train" if number else "val")
    compared: list[dict] = []
    built: list[tuple] = []

    def without(samples: Sequence[Listed], **options: object) -> tuple[Sequence[Listed], list[str]]:
        compared.append(options)
        return samples[1:], [samples[0].key]

    def build(plan: list[ShardPlan], options: BuildOptions, finished: dict) -> list:
        built.append((sum(len(one.samples) for one in plan), options, finished))
        raise Failure("that is all")

    monkeypatch.setattr(pack_module, "without_twins", without)
    monkeypatch.setattr(pack_module, "build_shards", build)
    config = scenes.config(tmp_path / "set", image_size_px=64, max_corrupt=3, workers=7, drop_duplicates=drops)
    with pytest.raises(Failure, match="that is all"):
        pack(config)
    ((number, options, finished),) = built
    assert (number, finished) == (3 if drops else 4, {})
    assert (options.folder, options.image_size_px) == (config.out / publish.STAGING, 64)
    assert (options.num_workers, options.max_corrupt, options.rules) == (7, 3, load_rules(scenes.table))
    assert [(one["image_size_px"], one["num_workers"]) for one in compared] == [(64, 7)] * drops
    assert not config.out.exists()


def test_what_identifies_pictures_that_are_drawn_aside_is_what_they_are_drawn_from(drawn: Path, tmp_path: Path) -> None:
    listing = Listing(Source("x", ""), ())
    asides = [
        PackConfig(out=tmp_path, synthetic=number, synthetic_longer_side_px=side) for number, side in ((9, 64), (8, 32))
    ]
    assert [_identity_of(listing, config) for config in asides] == [
        {"synthetic": 9, "longer_side_px": 64}, {"synthetic": 8, "longer_side_px": 32},
    ]  # fmt: skip
    kept = replace(asides[0], synthetic_folder=tmp_path)
    for config in (kept, config_of(drawn, tmp_path)):
        assert _identity_of(listing, config).keys() == {"listing_sha256"}


def outcome_of(oddities: dict[str, list[str]], counts: dict[str, int], **changes: object) -> Outcome:
    sizes = {"train": 1_250_000_000, "val": 60_000}
    shards = tuple(Shard(f"{split}.tar", split, 1, num_bytes, "", "") for split, num_bytes in sizes.items())
    packer = {"oddities": {kind: len(names) for kind, names in oddities.items()}}
    splits = {"train": Split(1200, ""), "val": Split(7, "")}
    manifest = Manifest(Source("streets", ""), packer, splits, shards, hash="0123456789abcdef")
    outcome = Outcome(manifest, oddities, False, NearDuplicates("", "", 0, counts, (), {}))
    return replace(outcome, **changes)


def summary(outcome: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The words of each line, less the lines of its tables."""
    monkeypatch.setenv("COLUMNS", "200")
    _print_summary(outcome, Path("my set"))
    lines = capsys.readouterr().out.splitlines()
    return [line.replace("│", " ").split() for line in lines if not set(line) & set("┏┡└━")]


def test_the_summary_counts_samples_shards_and_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = summary(outcome_of({}, {}), monkeypatch, capsys)
    assert [" ".join(line) for line in lines if line[0] != "┃"] == [
        "streets in my set", "train 1,200 1 1,250.0", "val 7 1 0.1", "hash 0123456789",
    ]  # fmt: skip
    lines = summary(outcome_of({}, {}, was_there=True), monkeypatch, capsys)
    assert " ".join(lines[-1]) == "it was there already, hash 0123456789"


def test_the_summary_names_duplicates_faults_and_oddities_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"n{number}" for number in range(60)]
    fault = Fault("one_value", 3, ("here",))
    oddities = {"not_rgb": names[:5], "not_jpeg": names[:6], "suspect_picture": names, "corrupt_jpeg": names[:50]}
    outcome = outcome_of(oddities, {"train-val": 2, "train-test": 0}, faults=(fault,))
    text = [" ".join(line) for line in summary(outcome, monkeypatch, capsys)]
    assert (
        "2 near-identical pairs lie across splits (2 train-val): `python -m shards.duplicates 'my set'` names them"
    ) in text
    assert " ".join(f"fault of the labels: {fault}".split("\n")[0].split()) in text
    whole = " ".join(text)
    assert f"not_rgb: {ODDITIES['not_rgb']} 5 n0, n1, n2, n3, n4 not_jpeg: {ODDITIES['not_jpeg']}" in whole
    assert "6 n0, n1, n2, n3, n4, ..." in whole
    shown = ", ".join(names[:50])
    assert whole.count("n49") == 3  # of both kinds that are to be looked at, and of the command that shows them
    assert "n50" not in whole
    assert f"look at them: python -m shards.show 'my set' --keys {shown.replace(',', '')}" in whole


def test_a_table_that_is_written_is_named_with_its_sheet(
    scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pack_module, "write_table", lambda config: (config.out / "c\x1b.toml", config.out / "c.png"))
    words = ["--images", scenes.images, "--masks", scenes.masks, "--classes", "auto", "--out", str(tmp_path)]
    assert run_command(main, words) == OK
    table = f"{tmp_path}/c\\x1b.toml"
    assert capsys.readouterr().out == (
        f"{table}: name the classes, check them by {tmp_path}/c.png, then pack with --classes {table}\n"
    )
