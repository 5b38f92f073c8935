"""Pack, train and report as jobs that wait for each other, or one after the other on this machine."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from jobs.design.cells import read_spec
from jobs.design.expansion import expand
from jobs.design.spec import Spec
from jobs.launch.dry_run import show_plan
from jobs.launch.options import PACK_FLAG, ChainOptions
from jobs.launch.run import launch_sweep
from jobs.node.chain_steps import Step, run_step, run_steps
from jobs.runs.snapshot import take_snapshot
from jobs.runs.sweep_file import load_sweep
from jobs.runs.trial import CHAIN_NOTES
from jobs.state.chain_state import FOLDER, Note, add_note
from jobs.state.observed import observe
from petseg.data.store import is_remote
from petseg.run_folder.new_folder import missing_folders, removed_unless_started
from shards.command import NOT_KNOWN, OK
from shards.terminal import Terminal
from slurm.executor import submit
from slurm.request import Request
from slurm.resources import Resources

STEPS = ("pack", "train", "report")
PACK_OUT = "data/shards"  # shards.pack's default


@dataclass(frozen=True)
class Chain:
    """The steps to run, and the flags of their commands."""

    options: ChainOptions
    spec: Spec
    flags: tuple[str, ...]  # of jobs/sweep.py
    pack_flags: tuple[str, ...]  # of shards.pack

    @property
    def folder(self) -> Path:
        """The folder of the sweep."""
        return self.options.folder(self.spec)

    def side(self, step: str) -> Resources:
        """The resources of the jobs that train nothing; packing can use several cores."""
        asked = self.options.resources
        partition, cores = self.options.side_partition or asked.partition, asked.cpus_per_task if step == "pack" else 1
        return replace(
            asked, partition=partition, nodes=1, gpus_per_node=0, tasks_per_node=1, cpus_per_task=cores, constraint=None
        )

    def report_steps(self) -> list[Step]:
        """The report, and the state of each trial for the log."""
        words = [str(self.folder)]
        if not is_remote(shards := expand(self.spec)[0].config.data.shards):
            words += ["--shards", shards]
        report = Step("jobs.report", tuple(words), accepts=(NOT_KNOWN,))  # the page is there, and says so
        return [report, Step("jobs.status", (str(self.folder),), must=False)]


def read_chain(options: ChainOptions, words: Sequence[str], pack_flags: tuple[str, ...] | None) -> Chain:
    """The chain that the options ask for, which were parsed from these words.

    Raises ValueError for steps that do not follow each other, for a pack that the sweep would not read, and for
    weights that are not there.
    """
    steps = options.steps
    first = STEPS.index(steps[0]) if steps else 0
    if not steps or steps != STEPS[first : first + len(steps)] or tuple(words[: len(steps)]) != steps:
        raise ValueError(f"begin with some of {' '.join(STEPS)} that follow each other: `jobs/chain.py train report`")
    if ("pack" in steps) != (pack_flags is not None):
        raise ValueError(
            "say what to pack at the end of the line: --pack --synthetic 400"
            if "pack" in steps
            else f"{PACK_FLAG} goes with the step pack: `jobs/chain.py pack {' '.join(steps)}`"
        )
    spec = read_spec(options.sweep, options.axis, options.set, options.recipe)
    shards = expand(spec)[0].config.data.shards
    if pack_flags is not None and not _same_place(out := _out_of(pack_flags), shards):
        raise ValueError(f"the pack goes to {out}, and the sweep reads {shards}: add --set data.shards={out}")
    return Chain(options, spec, tuple(_without(words[len(steps) :], "--side-partition")), pack_flags or ())


def _out_of(pack_flags: Sequence[str]) -> str:
    out = PACK_OUT
    for word, after in zip(pack_flags, [*pack_flags, ""][1:], strict=True):
        if word == "--out" or word.startswith("--out="):
            out = word.removeprefix("--out=") if "=" in word else after
    return out


def _same_place(out: str, shards: str) -> bool:
    return not is_remote(shards) and Path(out).absolute() == Path(shards).absolute()


def _without(words: Sequence[str], flag: str) -> list[str]:
    """The words without a flag and its value."""
    left: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith(f"{flag}="):
            skip = False
        elif word == flag:
            skip = True
        else:
            left.append(word)
    return left


def run_chain(chain: Chain) -> int:
    """Submit the steps to Slurm, or run them on this machine; returns the exit code."""
    return submit_chain(chain) if chain.options.cluster == "slurm" else run_here(chain)


def run_here(chain: Chain) -> int:
    """One step after the other; the report is made also where trials have failed. Returns the first bad exit code."""
    steps = chain.options.steps
    worst = OK
    if "pack" in steps and (code := run_step(Step("shards.pack", chain.pack_flags), ".")):
        return code
    if "train" in steps:
        worst = run_step(Step("jobs.sweep", chain.flags), ".")
    if "report" in steps:
        for step in chain.report_steps():
            code = run_step(step, ".")
            worst = worst or code
    return worst


def submit_chain(chain: Chain) -> int:
    """Submit what can be submitted now, and a job that submits the rest."""
    steps = chain.options.steps
    if "pack" in steps:
        submit_from_pack(chain)
        return OK
    if "train" in steps:
        if chain.options.dry_run:
            return show_plan(chain.options)
        if code := launch_sweep(chain.options):
            return code
    if "report" in steps:
        rows = observe(load_sweep(chain.folder)).live
        arrays = {row.submission.job_id.partition("_")[0] for row in rows if row.submission}
        after = f"afterany:{':'.join(sorted(arrays))}" if arrays else None
        submit_job(chain, "report", chain.report_steps(), after)
    return OK


def submit_from_pack(chain: Chain) -> None:
    """The pack, and a job that waits for it and runs the rest of the chain: from there the set's hash is known."""
    if chain.options.dry_run:
        raise ValueError("--dry-run shows trials, whose names are known after packing: pack first, or leave it out")
    require_pack(chain.pack_flags)
    missing = missing_folders(chain.folder)
    notes = chain.folder / CHAIN_NOTES
    with removed_unless_started(missing, lambda error: notes.exists() or not isinstance(error, ValueError)):
        _submit_pack_and_rest(chain)


def _submit_pack_and_rest(chain: Chain) -> None:
    resume = () if "--resume" in chain.pack_flags else ("--resume",)  # a job that is requeued goes on
    packing = [Step("shards.pack", (*chain.pack_flags, *resume))]
    pack = submit_job(chain, "pack", packing, chain.options.resources.dependency)
    rest = chain.options.steps[1:]
    if not rest:
        return
    flags = [*rest, *_without(chain.flags, "--dependency")]
    flags += ["--sweep", str(keep_sweep_file(chain)), "--name", chain.folder.name]
    if chain.options.side_partition:
        flags += ["--side-partition", chain.options.side_partition]
    submit_job(chain, "train", [Step("jobs.chain", tuple(flags))], f"afterok:{pack}")


def require_pack(pack_flags: Sequence[str]) -> None:
    """Raises ValueError, after the pack's own words, if it could not begin: else its job would wait only to fail."""
    command = [sys.executable, "-m", "shards.pack", *pack_flags, "--check"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise ValueError(f"the pack ({shlex.join(pack_flags)}) could not begin, as it says above: nothing is submitted")


def keep_sweep_file(chain: Chain) -> Path:
    """A copy of the sweep file as it is now: packing can take hours, and what is edited meanwhile is another sweep."""
    content = chain.options.sweep.read_bytes()
    path = chain.folder.absolute() / FOLDER / sha256(content).hexdigest()[:12] / chain.options.sweep.name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(chain.options.sweep, path)
    return path


def submit_job(chain: Chain, name: str, steps: Sequence[Step], dependency: str | None) -> str:
    """One small job, from a snapshot of the code like the trials'; its id is printed and noted in jobs.jsonl."""
    folder = chain.folder.absolute() / FOLDER
    (job,) = submit(
        run_steps,
        [(str(Path.cwd()), list(steps))],
        "slurm",
        Request(
            folder,
            replace(chain.side(name), dependency=dependency),
            f"petseg-{chain.folder.name}-{name}",
            1,
            variables=take_snapshot(chain.folder / "code").variables(),
        ),
    )
    add_note(chain.folder, Note(name, str(job.job_id), dependency or "", str(job.paths.stdout)))
    waits = f" ({dependency})" if dependency else ""
    Terminal(soft_wrap=True).print(f"{name}: job {job.job_id}{waits}, log {job.paths.stdout}", highlight=False)
    return str(job.job_id)
