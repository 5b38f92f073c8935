"""Predict many pictures by jobs that share them, with a sweep's winner or a weights file.

python jobs/predict.py lab --source data/shards --partition gpu --out predicted
python jobs/predict.py --weights winner.safetensors --source photos/ --parts 32 --partition gpu --out predicted
python jobs/predict.py lab --source photos/ --cluster local --max-parallel 2 --out predicted

The same command again submits only what is missing: pictures without a mask that no job holds. The outputs are those
of petseg.predict; summary.csv, and coco.json, are written once no picture is left.

Exit code 0; 1: some pictures could not be read, and are listed; 3 if jobs on this machine have failed; 4 if Slurm does
not say how some jobs stand, which are left alone; 75 if Slurm takes no more jobs now.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from jobs.launch.prediction_options import PredictionOptions
from shards.command import run_command
from shards.command.flags import parse
from slurm.profiles import profile_of


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(PredictionOptions, argv, __doc__, default=PredictionOptions(resources=profile_of(argv)))
    from jobs.launch import prediction  # torch and submitit, which `--help` and wrong flags do without

    return prediction.show_prediction(options) if options.dry_run else prediction.launch_prediction(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
