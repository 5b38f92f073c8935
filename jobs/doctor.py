"""Is everything there that a sweep stands on? Ask before GPU hours are spent; it takes less than a minute, and one
more where the job of a second that looks at a node with --partition has to wait in the queue.

python jobs/doctor.py --partition gpu --gpus 4
python jobs/doctor.py --profile a100 --quick
python jobs/doctor.py --sweep jobs/sweeps/demo.yaml --cluster local --quick
python jobs/doctor.py --partition gpu --nodes 2 --gpus 8 --only partition,all-reduce --all-reduce

Exit code 0, or 3 if a check fails.
"""

from __future__ import annotations

import io
import json
import logging
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from rich.text import Text

from jobs.checks.setup import Command, Finding, NotChecked, Setup
from shards.command import FAILED, OK, run_command
from shards.command.flags import parse
from shards.terminal import Terminal
from slurm.environment import DISTRIBUTED_NAMES
from slurm.profiles import profile_of

# name -> where its function is; imported when its turn comes, because some import torch
CHECKS = {
    "config": "jobs.checks.data:check_config",
    "partition": "jobs.checks.partition:check_partition",
    "wandb": "jobs.checks.tracking:check_wandb",
    "shards": "jobs.checks.data:check_shards",
    "splits": "jobs.checks.data:check_splits",
    "labels": "jobs.checks.labels:check_labels",
    "mixing": "jobs.checks.data:check_mixing",
    "folder": "jobs.checks.folders:check_folder",
    "nodes": "jobs.checks.nodes:check_nodes",
    "cache": "jobs.checks.folders:check_cache",
    "transforms": "jobs.checks.transforms:check_transforms",
    "overfit": "jobs.checks.training:check_overfit",
    "batchnorm": "jobs.checks.training:check_batchnorm",
    "resume": "jobs.checks.training:check_resume",
    "all-reduce": "jobs.checks.allreduce:check_all_reduce",
}
TRAINING = ("overfit", "batchnorm", "resume")
COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}
NAME_WIDTH = max(map(len, CHECKS))

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    args = tuple(sys.argv[1:] if argv is None else argv)
    command = parse(Command, args, __doc__, default=Command(resources=profile_of(args)))
    names = chosen(command)
    findings = []
    console = Terminal(file=sys.stderr if command.json else sys.stdout, soft_wrap=True, highlight=False)
    with alone(), tempfile.TemporaryDirectory(prefix="petseg-doctor-") as folder:
        setup = Setup(command, Path(folder), args)
        with console.status("") as status:
            for number, name in enumerate(names, start=1):
                status.update(f"{name} ({number} of {len(names)})")
                finding = examine(name, setup, names)
                findings.append(finding)
                if not command.json:
                    console.print(line(finding))
        setup.close()
    failed = sum(finding.status == "FAIL" for finding in findings)
    if command.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        warned, seconds = sum(f.status == "warn" for f in findings), sum(f.seconds for f in findings)
        console.print(f"{len(findings)} checks in {seconds:.0f} s: {failed} failed, {warned} with a warning")
    return FAILED if failed else OK


def chosen(command: Command) -> list[str]:
    """The checks to make; raises ValueError for an unknown name."""
    only, skip = (tuple(filter(None, names.split(","))) for names in (command.only, command.skip))
    for name in (*only, *skip):
        if name not in CHECKS:
            raise ValueError(f"there is no check {name!r}: choose among {', '.join(CHECKS)}")
    if command.quick:
        skip += TRAINING
    if not command.all_reduce and "all-reduce" not in only:
        skip += ("all-reduce",)
    return [name for name in CHECKS if name in (only or CHECKS) and name not in skip]


def examine(name: str, setup: Setup, names: Sequence[str]) -> Finding:
    """One of the checks, timed; whatever it raises is a finding."""
    start = time.perf_counter()
    try:
        module, _, function = CHECKS[name].partition(":")
        check: Callable[[Setup], Finding] = getattr(import_module(module), function)
        with redirect_stderr(sys.stderr if talkative() else io.StringIO()):  # small runs show no progress of their own
            finding = check(setup)
    except NotChecked as error:
        elsewhere = f"see {error.root}" if error.root in names else error.why
        detail = error.why if error.root == name else f"not checked: {elsewhere}"
        finding = Finding("FAIL", name, " ".join(detail.split()))
    except Exception as error:  # a check that breaks must not hide what the others find
        logger.debug("check %s", name, exc_info=True)
        words = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        finding = Finding("FAIL", name, " ".join(words.split()), f"--only {name} --debug shows more")
    return replace(finding, seconds=round(time.perf_counter() - start, 2))


def line(finding: Finding) -> Text:
    advice = f" -> {finding.advice}" if finding.advice else ""
    return Text.assemble(
        (f"{finding.status:4}", COLOURS[finding.status]),
        f"  {finding.what:{NAME_WIDTH}}  {finding.detail}",
        (advice, "bold"),
        (f"  {finding.seconds:.1f} s", "dim"),
    )


@contextmanager
def alone() -> Iterator[None]:
    """Small runs here are one process, whatever job or launcher surrounds them, and do not talk."""
    environment = dict(os.environ)
    for name in (*DISTRIBUTED_NAMES, "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(name, None)
    talkers = [] if talkative() else [logging.getLogger(name) for name in ("petseg", "accelerate", "submitit")]
    levels = [talker.level for talker in talkers]
    for talker in talkers:
        talker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)


def talkative() -> bool:
    """Whether --debug was given."""
    return logging.getLogger().level <= logging.DEBUG


if __name__ == "__main__":
    sys.exit(run_command(main))
