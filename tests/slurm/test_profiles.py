from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from slurm import profiles
from slurm.arrays import render_sbatch
from slurm.profiles import load_profile, profile_of
from slurm.request import Request
from slurm.resources import Resources


@dataclass(frozen=True)
class Command:
    """A command line as jobs/sweep.py has it."""

    resources: Annotated[Resources, tyro.conf.arg(name="")]
    profile: str | None = None
    max_parallel: int = 0


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "petseg" / "profiles.toml"
    path.parent.mkdir()
    path.write_text('[a100]\npartition = "gpu"\ngpus = 8\nmem_gb = 480\ncpus-per-task = 4\nrequeue = false\n')
    return path


def parse(*argv: str) -> Command:
    return tyro.cli(Command, args=argv, default=Command(resources=profile_of(argv)))


def test_flags_override_the_profile_and_the_profile_the_defaults(own_file: Path):
    a100 = Resources(partition="gpu", gpus_per_node=8, mem_gb=480, cpus_per_task=4, requeue=False)
    assert parse("--profile", "a100").resources == a100
    command = parse("--gpus", "4", "--requeue", "--profile=a100", "--partition", "None", "--max-parallel", "2")
    assert command == Command(
        Resources(gpus_per_node=4, mem_gb=480, cpus_per_task=4, requeue=True), profile="a100", max_parallel=2
    )
    assert parse("--gpus", "4").resources == Resources(gpus_per_node=4)
    assert parse("--profile", "rehearsal", "--profile", "a100").resources == a100


def test_a_profile_is_a_set_of_fields(own_file: Path):
    assert load_profile("rehearsal") == {
        "partition": "gpu",
        "gpus_per_node": 0,
        "cpus_per_task": 1,
        "mem_gb": 1,
        "timeout_min": 10,
    }
    own_file.write_text("[rehearsal]\nnodes = 2\n")
    assert load_profile("rehearsal") == {"nodes": 2}


def test_an_unknown_profile_lists_the_choices(own_file: Path):
    with pytest.raises(ValueError, match=r"no profile 'a10': choose one of a100 \(.*petseg.*\), rehearsal \(.*slurm"):
        profile_of(["--profile", "a10"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a100]\ngpu = 8\n", r"profile \[a100\]: unknown field 'gpu': choose from partition, nodes, gpus, "),
        ('[a100]\ngpus = "8"\n', r"profile \[a100\]: gpus = '8': must be a whole number"),
        ("[a100]\ngpus = true\n", r"gpus = True: must be a whole number"),
        ("[a100]\npartition = 1\n", r"partition = 1: must be a string"),
        ("[a100]\nrequeue = 1\n", r"requeue = 1: must be true or false"),
        ("[a100]\nmem-gb = 1\nmem_gb = 2\n", r"mem_gb: given twice"),
        ("[a100]\nmem_gb = 1\nmem-gb = 2\n", r"mem-gb: given twice"),
        ("[a100]\ncpus-per-task = 1\ncpus_per_task = 1\n", r"cpus_per_task: given twice"),
        ("[a100]\ngpus = 1\ngpus = 2\n", r"profiles.toml: .*line 3"),
        ("[a100]\nnodes = 0\n", r"profile \[a100\]: nodes=0: must be at least 1"),
        ("gpus = 8\n", r"gpus stands outside of any profile"),
        ("[a100\n", r"profiles.toml: Expected"),
    ],
)
def test_wrong_files_are_named(own_file: Path, text: str, message: str):
    own_file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_profile("a100")
    assert str(own_file) in str(caught.value)


def test_without_an_absolute_xdg_folder_the_home_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "somewhere"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert profiles.user_file() == tmp_path / ".config" / "petseg" / "profiles.toml"
    assert profile_of([]) == Resources()


def test_the_examples_that_ship_are_right_once_uncommented(own_file: Path):
    _, marker, examples = profiles.SHIPPED.read_text().partition("# [a100]\n")
    lines = (marker + examples).splitlines()
    own_file.write_text(
        "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# ") and ":" not in line)
    )
    assert load_profile("a100")["gpus_per_node"] == 8
    assert load_profile("scavenger")["requeue"] is False


def test_the_parser_complains_of_a_missing_profile_name(own_file: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("--profile")
    assert "--profile" in capsys.readouterr().err


@pytest.mark.slurm
def test_the_rehearsal_profile_fits_the_rehearsal(on_cluster, own_file: Path, tmp_path: Path):
    resources = profile_of(["--profile", "rehearsal"])
    script = tmp_path / "job.sh"
    script.write_text(render_sbatch(2, Request(tmp_path, resources, "t", 1)))
    done = subprocess.run(
        ["sbatch", "--test-only", str(script)], capture_output=True, text=True, timeout=30, check=True
    )
    assert "to start at" in done.stderr


def test_files_of_other_editors(own_file: Path) -> None:
    text = '[a100]\npartition = "gpu"\n'
    own_file.write_text(text, encoding="utf-8-sig")
    assert load_profile("a100")["partition"] == "gpu"
    own_file.write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=r"profiles\.toml is not UTF-8 .*: save it as UTF-8"):
        load_profile("a100")


def test_the_programs_own_arguments_are_read_where_none_are_given(own_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["sweep.py", "--profile=a100"])
    assert profile_of(None).gpus_per_node == 8
    monkeypatch.setattr("sys.argv", ["--profile=a100"])  # the name of the program
    assert profile_of(None) == Resources()
    assert profile_of(["--profile"]) == Resources()
    with pytest.raises(ValueError, match=r"^no profile '': choose one of "):
        profile_of(["--profile="])


def test_an_unknown_profile_says_where_to_add_it(own_file: Path):
    own_file.unlink()
    shipped = f"choose one of rehearsal ({profiles.SHIPPED})"
    message = f"no profile 'a100': {shipped}, or add [a100] to {own_file}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_profile("a100")


def test_a_file_that_cannot_be_read_is_not_taken_for_none(own_file: Path):
    own_file.unlink()
    own_file.mkdir()
    with pytest.raises(IsADirectoryError):
        load_profile("rehearsal")


def test_every_flag_of_the_resources_can_stand_in_a_profile(own_file: Path):
    words = ["partition", "account", "qos", "wckey", "constraint", "exclude", "dependency", "comment"]
    numbers = ["nodes", "gpus", "tasks-per-node", "cpus-per-task", "mem-gb", "timeout-min", "signal-delay-s", "nice"]
    lines = [*(f'{word} = "x"' for word in words), *(f"{number} = 1" for number in numbers), "requeue = false"]
    own_file.write_text("\n".join(["[a100]", *lines]))
    everything = Resources(
        **dict.fromkeys(words, "x"), nodes=1, gpus_per_node=1, tasks_per_node=1, cpus_per_task=1, mem_gb=1,
        timeout_min=1, signal_delay_s=1, nice=1, requeue=False,
    )  # fmt: skip
    assert profile_of(["--profile", "a100"]) == everything
    own_file.write_text("[a100]\nmem_gb = 0.5\ntimeout_min = 1.5\n")
    with pytest.raises(ValueError, match=r"profile \[a100\]: timeout_min = 1\.5: must be a whole number$"):
        load_profile("a100")
    own_file.write_text('[a100]\nmem_gb = "1"\n')
    with pytest.raises(ValueError, match=r"profile \[a100\]: mem_gb = '1': must be a number$"):
        load_profile("a100")
