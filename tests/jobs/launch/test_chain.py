"""The steps of a chain: what is run here, and what each of its jobs is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.design.spec import Spec
from jobs.launch import chain as chain_module
from jobs.launch.chain import (
    PACK_OUT,
    Chain,
    _out_of,
    _same_place,
    _submit_pack_and_rest,
    _without,
    keep_sweep_file,
    run_here,
)
from jobs.launch.options import ChainOptions, split_words
from jobs.node.chain_steps import Step
from shards.command import FAILED, INTERRUPTED, OK
from slurm.resources import Resources


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    sweep = tmp_path / "lab.yaml"
    sweep.write_text("parameters: {train.seed: {values: [0, 1]}}\n")
    options = ChainOptions(
        steps=("pack", "train", "report"), sweep=sweep, name="lab", runs_dir=tmp_path / "runs",
        resources=Resources(partition="gpu", gpus_per_node=2, nodes=2, cpus_per_task=6, constraint="a100"),
    )  # fmt: skip
    spec = Spec("lab", {"train.seed": [0, 1]}, {"data.shards": "data/pets"})
    return Chain(options, spec, ("--gpus", "2", "--dependency", "afterok:7"), ("--out", "data/pets"))


@pytest.mark.parametrize(
    ("steps", "codes", "ran", "code"),
    [
        (("pack", "train", "report"), {}, ["shards.pack", "jobs.sweep", "jobs.report", "jobs.status"], OK),
        (("pack", "train", "report"), {"shards.pack": FAILED}, ["shards.pack"], FAILED),  # nothing to train on
        (("train", "report"), {"jobs.sweep": FAILED}, ["jobs.sweep", "jobs.report", "jobs.status"], FAILED),
        (("train", "report"), {"jobs.report": FAILED}, ["jobs.sweep", "jobs.report", "jobs.status"], FAILED),
        (
            ("train", "report"),
            {"jobs.sweep": INTERRUPTED, "jobs.status": FAILED},
            ["jobs.sweep", "jobs.report", "jobs.status"],
            INTERRUPTED,  # the first one: what followed may come of it
        ),
        (("pack",), {}, ["shards.pack"], OK),
        (("train",), {}, ["jobs.sweep"], OK),
        (("report",), {}, ["jobs.report", "jobs.status"], OK),
    ],
)
def test_the_steps_here_come_one_after_the_other_and_the_first_bad_code_counts(
    chain: Chain,
    monkeypatch: pytest.MonkeyPatch,
    steps: tuple[str, ...],
    codes: dict[str, int],
    ran: list[str],
    code: int,
) -> None:
    done: list[str] = []

    def run(step: Step, here: str) -> int:
        done.append(step.module)
        return codes.get(step.module, OK)

    monkeypatch.setattr(chain_module, "run_step", run)
    assert run_here(replace(chain, options=replace(chain.options, steps=steps))) == code
    assert done == ran


Submitted = list[tuple[str, Sequence[Step], str | None]]


def submitted(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Submitted:
    """The jobs of a chain that begins with a pack."""
    jobs: Submitted = []

    def submit_job(chain: Chain, name: str, steps: Sequence[Step], dependency: str | None) -> str:
        jobs.append((name, steps, dependency))
        return "12"

    monkeypatch.setattr(chain_module, "submit_job", submit_job)
    _submit_pack_and_rest(chain)
    return jobs


def test_the_rest_of_a_chain_waits_for_its_pack_with_a_copy_of_the_sweep_file(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = replace(chain.options.resources, dependency="afterok:7")
    options = replace(chain.options, resources=waits, side_partition="cpu")
    pack, rest = submitted(replace(chain, options=options), monkeypatch)
    assert pack == ("pack", [Step("shards.pack", ("--out", "data/pets", "--resume"))], "afterok:7")
    name, (step,), dependency = rest
    copy = keep_sweep_file(chain)
    assert (name, step.module, dependency) == ("train", "jobs.chain", "afterok:12")
    assert step.arguments == (
        "train", "report", "--gpus", "2", "--sweep", str(copy), "--name", "lab", "--side-partition", "cpu",
    )  # fmt: skip
    assert copy.read_bytes() == chain.options.sweep.read_bytes()


def test_a_pack_alone_is_one_job_and_resumes_only_once(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = replace(chain, options=replace(chain.options, steps=("pack",)), pack_flags=("--resume",))
    assert submitted(alone, monkeypatch) == [("pack", [Step("shards.pack", ("--resume",))], None)]


def test_what_is_edited_while_packing_is_another_sweep(chain: Chain) -> None:
    first = keep_sweep_file(chain)
    before = first.read_bytes()
    assert keep_sweep_file(chain) == first
    chain.options.sweep.write_text("parameters: {train.seed: {values: [2]}}\n")
    second = keep_sweep_file(chain)
    assert second != first
    assert (first.read_bytes(), second.read_bytes()) == (before, chain.options.sweep.read_bytes())


def test_the_small_jobs_ask_for_no_gpu_and_one_node(chain: Chain) -> None:
    pack, report = chain.side("pack"), chain.side("report")
    for small in (pack, report):
        assert (small.partition, small.nodes, small.gpus_per_node, small.tasks_per_node) == ("gpu", 1, 0, 1)
        assert small.constraint is None
    assert (pack.cpus_per_task, report.cpus_per_task) == (6, 1)
    assert replace(chain, options=replace(chain.options, side_partition="cpu")).side("pack").partition == "cpu"


def test_a_report_names_shards_that_are_a_folder(chain: Chain) -> None:
    report, status = chain.report_steps()
    assert report.arguments == (str(chain.folder), "--shards", "data/pets")
    assert (report.must, status.must) == (True, False)
    remote = replace(chain, spec=replace(chain.spec, fixed={"data.shards": "https://host/pets"}))
    assert remote.report_steps()[0].arguments == (str(chain.folder),)


@pytest.mark.parametrize(
    ("words", "before", "after"),
    [
        (["train", "--gpus", "2"], ["train", "--gpus", "2"], None),
        (["pack", "--pack"], ["pack"], ()),
        (["pack", "--x", "--pack", "--out", "a"], ["pack", "--x"], ("--out", "a")),
        (["--pack", "--pack"], [], ("--pack",)),
    ],
)
def test_what_follows_the_flag_goes_to_the_pack(
    words: list[str], before: list[str], after: tuple[str, ...] | None
) -> None:
    assert split_words(words) == (before, after)


@pytest.mark.parametrize(
    ("flags", "out"),
    [
        ((), PACK_OUT),
        (("--out", "a"), "a"),
        (("--out=a=b",), "a=b"),
        (("--out", "a", "--out=b"), "b"),
        (("--out",), ""),
    ],
)
def test_where_a_pack_goes(flags: tuple[str, ...], out: str) -> None:
    assert _out_of(flags) == out


def test_the_place_of_a_pack_is_compared_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _same_place("data/pets/", "data/pets")
    assert _same_place(str(tmp_path / "data"), "data")
    assert not _same_place("data/pets", "data")
    assert not _same_place("https://host/a", "https://host/a")


def test_a_flag_is_left_out_with_its_value() -> None:
    words = ["a", "--flag", "b", "--flag=c", "--flagged", "d", "--flag", "--flag", "e"]
    assert _without(words, "--flag") == ["a", "--flagged", "d", "e"]
    assert _without([], "--flag") == []
