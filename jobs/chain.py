"""Pack, train and report as jobs that wait for each other, or one after the other on this machine.

python jobs/chain.py pack train report --partition gpu --pack --download --out data/shards
python jobs/chain.py train report --sweep jobs/sweeps/lab.yaml --partition gpu
python jobs/chain.py pack train report --sweep jobs/sweeps/demo.yaml --cluster local --pack --synthetic 400

Any of the three that follow each other. Their flags are those of jobs/sweep.py; what stands after --pack goes to
`python -m shards.pack`.

The names of trials hold the shard set's hash, which is known only when packing is done: after `pack` the rest of the
chain is this same command with the rest of its words, run by a small job that waits for the pack.

Exit code that of the first step that does not succeed; 4 if Slurm does not say how trials stand: the chain ends there,
and the same command again goes on.
"""

from __future__ import annotations

import logging
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

import tyro

from jobs import sweep as launcher
from jobs.design.spec import Spec, expand, load_spec, parse_axes, parse_settings
from jobs.node.chain_steps import Step, run_step, run_steps
from jobs.runs.snapshot import take_snapshot
from jobs.runs.trial import CHAIN_NOTES, load_sweep
from jobs.state.chain_state import FOLDER, Note, add_note
from jobs.state.trial_status import LIVE, standings
from petseg.data.store import is_remote
from petseg.run_folder.new_folder import missing_folders, removed_unless_begun
from shards.command import NOT_KNOWN, OK, parse, run_command
from shards.terminal import Terminal
from slurm.executor import submit
from slurm.profiles import profile_of
from slurm.resources import Resources

STEPS = ("pack", "train", "report")
PACK_FLAG = "--pack"
PACK_OUT = "data/shards"  # shards.pack's default

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command(launcher.Command):
    """Pack, train and report as jobs that wait for each other."""

    steps: Annotated[tuple[Literal["pack", "train", "report"], ...], tyro.conf.Positional] = ()
    """Which ones, in this order."""
    side_partition: str | None = None
    """Partition of the small jobs that pack, submit and report; by default that of the trials."""


@dataclass(frozen=True)
class Chain:
    """What is to be done, with the words that it was asked for by."""

    command: Command
    spec: Spec
    flags: tuple[str, ...]  # of jobs/sweep.py
    pack_flags: tuple[str, ...]  # of shards.pack

    @property
    def folder(self) -> Path:
        """The sweep's."""
        return self.command.runs_dir / (self.command.name or self.spec.name)

    def side(self, step: str) -> Resources:
        """What the jobs ask for that train nothing: packing has use for several cores."""
        asked = self.command.resources
        partition, cores = self.command.side_partition or asked.partition, asked.cpus_per_task if step == "pack" else 1
        return replace(
            asked, partition=partition, nodes=1, gpus_per_node=0, tasks_per_node=1, cpus_per_task=cores, constraint=None
        )

    def report_steps(self) -> list[Step]:
        """The page, and for the log where each trial stands."""
        words = [str(self.folder)]
        if not is_remote(shards := expand(self.spec)[0].config.data.shards):
            words += ["--shards", shards]
        report = Step("jobs.report", tuple(words), accepts=(NOT_KNOWN,))  # the page is there, and says so
        return [report, Step("jobs.status", (str(self.folder),), must=False)]


def main(argv: Sequence[str] | None = None) -> int:
    chain = read_chain(list(sys.argv[1:] if argv is None else argv))
    return run_here(chain) if chain.command.cluster != "slurm" else submit_chain(chain)


def read_chain(argv: Sequence[str]) -> Chain:
    """Raises ValueError for steps that do not follow each other, for a pack that the sweep would not read, and for
    weights that are not there.
    """
    place = argv.index(PACK_FLAG) if PACK_FLAG in argv else len(argv)
    words, pack_flags = argv[:place], tuple(argv[place + 1 :])
    default = Command(resources=profile_of(words))
    command = parse(Command, words, __doc__, default=default)
    steps = command.steps
    first = STEPS.index(steps[0]) if steps else 0
    if not steps or steps != STEPS[first : first + len(steps)] or tuple(words[: len(steps)]) != steps:
        raise ValueError(f"begin with some of {' '.join(STEPS)} that follow each other: `jobs/chain.py train report`")
    if ("pack" in steps) != (place < len(argv)):
        raise ValueError(
            "say what to pack at the end of the line: --pack --synthetic 400"
            if "pack" in steps
            else f"{PACK_FLAG} goes with the step pack: `jobs/chain.py pack {' '.join(steps)}`"
        )
    spec = load_spec(command.sweep).changed(parse_axes(command.axis), parse_settings(command.set, "--set"))
    launcher.require_weights(spec)
    shards = expand(spec)[0].config.data.shards
    if "pack" in steps and not _same_place(out := _out_of(pack_flags), shards):
        raise ValueError(f"the pack goes to {out}, and the sweep reads {shards}: add --set data.shards={out}")
    return Chain(command, spec, tuple(_without(words[len(steps) :], "--side-partition")), pack_flags)


def _out_of(pack_flags: Sequence[str]) -> str:
    out = PACK_OUT
    for word, after in zip(pack_flags, [*pack_flags[1:], ""], strict=True):
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


def run_here(chain: Chain) -> int:
    """One step after the other; the report is made also where trials have failed. Returns the first bad exit code."""
    steps = chain.command.steps
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
    steps = chain.command.steps
    if "pack" in steps:
        submit_from_pack(chain)
        return OK
    if "train" in steps:
        code = launcher.main([*chain.flags])
        if code or chain.command.dry_run:
            return code
    if "report" in steps:
        sweep = load_sweep(chain.folder)
        rows = [row for row in standings(sweep) if row.status in LIVE and row.submission]
        arrays = {row.submission.job_id.partition("_")[0] for row in rows if row.submission}
        after = f"afterany:{':'.join(sorted(arrays))}" if arrays else None
        submit_job(chain, "report", chain.report_steps(), after)
    return OK


def submit_from_pack(chain: Chain) -> None:
    """The pack, and a job that waits for it and runs the rest of the chain: from there the set's hash is known."""
    if chain.command.dry_run:
        raise ValueError("--dry-run shows trials, whose names are known after packing: pack first, or leave it out")
    require_pack(chain.pack_flags)
    missing = missing_folders(chain.folder)
    notes = chain.folder / CHAIN_NOTES
    with removed_unless_begun(missing, lambda error: notes.exists() or not isinstance(error, ValueError)):
        _submit_pack_and_rest(chain)


def _submit_pack_and_rest(chain: Chain) -> None:
    resume = () if "--resume" in chain.pack_flags else ("--resume",)  # a job that is requeued goes on
    packing = [Step("shards.pack", (*chain.pack_flags, *resume))]
    pack = submit_job(chain, "pack", packing, chain.command.resources.dependency)
    rest = chain.command.steps[1:]
    if not rest:
        return
    flags = [*rest, *_without(chain.flags, "--dependency")]
    flags += ["--sweep", str(keep_sweep_file(chain)), "--name", chain.folder.name]
    if chain.command.side_partition:
        flags += ["--side-partition", chain.command.side_partition]
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
    content = chain.command.sweep.read_bytes()
    path = chain.folder.absolute() / FOLDER / sha256(content).hexdigest()[:12] / chain.command.sweep.name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(chain.command.sweep, path)
    return path


def submit_job(chain: Chain, name: str, steps: Sequence[Step], dependency: str | None) -> str:
    """One small job, from a snapshot of the code like the trials'; its id is printed and noted in jobs.jsonl."""
    folder = chain.folder.absolute() / FOLDER
    (job,) = submit(
        run_steps,
        [(str(Path.cwd()), list(steps))],
        cluster="slurm",
        folder=folder,
        resources=replace(chain.side(name), dependency=dependency),
        name=f"petseg-{chain.folder.name}-{name}",
        max_parallel=1,
        variables=take_snapshot(chain.folder / "code").variables(),
    )
    add_note(chain.folder, Note(name, str(job.job_id), dependency or "", str(job.paths.stdout)))
    waits = f" ({dependency})" if dependency else ""
    Terminal(soft_wrap=True).print(f"{name}: job {job.job_id}{waits}, log {job.paths.stdout}", highlight=False)
    return str(job.job_id)


if __name__ == "__main__":
    sys.exit(run_command(main))
