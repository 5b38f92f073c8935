"""Run a sweep: one job per trial, and only for trials that have no result yet.

python jobs/sweep.py --partition gpu
python jobs/sweep.py --cluster local --max-parallel 2 --set train.epochs=3 --axis train.seed=0
python jobs/sweep.py --partition gpu --dry-run
python jobs/sweep.py --sweep jobs/sweeps/search.yaml --cluster local

Exit code 0; 3 if trials have failed (--cluster local and debug, which wait for them); 4 if Slurm does not say how some
jobs stand, which are left alone; 75 if Slurm takes no more jobs now, or does not answer, and trials are left: the same
command again submits those.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from jobs.launch.options import Options
from shards.command import run_command
from shards.command.flags import parse
from slurm.profiles import profile_of


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(Options, argv, __doc__, default=Options(resources=profile_of(argv)))
    from jobs.launch import dry_run, run  # numpy, scipy and submitit, which `--help` and wrong flags do without

    return dry_run.show_plan(options) if options.dry_run else run.launch_sweep(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
