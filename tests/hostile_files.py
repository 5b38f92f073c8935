"""What a stranger could put into a run folder, one way at a time; each spoils a healthy folder that it is given."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
HTML = "<script>alert(1)</script><img src=x onerror=alert(1)>"
FOREIGN = f"=cmd|' /C calc'!A0{ESCAPES}{HTML}[red]x[/nope]|`"
DEEP = "[" * 100_000
RUN_FILES = (
    "result.json", "state.json", "config.json", "metrics.jsonl", "lives.json", "heartbeat.json", "overrides.json",
    "pruned.json", "per_image.npz", "val_masks.npz", "calibration.json", "wandb-sync.json", "evaluate-val.json",
    "run_name.json",
)  # fmt: skip
SWEEP_FILES = ("sweep.json", "submissions.jsonl", "launch.json", ".slurm.json", "search.journal", "wandb-report.json")

Spoil = Callable[[Path, Path], None]  # the sweep's folder, and one outside of it


class Executed:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.canary),)


def canary(outside: Path) -> Path:
    return outside.parent / "canary"


def trials(folder: Path) -> list[Path]:
    return sorted((folder / "trials").iterdir())


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def commands_as_shards(folder: Path, outside: Path) -> None:
    """Addresses that run a command, or cause traffic."""
    command = f"pipe:touch {canary(outside)} {{}}"
    for trial in trials(folder):
        changed(trial / "config.json", lambda content: content["config"]["data"].update(shards=command))
    changed(folder / "sweep.json", lambda content: content.update(shards=command, shard_sets=[]))


def foreign_text(folder: Path, outside: Path) -> None:
    """Escapes, HTML, markup and formulas wherever there is text."""

    def sweep(content: dict[str, Any]) -> None:
        content["name"] = FOREIGN
        content["axes"] = {FOREIGN: [FOREIGN, "b"], **content["axes"]}
        for number, trial in enumerate(content["trials"]):
            trial["axes"] = {FOREIGN: FOREIGN if number else "b", **trial["axes"]}
        for noted in content["shard_sets"]:
            noted |= {"source": FOREIGN, "attribution": FOREIGN, "location": FOREIGN, "hash": FOREIGN}

    changed(folder / "sweep.json", sweep)
    lines = []
    for number, trial in enumerate(trials(folder)):
        lines.append({"trial": trial.name, "job_id": str(90 + number), "cluster": "local", "log": f"x{FOREIGN}.out"})
        state = {"status": "failed", "error": FOREIGN, "host": FOREIGN, "cause": FOREIGN, "job_id": str(90 + number)}
        put(trial / "state.json", json.dumps(state))
        if number == 1:
            (trial / "result.json").unlink()
        else:
            changed(trial / "result.json", lambda content: content.update(host=FOREIGN, device=FOREIGN))
        life = {"number": 1, "host": FOREIGN, "job_id": FOREIGN, "code": FOREIGN, "first_step": 0, "time": 1.0}
        put(trial / "lives.json", json.dumps([life]))
        changed(trial / "config.json", lambda content: content["identity"].update({FOREIGN: FOREIGN}))
        arrays = np.load(io.BytesIO((trial / "per_image.npz").read_bytes()))
        renamed = {name: arrays[name] for name in arrays.files}
        renamed["val/keys"] = np.array([f"{key}{FOREIGN}" for key in renamed["val/keys"]])
        content = io.BytesIO()
        np.savez_compressed(content, **renamed)
        put(trial / "per_image.npz", content.getvalue())
    put(folder / "submissions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    traceback = f'Traceback (most recent call last):\n  File "x", line 1, in y\nValueError: {FOREIGN}\n'
    put(folder / "logs" / "91_0_log.out", f"Starting with JobEnvironment({FOREIGN}\n{traceback}\r{FOREIGN}\n")
    named = {"trial": trials(folder)[1].name, "job_id": "91", "cluster": "local", "log": "/x/91_0_log.out"}
    with (folder / "submissions.jsonl").open("a") as file:
        file.write(json.dumps(named) + "\n")


def paths_as_ids(folder: Path, outside: Path) -> None:
    """A trial that lies elsewhere."""
    changed(folder / "sweep.json", lambda content: content["trials"][0].update(id=f"../../../{outside.name}"))


def trial_folder_is_a_link(folder: Path, outside: Path) -> None:
    trial = trials(folder)[0]
    for path in list(trial.iterdir()):
        if path.is_file():
            path.rename(outside / path.name)
    for path in (*trial.glob("*/*"), *trial.glob("*"), trial):
        path.unlink() if path.is_file() else path.rmdir()
    trial.symlink_to(outside)


def folder_of_trials_is_a_link(folder: Path, outside: Path) -> None:
    (folder / "trials").rename(outside / "trials")
    (folder / "trials").symlink_to(outside / "trials")


def folders_are_links(folder: Path, outside: Path) -> None:
    """Those that commands write to."""
    for name in ("logs", "code", "chain", "node_faults"):
        (folder / name).symlink_to(outside)
    for trial in trials(folder):
        for name in ("wandb", "checkpoints", "best_overlays"):
            (trial / name).symlink_to(outside)


def files_are_links(folder: Path, outside: Path) -> None:
    """To a file whose text no command may show, nor change."""
    secret = outside / "secret"
    for path in (*(trials(folder)[0] / name for name in RUN_FILES), *(folder / n for n in SWEEP_FILES[1:])):
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
    for path in (trials(folder)[1] / "overlays").iterdir():
        path.unlink()
        path.symlink_to(outside / "picture.png")
    for name in (".lock", ".slurm.lock", "wandb-sync.lock", "report.html", "leaderboard.parquet"):
        (folder / name).symlink_to(secret)


def log_is_another_file(folder: Path, outside: Path) -> None:
    trial = trials(folder)[1]
    (trial / "result.json").unlink()
    line = {"trial": trial.name, "job_id": "91", "cluster": "local", "log": str(outside / "secret")}
    put(folder / "submissions.jsonl", json.dumps(line) + "\n")
    (folder / "logs").mkdir()
    (folder / "logs" / "secret").symlink_to(outside / "secret")


def files_are_fifos(folder: Path, outside: Path) -> None:
    """Whoever opens one waits for ever."""
    for path in (*(trials(folder)[0] / name for name in RUN_FILES), *(folder / n for n in SWEEP_FILES[1:])):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    for path in (trials(folder)[1] / "overlays").iterdir():
        path.unlink()
        os.mkfifo(path)


def wrong_types(folder: Path, outside: Path) -> None:
    """JSON of the right form with other values than are expected."""
    first, second = trials(folder)[:2]
    for name in RUN_FILES:
        put(first / name, "[1, 2]\n" if name != "lives.json" else '{"a": 1}')
    changed(second / "result.json", lambda c: c.update(best_epoch="x", metrics={"val/dice": "high"}, parameters=[]))
    put(second / "metrics.jsonl", '{"epoch": "one"}\n[]\n{"epoch": 1, "val/dice": [1]}\nnull\n{"epoch": 1e400}\n')
    put(second / "state.json", json.dumps({"status": 7, "time": "x", "restarts": [], "slot": -1, "at_once": 0}))
    put(second / "heartbeat.json", json.dumps({"time": "x", "epoch": None}))
    put(second / "lives.json", json.dumps([{"number": "x"}, 3]))
    junk = [{"trial": 1}, {"trial": "a", "job_id": "--user=root", "cluster": "slurm", "log": ""}, [], 5, {"x": 1}]
    junk += [{"trial": second.name, "job_id": "", "cluster": "slurm", "log": "", "intent": f"../../{outside.name}/x"}]
    put(folder / "submissions.jsonl", "".join(json.dumps(line) + "\n" for line in junk))
    put(folder / "launch.json", json.dumps({"cluster": 5, "resources": {"partition": ["x"]}}))


def numbers_beyond_floats(folder: Path, outside: Path) -> None:
    first, second = trials(folder)[:2]
    changed(first / "result.json", lambda content: content["metrics"].update({"val/iou": 10**400}))
    changed(first / "config.json", lambda content: content["config"].update(train=3, data=[]))
    changed(second / "config.json", lambda content: content["config"]["data"].update(image_size_px=10**400))
    changed(second / "config.json", lambda content: content["identity"]["train"].update(epochs=10**400))


def not_a_number(folder: Path, outside: Path) -> None:
    changed(trials(folder)[0] / "result.json", lambda content: content["metrics"].update({"val/dice": float("nan")}))
    put(
        trials(folder)[1] / "metrics.jsonl",
        '{"epoch": 1, "val/dice": NaN, "val/loss": Infinity, "perf/seconds": NaN}\n',
    )


def nested_without_end(folder: Path, outside: Path) -> None:
    for name in RUN_FILES:
        put(trials(folder)[0] / name, DEEP)
    for name in SWEEP_FILES[1:]:
        put(folder / name, DEEP)


def sweep_nested_without_end(folder: Path, outside: Path) -> None:
    put(folder / "sweep.json", DEEP)


def values_that_are_no_axis(folder: Path, outside: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["axes"] = {"a": [{"x": 1}, [2]]}
        content["trials"][0]["axes"] = {"a": {"x": 1}}

    changed(folder / "sweep.json", change)


def pickles(folder: Path, outside: Path) -> None:
    """Objects that make a file when they are loaded, wherever numpy and submitit would load some."""
    evil = pickle.dumps(Executed(canary(outside)))
    for trial in trials(folder):
        for name in ("per_image.npz", "val_masks.npz", "overlay_masks.npz"):
            content = io.BytesIO()
            arrays = {"keys": np.array([Executed(canary(outside))], dtype=object)}
            np.savez_compressed(content, **arrays, **{"val/keys": arrays["keys"], "val/counts": arrays["keys"]})
            put(trial / name, content.getvalue())
        put(trial / "checkpoints" / "step-00000001" / "model.safetensors", evil)
        put(trial / "checkpoints" / "step-00000001" / "state.json", json.dumps({"best": {"step": 1}}))
    for name in ("91_submitted.pkl", "91_0_result.pkl"):
        put(folder / "logs" / name, evil)
    line = {"trial": trials(folder)[1].name, "job_id": "91", "cluster": "local", "log": "91_0_log.out"}
    put(folder / "submissions.jsonl", json.dumps(line) + "\n")
    (trials(folder)[1] / "result.json").unlink()


SPOILS: dict[str, Spoil] = {
    spoil.__name__: spoil
    for spoil in (
        commands_as_shards, foreign_text, paths_as_ids, trial_folder_is_a_link, folder_of_trials_is_a_link,
        folders_are_links, files_are_links, log_is_another_file, files_are_fifos, wrong_types, numbers_beyond_floats,
        not_a_number, nested_without_end, sweep_nested_without_end, values_that_are_no_axis, pickles,
    )
}  # fmt: skip


def surroundings(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything below a folder: its kind and mode, and its content."""
    return {str(path.relative_to(folder)): _seen(path) for path in _walk(folder)}


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


def _seen(path: Path) -> tuple[int, str]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return mode, str(path.readlink())
    return mode, hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else ""
