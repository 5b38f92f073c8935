"""The callable that travels to the cluster for a prediction: parts of its pictures, by their folders."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import submitit

from jobs.node.departure import exit_for_another_node, exit_job
from jobs.node.task import note_failure, set_up_logging
from jobs.runs.parts import JOBS_NAME, PICTURES_NAME, read_pictures
from jobs.runs.trial import Trial
from jobs.runs.trial_state import TrialState
from petseg.footprint.gpus import NodeFault, require_gpus
from petseg.inference.many.outputs import Journal, OutputFolder, Row, write_summary
from petseg.inference.many.wanted import Wanted
from petseg.training import interrupt
from shards.command import Interrupted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictTask:
    """Predicts parts of the pictures, one after the other. A job that is requeued goes on with what is missing."""

    weights: tuple[str, ...]
    wanted: Wanted
    out: str
    here: str  # folder that relative paths of pictures begin in
    threads: int  # of torch

    def __call__(self, folders: Sequence[str]) -> None:
        interrupt.install()
        environment = submitit.JobEnvironment()
        set_up_logging(environment.global_rank)
        try:
            for folder in folders:
                self._run(Trial(Path(folder).name, {}, Path(folder)), environment)
        except Interrupted as stop:
            exit_job(environment, stop.requeue, folders)
        except NodeFault as fault:
            exit_for_another_node(environment, fault, folders)
            raise

    def _run(self, part: Trial, environment: submitit.JobEnvironment) -> None:
        if not (part.folder / PICTURES_NAME).exists():
            logger.info("nothing to do: the pictures of %s were given to other jobs", part.id)
            return
        here = TrialState("running", host=socket.gethostname(), job_id=environment.job_id, pid=os.getpid())
        part.write_state(here)
        try:
            os.chdir(self.here)
            self._predict(part)
        except Interrupted as stop:
            part.write_state(replace(here, status="interrupted", error=str(stop)))
            raise
        except NodeFault:
            raise
        except Exception as error:
            note_failure(part, here, error, rank=0)
            raise
        part.write_state(replace(here, status="done"))

    def _predict(self, part: Trial) -> None:
        require_gpus()
        import torch

        from petseg.inference.many.work import Work
        from petseg.inference.predictor import Options, load_predictor

        torch.set_num_threads(self.threads)
        wanted, output = self.wanted, output_folder(self.wanted, Path(self.out))
        journal = Journal(output.folder)
        items = [one for one in read_pictures(part.folder / PICTURES_NAME) if not output.is_done(journal.row(one.name))]
        logger.info("%s: %d pictures", part.id, len(items))
        predictor = load_predictor([Path(one) for one in self.weights], wanted.device, wanted.precision)
        options = Options(wanted.tta, wanted.keep_largest, wanted.min_area_px, wanted.batch_size)
        Work(predictor, options, output, wanted.batch_size, wanted.threads, part.id).run(items, _stop_where_asked())
        if (bad := finish(output, Path(self.weights[0]))) is not None:
            logger.info("all parts are done, and summary.csv is written; %d pictures could not be read", len(bad))


def _stop_where_asked() -> Callable[[int], None]:
    """Called after each batch, whose masks are on disk: raises Interrupted once a signal has come."""
    predicted = 0

    def advance(count: int) -> None:
        nonlocal predicted
        predicted += count
        if interrupt.requested():
            raise Interrupted(f"interrupted after {predicted} pictures", interrupt.requeue_requested())

    return advance


def output_folder(wanted: Wanted, out: Path) -> OutputFolder:
    """The folder of outputs as these flags fill it."""
    return OutputFolder(out, wanted.kinds, wanted.segmentation)


def finish(output: OutputFolder, weights: Path) -> list[Row] | None:
    """Write summary.csv, and coco.json, once no picture is left; returns the pictures not read, None before that.

    Two jobs that end at once both write them, each whole and with the same content.
    """
    from petseg.inference.predictor import read_file_header

    items, journal = read_pictures(output.folder / JOBS_NAME / PICTURES_NAME), Journal(output.folder)
    if any(item.name not in journal for item in items):
        return None
    return write_summary(output, items, read_file_header(weights))
