"""Sweeps over shard sets: each cell's identity has its own set's hash, and what changes no identity is no axis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jobs.design.expansion import expand, field_value
from jobs.design.shard_sets import ShardSets, read_shard_sets
from jobs.design.spec import Spec, load_spec, parse_axes
from jobs.reporting.sections.protocol import protocol, warnings
from jobs.reporting.statistics.records import read_records, varied
from jobs.runs.sweep_file import load_sweep, save_sweep
from jobs.runs.trial import SWEEP_NAME
from jobs.runs.trials import plan_sweep
from jobs.sweep import main
from petseg.config import RunConfig
from petseg.config.values import field_types, identity_names, trial_id, with_values
from petseg.run_folder.layout import load_config
from shards.command import run_command
from shards.manifest import Manifest, load_manifest
from shards.pack import PackConfig, pack
from tests.jobs.conftest import Doctor
from tests.jobs.costed_sweeps import CPU, estimate_of, finish

# what the field goes with: encoders with architectures that are not the lab's own
NEEDED = {
    "model.encoder": {"model.arch": "fpn"}, "model.weights": {"model.arch": "fpn"},
    "data.rare_crops": {"data.fit": "crop"},
    "distill.weight": {"distill.teacher": "a.safetensors"}, "distill.temperature": {"distill.teacher": "a.safetensors"},
}  # fmt: skip
# another value of each field that takes no neighbouring number
OTHER = {
    "augment.mode": "add", "augment.policy": "flip", "augment.scale_max": 2.0, "data.border": "bg",
    "data.fit": "letterbox", "data.image_size_px": 512, "data.target": "trimap", "model.arch": "fpn",
    "model.encoder": "resnet18", "model.up": "transposed", "model.weights": "imagenet", "model.width": 32,
    "optim.name": "sgd", "optim.schedule": "poly", "train.class_weights": "frequency", "train.compile": "always",
    "model.init": "a.safetensors", "distill.teacher": "a.safetensors",
    "train.loss": "dice", "train.mixed_precision": "bf16", "train.start_size_px": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("other") / "shards"
    pack(PackConfig(out=out, synthetic=40, seed=9, image_size_px=64, workers=1))
    return out


def another(value: float) -> float:
    """A value near it, of the same type."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 0.9 * value + 0.01


@pytest.mark.parametrize("name", sorted(set(field_types()) - {"data.shards"}))
def test_a_field_changes_the_identity_or_cannot_be_an_axis(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"known by its content")
    if name not in identity_names():
        with pytest.raises(ValueError, match=rf"{name} cannot be an axis: it does not change a trial's numbers"):
            Spec("lab", {}).changed({name: [1, 2]}, {})
        return
    config = with_values(RunConfig(), NEEDED.get(name, {}))
    value = field_value(config, name)
    other = OTHER[name] if name in OTHER else another(value)
    assert trial_id(with_values(config, {name: other}), "") != trial_id(config, "")
    Spec("lab", {}).changed({name: [value, other]}, {})  # may be an axis


@pytest.mark.parametrize("name", ["data.cache", "data.threads", "tracking.wandb", "train.log_every"])
def test_a_sweep_file_cannot_vary_what_changes_no_number(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    for method in ({"method": "grid"}, {"method": "random", "run_cap": 3}):
        path.write_text(yaml.safe_dump({**method, "parameters": {name: {"values": ["none", "node"]}}}))
        with pytest.raises(ValueError, match=f"sweep.yaml: {name} cannot be an axis"):
            load_spec(path)
    path.write_text(yaml.safe_dump({"parameters": {name: {"value": "none"}}}))
    assert load_spec(path).fixed == {name: "none"}
    with pytest.raises(ValueError, match="cannot be an axis"):
        load_spec(path).changed(parse_axes([f"{name}=none,node"]), {})


def test_a_search_cannot_choose_the_shard_set(pet_shards: Path, other_shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    axis = {"data.shards": {"values": [str(pet_shards), str(other_shards)]}}
    path.write_text(yaml.safe_dump({"method": "bayes", "run_cap": 4, "parameters": axis}))
    with pytest.raises(ValueError, match=r"data\.shards decides what a Dice means: a search cannot choose it"):
        expand(load_spec(path))
    path.write_text(yaml.safe_dump({"method": "random", "run_cap": 2, "parameters": axis}))
    cells = expand(load_spec(path))
    assert len(read_shard_sets(cells).by_id(cells)) == 2


def test_cells_of_two_shard_sets_are_trials_of_their_own(
    pet_shards: Path, other_shards: Path, tiny_sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for word in tiny_sweep if not word.startswith("data.shards=")]
    flags = [w for at, w in enumerate(flags) if not (w == "--set" and flags[at + 1 : at + 2] == ["--set"])]
    flags += ["--axis", f"data.shards={pet_shards},{other_shards}", "--axis", "model.arch=unet"]
    assert run_command(main, [*flags, "--cluster", "debug"]) == 0
    assert "2 trials, 0 done, 0 queued or running, 2 to submit" in capsys.readouterr().out

    sweep = load_sweep(tmp_path / "runs" / "lab")
    one, other = sweep.trials
    hashes = [load_manifest(folder).hash for folder in (pet_shards, other_shards)]
    assert [sweep.hash_of(trial) for trial in (one, other)] == hashes
    assert [load_config(trial.folder)["identity"]["manifest_hash"] for trial in (one, other)] == hashes
    assert all(trial.result() for trial in (one, other))
    assert [trial.axes["data.shards"] for trial in (one, other)] == [str(pet_shards), str(other_shards)]

    assert run_command(main, [*flags, "--cluster", "debug"]) == 0
    assert "2 trials, 2 done, 0 queued or running, 0 to submit" in capsys.readouterr().out

    records = read_records(sweep)
    facts = dict(protocol(sweep, records))
    assert facts["Manifest hash"] == f"{pet_shards}: {hashes[0]}; {other_shards}: {hashes[1]}"
    assert facts["Near-identical pictures"] == "no near-identical pictures lie across splits"
    assert facts["Splits"] == f"{pet_shards}: 27 train / 3 val / 30 test; {other_shards}: 18 train / 2 val / 20 test"
    assert any("differ in shard set" in line for line in warnings(records, varied(sweep, records), list(sweep.axes)))


def test_without_such_an_axis_sweep_json_and_ids_stay(pet_shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    spec = Spec("lab", {"train.seed": [0, 1]}, {"data.shards": str(pet_shards)})
    cells = expand(spec)
    sweep = plan_sweep(spec, cells, read_shard_sets(cells), tmp_path)
    assert [trial.id for trial in sweep.trials] == [trial_id(cell.config, manifest.hash) for cell in cells]
    save_sweep(sweep)
    content = json.loads((tmp_path / SWEEP_NAME).read_text())
    assert content["trials"] == [{"id": trial.id, "axes": trial.axes} for trial in sweep.trials]
    del content["shard_sets"]  # as an earlier version wrote it
    (tmp_path / SWEEP_NAME).write_text(json.dumps(content))
    old = load_sweep(tmp_path)
    assert (old.trials, old.hashes) == (sweep.trials, (manifest.hash,))
    facts = dict(protocol(old, read_records(old)))
    assert (facts["Shard set"], facts["Manifest hash"]) == (str(pet_shards), manifest.hash)  # the set is not opened


def test_a_sweep_can_take_up_a_second_set(pet_shards: Path, other_shards: Path, tmp_path: Path) -> None:
    fixed = {"data.shards": str(pet_shards)}
    first = Spec("lab", {"train.seed": [0, 1]}, fixed)
    before = plan_sweep(first, expand(first), read_shard_sets(expand(first)), tmp_path)
    save_sweep(before)
    both = Spec("lab", {"data.shards": [str(other_shards), str(pet_shards)], "train.seed": [0]})
    cells = expand(both)
    sweep = plan_sweep(both, cells, read_shard_sets(cells), tmp_path)
    save_sweep(sweep)
    assert load_sweep(tmp_path) == sweep
    assert (sweep.manifest_hash, len(sweep.trials)) == (before.manifest_hash, 3)
    assert [trial.axes["data.shards"] for trial in sweep.trials] == [
        str(pet_shards),
        str(pet_shards),
        str(other_shards),
    ]
    assert {trial.id for trial in before.trials} < {trial.id for trial in sweep.trials}
    alone = Spec("lab", {"train.seed": [0]}, {"data.shards": str(other_shards)})  # by then one of the sweep's
    assert plan_sweep(alone, expand(alone), read_shard_sets(expand(alone)), tmp_path) == sweep


def test_what_would_be_one_trial_twice_is_refused(
    pet_shards: Path, copied: Path, tmp_path: Path, manifest: Manifest
) -> None:
    cells = expand(Spec("lab", {"data.shards": [str(pet_shards), str(copied)]}))
    with pytest.raises(ValueError, match=f"{pet_shards} and {copied} hold the same shard set"):
        read_shard_sets(cells)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"the same")
    files = [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    spec = Spec("lab", {"model.weights": files}, {"model.arch": "fpn", "data.shards": str(pet_shards)})
    with pytest.raises(ValueError, match=r"model.weights = '.*a.pt' and '.*b.pt' give the same trial"):
        plan_sweep(spec, expand(spec), ShardSets({str(pet_shards): manifest}), tmp_path)


def test_each_cells_cost_is_that_of_its_set(pet_shards: Path, other_shards: Path, tmp_path: Path) -> None:
    axes = {"data.shards": [str(pet_shards), str(other_shards)], "train.seed": [0, 1]}
    spec = Spec("lab", axes, {"data.image_size_px": 64, "model.width": 4, "train.batch_size": 8, "train.epochs": 10})
    cells = expand(spec)
    sets = read_shard_sets(cells)
    chosen, sweep = sets.by_id(cells), plan_sweep(spec, cells, sets, tmp_path / "runs" / "lab")
    save_sweep(sweep)
    for trial in sweep.trials[::2]:
        finish(trial, chosen[trial.id].config, sets.of(chosen[trial.id].config), epoch_s=60.0)
    costs = estimate_of(sweep, chosen, sets, CPU, max_parallel=1).trials
    assert [cost.source.startswith("records of 1 trial,") for cost in costs] == [True, True]
    assert costs[0].seconds > costs[1].seconds > 0  # type: ignore[operator]


def test_the_doctor_looks_at_every_set(ask: Doctor, pet_shards: Path, other_shards: Path) -> None:
    flags = ["--axis", f"data.shards={pet_shards},{other_shards}", "--axis", "train.seed=0"]
    found = ask("config,shards,splits", *flags)
    assert found["config"].detail.startswith("12 cells")
    assert "27 train" in found["splits"].detail
    assert "18 train" in found["splits"].detail
    shard = next(other_shards.glob("*.tar"))
    aside = shard.rename(shard.with_suffix(".aside"))
    try:
        assert ask("shards", *flags)["shards"].status == "FAIL"
    finally:
        aside.rename(shard)
