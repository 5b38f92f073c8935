"""The house's rules that a machine can check."""

from __future__ import annotations

import ast
import functools
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("shards", "petseg", "slurm", "jobs")
# who may import what of ours; shards.command is every command's error boundary, shards.cause why trials end
OF_SHARDS = {
    "shards.manifest", "shards.index", "shards.classes", "shards.files", "shards.terminal", "shards.command",
    "shards.cause", "shards.loopback",
}  # fmt: skip
ALLOWED = {
    "shards": {"shards"},
    "petseg": {"petseg", *OF_SHARDS},
    "slurm": {"slurm", "shards.command"},
    "jobs": {"jobs", "petseg", "slurm", "shards.near_duplicates.note", "shards.labels.faults", *OF_SHARDS},
}
FILES = [path for room in ROOMS for path in sorted((REPOSITORY / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, `from a import b` counted as a.b where b may be a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= (
                {node.module or ""} if "." in (node.module or "") else {f"{node.module}.{a.name}" for a in node.names}
            )
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_one_way(path: Path) -> None:
    allowed = ALLOWED[path.relative_to(REPOSITORY).parts[0]]
    for module in imported(path):
        if module.split(".")[0] in (*ROOMS, "tests", "benchmarks"):
            assert any(module == name or module.startswith(f"{name}.") for name in allowed), module


def test_no_file_bears_the_name_of_another_module() -> None:
    """A script's own folder comes first on sys.path: its neighbours would hide what they are named after."""
    taken = set(sys.stdlib_module_names) | set(packages_distributions())
    for folder in ("petseg", "jobs", "slurm", "shards"):
        names = {path.stem for path in (REPOSITORY / folder).glob("*.py")} - {"__init__"}
        assert names.isdisjoint(taken), names & taken


def test_commands_write_by_the_terminal_that_obeys_no_foreign_text() -> None:
    """rich's own Console would pass on the escapes, and take for markup the square brackets, of a stranger's files."""
    for path in (path for path in FILES if path.relative_to(REPOSITORY).parts[0] != "slurm"):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        named = {call.id for call in calls if isinstance(call, ast.Name)}
        assert not named & {"Console", "print"}, path


def test_nothing_prints_or_edits_the_import_path() -> None:
    for path in FILES:
        assert "sys.path" not in path.read_text(), path


def test_commands_that_are_shown_are_quoted() -> None:
    """A command of ours with a name of the user's in it goes through shards.command.typed, or the filter `quoted`."""
    command = r"python (?:-m )?(?:jobs|petseg|shards|slurm)[/.][\w./]+"
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = ast.unparse(node)
                assert not re.search(command + r"[^`]*\{", text), f"{path}: {text}"
    for path in REPOSITORY.glob("jobs/reporting/*.j2"):
        for _, value in re.findall(rf"({command})[^<]*?\{{\{{(.*?)\}}\}}", path.read_text()):
            assert "quoted" in value, f"{path}: {value}"


def test_petseg_knows_nothing_of_sweeps() -> None:
    """What a run needs of its sweep (name, peers, what to tell the user) is handed in, or lies in its own folder."""
    above = r"\bjobs/|\bjobs\.|\bsweep\.json|\btrials/|[\"']trials[\"']"
    for path in (path for path in FILES if path.is_relative_to(REPOSITORY / "petseg")):
        assert not (found := re.findall(above, path.read_text())), f"{path}: {found}"


# What people type. The other modules of a wing are its rooms, in the order in which they may import each other.
COMMANDS = {
    "shards": ("pack", "verify", "show", "duplicates"),
    "petseg": (
        "train", "evaluate", "best", "predict", "demo", "export", "compress", "estimate", "models.weights",
        "augment.__main__",
    ),
    "slurm": ("rehearsal.__main__",),
    "jobs": (
        "sweep", "status", "logs", "retry", "cancel", "clean", "usage", "report", "best", "sync", "doctor", "chain",
        "predict",
    ),
}  # fmt: skip
ORDER = {
    "shards": ("", "near_duplicates", "labels", "sources", "packing", "integrity", "foreign"),
    "petseg": (
        "", "config", "recipes", "data", "targets", "augment", "models", "losses", "optim", "footprint", "run_folder",
        "run", "metrics", "evaluation", "inference", "tracking", "training",
    ),
    "slurm": ("", "rehearsal"),
    "jobs": (
        "", "design", "runs", "state", "node", "search", "cost", "wandb_sync", "reporting", "launch", "checks",
    ),
}  # fmt: skip
MAX_ROOMS_AT_THE_ROOT, MAX_ROOMS_BELOW = 24, 16

# The words of one data set. Its source and its targets may use them, the general code asks these instead.
OWN_WORDS = re.compile(r"(?<![a-z])(?:pets?|breeds?|trimaps?|borders?)(?![a-z])", re.IGNORECASE)
OWN_FILES = ("shards/sources/pets/", "petseg/targets/pets.py")
LOOKS = (".css.j2", ".js.j2")  # `border` is a property of CSS
STAYING = (  # file ("" = any), expression, why it stays
    ("", r"\bdata\.border\b", "a field that users type, and a key of each config.json"),
    ("", r"\b(?:train|config|self)\.border_(?:weight|px)\b", "fields that users type: loss weights near any outline"),
    ("petseg/config/", r"Sets of trimaps also offer[^.]*\. auto:\s+pet for a set of trimaps", "help of data.target"),
    ("petseg/config/", r'\bborder: Literal\[.*\n *"""What the border of trimaps.*"""', "data.border and its help"),
    ("petseg/config/", r"\bborder_(?:weight|px): (?:float|int)\b", "the fields themselves"),
    ("petseg/training/pruning.py", r'"border"', "a field of `data`, by its name"),
    ("jobs/reporting/sections/samples.py", r'"border"', "a field of `data`, by its name in config.json"),
    ("jobs/reporting/sections/protocol.py", r'"border rule"', "the rule that the field data.border chooses"),
    ("petseg/inference/header.py", r"^target, border, classes|\bborder: str\b", "a key in the header of weights files"),
    ("petseg/inference/", r"\bheader\.border\b|\bborder=", "the same key"),
    ("petseg/training/given_weights.py", r"\bheader\.border\b", "the same key"),
    ("petseg/run_folder/layout.py", r'"all_pet_dice"', "a metric in result.json"),
    ("petseg/data/mixing.py", r'"breed"', "a key in the JSON of samples"),
    ("petseg/", r"\bpetseg\.targets\.pets\b", "the import of the module"),
    ("petseg/targets/target.py", r"^from petseg\.targets import TARGET_NAME, pets|\bpets\.(?=\w)", "what it is asked"),
    ("shards/", r"\bshards\.sources\.pets(?:\.trimaps)?\b", "the import of the source"),
    ("shards/manifest.py", r'"pet": 1, "background": 2, "border": 3|"trimap"', "names in manifest.json, version 1"),
    ("shards/verify.py", r"\btrimap: dict\b|--trimap\b|\bself\.trimap\b", "a flag that users type"),
    ("shards/foreign/index.py", r"--trimap\.(?:border\b)?", "the same flag"),
)
MODULES = {".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
DOORS = {"petseg"}  # what `import petseg` offers; a room behind it is imported when it is used
NAMES_OF_COMMANDS = {f"{wing}.{name}" for wing, names in COMMANDS.items() for name in names}


@functools.cache
def imported_modules(name: str) -> set[str]:
    """Our modules that a module imports, `from package import module` counted as the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    return found & set(MODULES)


def room_of(name: str) -> tuple[str, str]:
    """The wing of a module, and its room there; "" for a module that lies in no room."""
    wing, _, rest = name.partition(".")
    room = rest.partition(".")[0]
    return wing, room if room in ORDER[wing] else ""


@pytest.mark.parametrize("name", sorted(MODULES))
def test_rooms_of_a_wing_import_in_one_order(name: str) -> None:
    wing, room = room_of(name)
    for other in imported_modules(name) if name not in NAMES_OF_COMMANDS | DOORS else ():
        other_wing, other_room = room_of(other)
        if wing == other_wing:
            assert ORDER[wing].index(other_room) <= ORDER[wing].index(room), f"{name} imports {other}"


def test_nothing_imports_a_command() -> None:
    for name in MODULES:
        assert not imported_modules(name) & NAMES_OF_COMMANDS, name
    missing = NAMES_OF_COMMANDS - set(MODULES)
    assert not missing


def test_modules_import_each_other_in_no_circle() -> None:
    imports = {name: imported_modules(name) for name in MODULES}
    left = set(MODULES)
    while free := {name for name in left if not imports[name] & left - {name}}:
        left -= free
    assert not left


def test_no_floor_is_too_full() -> None:
    for folder in {path.parent for path in FILES}:
        entries = [path for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__")]
        rooms = [path for path in entries if path.is_dir() or path.suffix == ".py"]
        at_the_root = folder.parent == REPOSITORY
        assert len(rooms) <= (MAX_ROOMS_AT_THE_ROOT if at_the_root else MAX_ROOMS_BELOW), folder


def own_words(text: str) -> list[str]:
    """The words of one data set in a text, alone or as part of a name such as NumPets or trimap_of."""
    return OWN_WORDS.findall(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text))


def without_staying(name: str, text: str) -> str:
    """A file's text without what may stay in it."""
    for where, expression, _ in STAYING:
        if name.startswith(where):
            text = re.sub(expression, "", text, flags=re.MULTILINE)
    return text


def general_files() -> dict[str, str]:
    """The text of each file of ours that serves any data set, by its path in the repository."""
    kinds = (".py", ".j2", ".yaml", ".toml", ".sbatch")
    paths = [path for room in ROOMS for path in sorted((REPOSITORY / room).rglob("*")) if path.suffix in kinds]
    names = {str(path.relative_to(REPOSITORY)): path for path in paths}
    return {n: p.read_text() for n, p in names.items() if not n.startswith(OWN_FILES) and not n.endswith(LOOKS)}


def test_general_code_speaks_of_no_data_set() -> None:
    for name, text in general_files().items():
        left = without_staying(name, text)
        assert not own_words(left), [line for line in left.splitlines() if own_words(line)]


def test_what_may_stay_is_there() -> None:
    files = general_files()
    for where, expression, why in STAYING:
        assert why
        assert any(re.search(expression, text, re.MULTILINE) for n, text in files.items() if n.startswith(where)), why


@pytest.mark.parametrize(
    "text",
    ["the Pets target", "num_pets", "PetFolder", "BORDER_PX", "borders:", "by breed", "trimapOf", "Oxford-IIIT Pet"],
)
def test_the_words_of_a_data_set_are_found(text: str) -> None:
    assert own_words(text)
    assert own_words(without_staying("petseg/losses.py", text))


def test_other_words_are_no_words_of_a_data_set() -> None:
    assert not own_words("import petseg; competes, perpetual, crossbred, repetition; PETSEG_CACHE")
