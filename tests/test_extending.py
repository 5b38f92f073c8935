"""docs/extending.md: each recipe is applied to a copy of the packages, and its command does what the recipe says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.report_sweep import make_sweep

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "extending.md"
PACKAGES = ("jobs", "petseg", "shards", "slurm")
RECIPES = ("A model", "An augmentation", "A loss", "A metric", "A doctor check", "A report section")
TRAINED_BY = "--train.batch-size 8 --data.threads 1 --tracking.overlays 0 --train.no-test"
# All commands in one process: torch and accelerate take seconds to import.
RUN_ALL = """
import contextlib, io, importlib, json, sys, traceback
answers = []
for name, arguments in json.load(sys.stdin):
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            code = importlib.import_module(name).main(arguments)
    except BaseException:
        code = traceback.format_exc()
    answers.append((code, output.getvalue()))
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Recipe:
    """What one section of the page says to write, to change and to run."""

    new_files: dict[str, str]  # path -> content
    changes: list[tuple[str, str, str]]  # path, text as it is, text as it becomes
    command: list[str]


@dataclass(frozen=True)
class Outcome:
    """How far a recipe came."""

    trouble: str  # why it could not be applied
    code: object = None  # of its command: 0, another exit code, or a traceback
    output: str = ""


def read_recipe(title: str) -> Recipe:
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section, title
    new_files, changes, commands = {}, [], []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL):
        first, _, rest = block.partition("\n")
        if language == "sh":
            commands += shlex.split(block)
        elif language == "diff":
            changes += [(first.removeprefix("--- "), *sides_of(hunk)) for hunk in rest.split("@@\n")]
        else:
            new_files[first.strip("{}# ")] = rest
    return Recipe(new_files, changes, commands)


def sides_of(hunk: str) -> tuple[str, str]:
    """The text before and after; a line's end is not part of it, so that a line may be named by its beginning."""
    lines = hunk.rstrip("\n").split("\n")
    before = [line[1:] for line in lines if not line.startswith("+")]
    after = [line[1:] for line in lines if not line.startswith("-")]
    return "\n".join(before), "\n".join(after)


def apply(recipe: Recipe, copy: Path) -> str:
    """Follow the recipe in a copy of the repository; returns why that is not possible, empty if it is."""
    for name, content in recipe.new_files.items():
        if (copy / name).exists() or not (copy / name).parent.is_dir():
            return f"{name} is there already, or its folder is not"
        (copy / name).write_text(content)
    for name, before, after in recipe.changes:
        text = (copy / name).read_text()
        if text.count(before) != 1:
            return f"{name} has {text.count(before)} times:\n{before}"
        (copy / name).write_text(text.replace(before, after))
    return ""


@pytest.fixture(scope="module")
def outcomes(pet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Outcome]]:
    """A copy of the repository with all recipes followed, and how each of them ended."""
    copy = tmp_path_factory.mktemp("extended")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "data").mkdir()
    (copy / "data" / "demo").symlink_to(pet_shards)
    made = tmp_path_factory.mktemp("made") / "runs" / "demo"
    make_sweep(made, trials=4, pictures=8, epochs=2)
    shutil.move(made, copy / "runs" / "demo")
    recipes = {title: read_recipe(title) for title in RECIPES}
    found = {title: Outcome(apply(recipe, copy)) for title, recipe in recipes.items()}
    orders = [order_of(recipe.command) for recipe in recipes.values()]
    answers = subprocess.run(
        [sys.executable, "-c", RUN_ALL], cwd=copy, input=json.dumps(orders), capture_output=True, text=True,
        timeout=300, env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    for title, (code, output) in zip(RECIPES, json.loads(answers.stdout), strict=True):
        found[title] = Outcome(found[title].trouble, code, output)
    return copy, found


def order_of(command: list[str]) -> tuple[str, list[str]]:
    """(module whose main does it, arguments) of a command line; a training is made shorter."""
    python, *words = command
    assert python == "python"
    if words[0] == "-m":
        words = words[1:]
    module, *arguments = words
    name = module.removesuffix(".py").replace("/", ".")
    name = "petseg.augment.__main__" if name == "petseg.augment" else name
    return name, [*arguments, *(TRAINED_BY.split() if name == "petseg.train" else [])]


def trained(folder: str, field: str, value: str) -> Callable[[Path, str], None]:
    def check(copy: Path, output: str) -> None:
        part, _, name = field.partition(".")
        assert json.loads((copy / folder / "config.json").read_text())["config"][part][name] == value
        assert json.loads((copy / folder / "result.json").read_text())["epochs"] == 1

    return check


def drawn(copy: Path, output: str) -> None:
    assert (copy / "runs" / "grayscale.png").stat().st_size > 1000


def measured(copy: Path, output: str) -> None:
    (row,) = map(json.loads, (copy / "runs" / "recall" / "metrics.jsonl").read_text().splitlines())
    assert 0 <= row["val/recall"] <= 1
    assert "val/recall" in json.loads((copy / "runs" / "recall" / "result.json").read_text())["metrics"]


def checked(copy: Path, output: str) -> None:
    assert re.search(r"^warn +steps +a trial has only 40 optimizer steps -> raise train.epochs", output, re.MULTILINE)


def shown(copy: Path, output: str) -> None:
    page = (copy / "runs" / "demo" / "report.html").read_text()
    assert '<a href="#hosts">Hosts</a>' in page
    assert re.search(r'<h2 id="hosts">Hosts</h2>.*<tr><th scope="row">[^<]+</th><td>4</td>', page, re.DOTALL)


CHECKS = {
    "A model": trained("runs/dilated", "model.arch", "dilated"),
    "An augmentation": drawn,
    "A loss": trained("runs/tversky", "train.loss", "tversky"),
    "A metric": measured,
    "A doctor check": checked,
    "A report section": shown,
}


@pytest.mark.parametrize("title", RECIPES)
def test_the_recipe_works(title: str, outcomes: tuple[Path, dict[str, Outcome]]) -> None:
    copy, found = outcomes
    assert found[title].trouble == ""
    assert found[title].code == 0, found[title].code
    CHECKS[title](copy, found[title].output)


def test_the_page_has_no_other_recipes() -> None:
    assert tuple(re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)) == RECIPES
