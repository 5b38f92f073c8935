"""What the flags of the command reach, how findings are shown, and when a set is worth more workers."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from shards import verify as verify_module
from shards.command import OK, WRONG_USE, run_command
from shards.foreign.index import ForeignConfig, Indexed
from shards.foreign.scan import LeftOut, Named
from shards.integrity.damage import Damage, Report
from shards.manifest import MANIFEST_NAME, THREE_VALUES, Manifest, Shard, Source, load_manifest, split_of_keys
from shards.verify import DAMAGED, MIN_BYTES_FOR_WORKERS, VerifyConfig, _check_set, _print_findings, main, verify


@pytest.mark.parametrize(("show", "rows", "more"), [(1, 1, "and 2 more"), (2, 2, "and 1 more"), (3, 3, ""), (9, 3, "")])
def test_findings_of_each_shard_are_shown_to_a_limit_and_counted(
    capsys: pytest.CaptureFixture[str], show: int, rows: int, more: str
) -> None:
    findings = [Damage("a.tar", f"key{number}", number, "altered") for number in range(3)]
    _print_findings([*findings, Damage("b.tar", "other", None, "altered")], show)
    out = capsys.readouterr().out
    assert "4 findings" in out
    assert sum(f"key{number}" in out for number in range(3)) == rows
    assert "other" in out
    assert out.count(" more") == bool(more)
    assert more in out


@pytest.mark.parametrize(("size", "workers"), [(MIN_BYTES_FOR_WORKERS - 1, 1), (MIN_BYTES_FOR_WORKERS, 5)])
def test_workers_are_started_where_a_set_is_worth_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, workers: int
) -> None:
    (tmp_path / "train-000000.tar").touch()
    os.truncate(tmp_path / "train-000000.tar", size)  # a file with a hole takes no room
    asked: list[int] = []
    monkeypatch.setattr(verify_module, "default_workers", lambda: 5)
    monkeypatch.setattr(verify_module, "verify", lambda folder, decode, num_workers: asked.append(num_workers) or [1])
    monkeypatch.setattr(verify_module, "_print_findings", lambda findings, show: None)
    for flags in ([], ["--workers", "3"]):
        assert main([str(tmp_path), *flags]) == DAMAGED
    assert asked == [workers, 3]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch, packed: Path) -> list[tuple]:
    """What main hands on, in order, where the set is whole and repair puts two files back."""
    calls: list[tuple] = []

    def repaired(folder: Path, source: Path, *, num_workers: int) -> list[str]:
        calls.append(("repair", folder, source, num_workers))
        return ["a.tar", "a\x1b.index.json"]

    def checked(folder: Path, *, decode: bool, num_workers: int) -> list[Damage]:
        calls.append(("verify", folder, decode, num_workers))
        return []

    def indexed(folder: Path, config: ForeignConfig, *, num_workers: int) -> Indexed:
        calls.append(("index", folder, config, num_workers))
        return Indexed(load_manifest(packed), LeftOut(Counter({".txt": 1200, ".cls": 8}), Named(["a", "b", "c"], 1003)))

    monkeypatch.setattr(verify_module, "repair", repaired)
    monkeypatch.setattr(verify_module, "verify", checked)
    monkeypatch.setattr(verify_module, "index_folder", indexed)
    return calls


@pytest.mark.parametrize(
    ("flags", "decode", "num_workers"), [([], True, 1), (["--no-decode"], False, 1), (["--workers", "7"], True, 7)]
)
def test_a_check_gets_its_flags_after_what_repair_has_put_back(
    packed: Path, handed: list[tuple], flags: list[str], decode: bool, num_workers: int
) -> None:
    source = packed.parent
    assert main([str(packed), "--repair", str(source), *flags]) == OK
    wanted = 7 if "7" in flags else 0  # repair itself knows how many its samples are worth
    assert handed == [("repair", packed, source, wanted), ("verify", packed, decode, num_workers)]


def test_files_that_were_put_back_are_named(
    packed: Path, handed: list[tuple], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = f"whole: 27 train, 3 val, 30 test samples in 7 shards, hash {load_manifest(packed).hash[:10]}\n"
    assert main([str(packed), "--repair", str(packed)]) == OK
    assert capsys.readouterr().out == f"{whole}rebuilt: a.tar, a\\x1b.index.json\n"
    assert main([str(packed)]) == OK
    assert capsys.readouterr().out == whole


def test_an_index_gets_all_its_flags_and_tells_what_is_left_out(
    packed: Path, handed: list[tuple], capsys: pytest.CaptureFixture[str]
) -> None:
    values = {name: 3 + value for name, value in THREE_VALUES.items()}
    flags = ["--image-suffix", "a.jpg", "--mask-suffix", "b.png", "--split", "val", "--workers", "3", "--show", "2"]
    flags += [word for name, value in values.items() for word in (f"--trimap.{name}", str(value))]
    assert main([str(packed), "--index", *flags]) == OK
    assert handed == [("index", packed, ForeignConfig("a.jpg", "b.png", values, "val"), 3)]
    assert capsys.readouterr().out == (
        f"indexed: 27 train, 3 val, 30 test samples in 7 shards, hash {load_manifest(packed).hash[:10]}\n"
        "left out: 8 .cls, 1,200 .txt\n"
        "left out, 1,003 without picture and mask:\n  a\n  b\n  and 1,001 more\n"
    )
    assert main([str(packed), "--index"]) == OK
    assert handed[1:] == [("index", packed, ForeignConfig(), 1)]


@pytest.mark.parametrize(
    "changes", [{"image_suffix": "x"}, {"mask_suffix": "x"}, {"trimap": THREE_VALUES | {"background": 0}},
                {"split": "train"}],
)  # fmt: skip
def test_what_describes_foreign_shards_needs_an_index(changes: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--image-suffix, --mask-suffix, --trimap and --split need --index$"):
        VerifyConfig(tmp_path, **changes)
    assert VerifyConfig(tmp_path, index=True, **changes).foreign() != ForeignConfig()


def test_an_index_and_a_repair_are_two_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(tmp_path), "--index", "--repair", str(tmp_path)]) == WRONG_USE
    assert capsys.readouterr().err == "error: --index and --repair: do one after the other\n"


def test_a_finding_is_a_row_of_file_sample_byte_and_problem(capsys: pytest.CaptureFixture[str]) -> None:
    _print_findings([Damage("a.tar", "k1", 0, "is cut"), Damage("b.tar", "", None, "is gone")] * 2, show=1)
    cells = [re.split(r" *│ *", line.strip(" │")) for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert cells == [["a.tar", "k1", "0", "is cut"], ["b.tar", "", "", "is gone"]] * 2
    _print_findings([Damage("a.tar", f"k{number}", number, "is cut") for number in range(4)], show=1)
    cells = [re.split(r" *│ *", line.strip(" │")) for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert cells == [["a.tar", "k0", "0", "is cut"], ["a.tar", "", "", "and 3 more"]]


def test_what_only_all_shards_together_show() -> None:
    """A key in two shards, one that no reader takes, and a split of other keys than were packed."""
    shards = [Shard(f"{split}.tar", split, 2, 0, "", "") for split in ("train", "val")]
    keys = [("a", "b"), ("a", "c.d")]
    reports = [Report(shard, found, ()) for shard, found in zip(shards, keys, strict=True)]
    splits = {"train": split_of_keys(keys[0]), "val": split_of_keys(["a", "c", "e"])}
    actual = split_of_keys(keys[1])
    assert _check_set(Manifest(Source("x", ""), {}, splits, tuple(shards)), reports) == [
        Damage("val.tar", "c.d", None, "the key must match [A-Za-z0-9_-]+"),
        Damage("train.tar", "a", None, "the key is there 2 times: train.tar, val.tar"),
        Damage(
            MANIFEST_NAME, "", None,
            f"split val has 2 samples with key XOR {actual.key_xor}, the manifest says 3 with {splits['val'].key_xor}",
        ),
    ]  # fmt: skip


def test_strays_come_last_and_by_name(shard_set: Path) -> None:
    (shard_set / "val-000000.tar").unlink()
    for name in ("b.tar", "a.index.json", "a.tar", "notes.txt"):
        (shard_set / name).touch()
    strays = [finding.shard for finding in verify(shard_set) if finding.problem == "is not in the manifest"]
    assert strays == [finding.shard for finding in verify(shard_set)][-3:] == ["a.index.json", "a.tar", "b.tar"]


def test_fewer_than_no_findings_are_none(
    shard_set: Path, handed: list[tuple], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Damage("a.tar", "k1", 0, "is cut"), Damage("a.tar", "k2", 9, "is cut")]
    monkeypatch.setattr(verify_module, "verify", lambda folder, decode, num_workers: findings)
    assert main([str(shard_set), "--show", "-1"]) == DAMAGED
    shown = capsys.readouterr().out
    assert "and 2 more" in shown
    assert "k1" not in shown
    assert main([str(shard_set), "--index", "--show", "-1"]) == OK
    assert capsys.readouterr().out.endswith("without picture and mask:\n  and 1,003 more\n")


def test_a_manifest_that_cannot_be_read_is_the_one_finding(shard_set: Path) -> None:
    (shard_set / MANIFEST_NAME).write_text("{}")
    said = f"{shard_set / MANIFEST_NAME} has format version None, this petseg reads 1 and 2: pack it again"
    assert verify(shard_set) == [Damage(MANIFEST_NAME, "", None, said)]
    (shard_set / MANIFEST_NAME).unlink()
    with pytest.raises(ValueError, match="it has tar files but no manifest"):
        verify(shard_set)


def test_shards_are_counted_as_they_are_verified(packed: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert verify(packed, decode=False) == []
    assert caplog.messages[-1] == "verified: 7 of 7"
    assert len(caplog.messages) == 7
