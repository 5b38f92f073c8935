"""All commands alike: their help can be read and copied from, and one that is not installed says so in a line."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import venv
from importlib import import_module
from pathlib import Path

import pytest

from shards.command import CANCELLED, WRONG_USE, run_command
from shards.command.flags import help_text, parse
from tests.test_house import NAMES_OF_COMMANDS

REPOSITORY = Path(__file__).parents[1]
JOBS = "best cancel chain clean doctor logs predict report retry status sweep sync usage"
SCRIPTS = ["petseg.train", *(f"jobs.{name}" for name in JOBS.split())]
MODULES = [
    "petseg.augment.__main__", "petseg.best", "petseg.evaluate", "petseg.models.weights", "petseg.estimate",
    "petseg.predict", "petseg.demo", "petseg.export", "petseg.compress",
    "shards.duplicates", "shards.pack", "shards.show", "shards.verify", "slurm.rehearsal.__main__",
]  # fmt: skip
BENCHMARKS = ["benchmarks.loader", "benchmarks.step", "benchmarks.time_to_dice"]
# what takes long to import, or is for what few words ask for; the commands of shards/ are about pixels
HEAVY = (
    "torch", "accelerate", "scipy", "numpy", "PIL", "wandb", "jinja2", "optuna", "pyarrow", "submitit",
    "yaml",
)  # fmt: skip
PIXELS = ("numpy", "PIL")
HELP = """
import importlib, io, sys
from contextlib import redirect_stdout, suppress
module = importlib.import_module(sys.argv[1])
with suppress(SystemExit), redirect_stdout(io.StringIO()):
    module.main(["--help"])
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""
EXAMPLE = re.compile(r"^ *(?:python|accelerate) .*", flags=re.MULTILINE)


def examples_in(text: str) -> list[list[str]]:
    """The words of each command that a text shows."""
    return [found.split() for found in EXAMPLE.findall(text.replace("\\\n", ""))]


def shown_help(name: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        import_module(name).main([flag])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", [*SCRIPTS, *MODULES])
def test_examples_can_be_copied_from_the_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = examples_in(inspect.getdoc(import_module(name)) or "")
    assert examples
    text = shown_help(name, "--help", monkeypatch, capsys)
    above = re.split(r"\n\W*(?:options|positional arguments)\W*\n", text)[0]
    assert max(map(len, above.splitlines()[1:])) <= 80  # the first line is tyro's usage
    assert examples_in(above) == examples


@pytest.mark.parametrize("name", [*SCRIPTS, *MODULES, "petseg.run_folder.single_run"])
def test_a_command_reads_its_words_before_it_imports_what_is_heavy(name: str) -> None:
    """Help and a wrong flag do not wait for torch, which takes seconds; on a login node nothing is to."""
    unwanted = [one for one in HEAVY if not (name.startswith("shards.") and one in PIXELS)]
    command = [sys.executable, "-c", HELP, name, *unwanted]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


def test_help_of_training_has_the_data_first_and_fits_when_asked_in_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = shown_help("petseg.train", "--help", monkeypatch, capsys)
    groups = re.findall(r"^\W*(\w+) options\W*$", whole, flags=re.MULTILINE)
    assert groups == ["data", "augment", "model", "optim", "train", "distill", "tracking"]
    assert "     Size of the pictures that the network sees: 256 for a square" in whole
    short = shown_help("petseg.train", "-h", monkeypatch, capsys)
    flags = set(re.findall(r" (--\w+\.[\w-]+)", whole.partition("data options")[2]))
    assert flags <= set(re.findall(r" (--\w+\.[\w-]+)", short))
    assert len(short.splitlines()) < 130 < len(whole.splitlines())


def test_help_of_a_field_is_one_flow_of_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However its docstring is broken into lines."""
    text = " ".join(re.sub(r"[│\n]", " ", shown_help("jobs.sweep", "--help", monkeypatch, capsys)).split())
    assert "--trials-at-once INT How many of them train side by side, sharing the job's GPU and its CPU cores:" in text
    lines = shown_help("jobs.sweep", "--help", monkeypatch, capsys).splitlines()
    start = next(i for i, line in enumerate(lines) if "--trials-at-once" in line)
    assert [len(line.strip("│ ")) > 45 for line in lines[start + 1 : start + 3]] == [True, True]


def test_help_text_breaks_prose_and_keeps_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "42")
    text = help_text(
        """What it does, in words that do not fit into one line.

    python -m x --first a b --second c --third d --fourth e

    Fields:
      one: a
        b
      two: c
    """
    )
    assert text.split("\n\n") == [
        "What it does, in words that do not fit\ninto one line.",
        "    python -m x --first a b --second c \\\n        --third d --fourth e",
        "Fields:\n  one: a b\n  two: c",
    ]


def test_parse_reads_what_is_typed() -> None:
    options = import_module("jobs.launch.options")
    command = parse(options.Options, ["--name", "x", "--gpus", "2"], None)
    assert (command.name, command.resources.gpus_per_node) == ("x", 2)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("jobs.sweep", "--nme x", "unrecognized options: --nme, x; did you mean --name? ("),
        ("jobs.sweep", "--max-parallel -1", "--max-parallel -1: must be at least 0"),
        ("jobs.sweep", "--max-parallel few", "--max-parallel 'few': must be a whole number ("),
        ("jobs.sweep", "--cluster sge", "invalid choice 'sge' for argument '--cluster'. Expected one of ('slurm', "),
        ("petseg.train", "--optim.lr fast", "--optim.lr 'fast': must be a number ("),
        ("petseg.train", "--data.image-size-px 100", "data.image_size_px = 100: must be a multiple of 32"),
        ("petseg.train", "--train.batch-size 0", "train.batch_size = 0: must be at least 1"),
        ("petseg.train", "--model.arch net", "invalid choice 'net' for argument '--model.arch'. Expected one of ("),
        ("petseg.evaluate", "", "missing from "),
        ("shards.pack", "", "name exactly one of --source DIR, --download, --synthetic N, --images PATTERN (0 given)"),
        ("shards.pack", "--synthetic", "missing value for argument '--synthetic'"),
    ],
)  # fmt: skip
def test_words_that_are_not_understood_give_one_line(
    name: str, words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # which breaks none
    assert run_command(import_module(name).main, words.split()) == WRONG_USE
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert os.environ["COLUMNS"] == "60"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


BY_PATH = [[name.replace(".", "/") + ".py"] for name in SCRIPTS + MODULES]
BY_NAME = [["-m", name.removesuffix(".__main__")] for name in MODULES]
IMPORT_HOOK = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
ours = ("jobs", "petseg", "shards", "slurm", "usercustomize", "org")  # copy.py looks for Jython's org.python

def press(event, args):
    if event == "import" and args[0].partition(".")[0] not in (*ours, *sys.stdlib_module_names):
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(press)
"""


def test_no_command_is_left_out_here() -> None:
    assert {*SCRIPTS, *MODULES} == NAMES_OF_COMMANDS


@pytest.mark.parametrize("words", [*BY_PATH, *BY_NAME], ids=" ".join)
def test_ctrl_c_during_the_imports_shows_no_traceback(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(IMPORT_HOOK)
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode in (-signal.SIGINT, CANCELLED)  # a shell shows 130 for both
    assert (done.stdout, done.stderr) in [("", ""), ("", "interrupted\n")]


def test_ctrl_c_after_the_imports_is_one_line(tmp_path: Path) -> None:
    """tyro is imported when the words are read, within run_command."""
    at_tyro = IMPORT_HOOK.replace('if event == "import" and', 'if args[:1] == ("tyro",) and')
    (tmp_path / "sitecustomize.py").write_text(at_tyro)
    done = subprocess.run(
        [sys.executable, "shards/duplicates.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (CANCELLED, "", "interrupted\n")


@pytest.mark.parametrize("words", [*BY_PATH, *BY_NAME, *(["-m", name] for name in BENCHMARKS)], ids=" ".join)
def test_not_installed_is_one_line(bare_python: Path, words: list[str]) -> None:
    done = subprocess.run(
        [bare_python, *words, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"petseg is not installed in {bare_python}: `. .venv/bin/activate`; or see README.md"
    ]
