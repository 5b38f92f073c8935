"""Training of one model from its start, or its newest checkpoint, to its result: attempts, epochs, validation."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import broadcast_object_list

from petseg.config import RunConfig
from petseg.config.values import config_to_dict, with_values
from petseg.data.mixing import mixing_of
from petseg.data.store import Store, enlarged_line, open_store
from petseg.data.tars import UNREADABLE
from petseg.evaluation.measure import PredictedPicture, measure, predict
from petseg.models.pretrained import load_pretrained
from petseg.run.parts import Parts, build_parts
from petseg.run.peers import lost_peers_raise
from petseg.run.run import Run, new_run
from petseg.run.schedule import fit_budget
from petseg.run_folder.attempts import begin_attempt
from petseg.run_folder.layout import PRUNED_NAME, Result, claim_folder, load_overrides, load_pruned, load_result
from petseg.targets.target import save_target
from petseg.tracking.naming import RunName, name_of_run
from petseg.tracking.tracker import Tracker, how_ended
from petseg.training.epoch import Row, interrupted, train_epoch
from petseg.training.finish import finish, fixed_positions
from petseg.training.given_weights import load_initial, load_teacher
from petseg.training.progress_bar import TrainProgress
from petseg.training.pruning import EarlyStop, StoppedEarly, pass_rung
from petseg.training.resume import resume, save_epoch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """What the caller knows of a run beyond its config."""

    name: RunName | None = None  # how wandb shows the run; by default as its folder or its identity says
    world_size: int = 0  # number of processes that there must be, 0 = any
    max_without_progress: int = 0  # starts in a row that may end without a finished step, 0 = any number
    early: EarlyStop | None = None  # when to stop it early, compared with which other runs


def train(config: RunConfig, folder: Path, terms: Terms | None = None) -> Result:
    """Run `config` in `folder`, or resume it from its newest checkpoint; called by every process of the run.

    Without `terms.early`, a run that was stopped early resumes.
    Raises ValueError for a folder that holds another run; Failure for damaged data or a loss that is not finite;
    Interrupted if a signal asked to stop, or if another process has taken the run over; LostPeer if one of its own
    processes is gone; StoppedEarly, on all ranks, if `terms.early` stops it now or has done so before.
    """
    terms = terms or Terms()
    store = open_store(config.data.shards, config.data.cache_dir, config.data.cache_gb)
    claim_folder(config, store.manifest.hash, folder)
    if (result := load_result(folder)) is not None:
        logger.info("%s is finished", folder)
        store.close()
        return result
    if terms.early and (pruned := load_pruned(folder)):
        store.close()
        raise StoppedEarly(pruned)
    run = build_run(config, folder, store, terms)
    tracker = None
    if run.parts.is_main:
        name = terms.name or name_of_run(folder, run.parts.config)
        tracker = Tracker(folder, config.tracking, name, config_to_dict(run.parts.config), run.progress.epoch)
    try:
        with lost_peers_raise():
            train_epochs(run, tracker, terms.early)
            return finish(run, tracker)
    except StoppedEarly:
        raise
    except BaseException as error:
        if tracker:
            tracker.finish({}, how_ended(error))
        raise
    finally:
        run.parts.close()


def build_run(config: RunConfig, folder: Path, store: Store, terms: Terms) -> Run:
    """Build the run's parts, warn of what is unusual about them, and start or resume the run."""
    manifest = store.manifest
    if overrides := load_overrides(folder):
        logger.warning("%s runs with %s, as its overrides.json says", folder, overrides)
        config = with_values(config, overrides)
    if enlarged := enlarged_line(manifest, config.data.shards, config.data.image_size_px, config.data.fit):
        logger.warning("%s", enlarged)
    splits = ["train", "val", *(["test"] if config.train.test and "test" in manifest.splits else [])]
    parts = build_parts(config, store, folder, terms.world_size, splits)
    run = new_run(parts, load_teacher(parts))
    if run.parts.is_main and not run.parts.target.is_implied:
        save_target(run.parts.target, folder)  # so that the run is measured and shown as it was trained
    with lost_peers_raise():
        start_attempt(run, terms.max_without_progress)
    if run.parts.is_main:
        warn_of_poor_mixing(run.parts)
    return run


def start_attempt(run: Run, max_without_progress: int) -> None:
    """Load the newest checkpoint, or else the weights that the config names, if any, and take the right to write."""
    parts = run.parts
    if not resume(run):
        if parts.config.model.init:
            load_initial(parts)
        else:
            load_pretrained(parts.config.model, parts.bare_model)
        if parts.ema:
            parts.ema.load(parts.bare_model.state_dict())
    if parts.is_main:
        run.attempt.noted = begin_attempt(parts.folder, run.progress.done_steps, max_without_progress, parts.world_size)
        (parts.folder / PRUNED_NAME).unlink(missing_ok=True)


def warn_of_poor_mixing(parts: Parts) -> None:
    data, train = parts.config.data, parts.config.train
    with contextlib.suppress(*UNREADABLE):  # reported where the samples are read
        mixing = mixing_of(parts.store, data.shuffle_window_shards, train.batch_size, train.seed)
        if mixing and mixing.is_poor:
            logger.warning("%s", mixing)


def train_epochs(run: Run, tracker: Tracker | None, early: EarlyStop | None) -> None:
    """Train all remaining epochs; each is validated, logged and saved. Raises as `train` says."""
    progress = run.progress
    with TrainProgress(progress.total_steps, progress.steps_per_epoch, progress.done_steps, run.parts.is_main) as bar:
        while progress.epoch < progress.epochs:
            if early:
                pass_rung(run, early, tracker)
            epoch = progress.epoch + 1
            row, stop = train_epoch(run, epoch, bar)
            steps = progress.first_step(epoch) + progress.steps_of(epoch)
            row = {"epoch": epoch, "step": steps} | row | validate(run.parts)
            if epoch == 1:
                settle_budget(run, row["perf/seconds"], row["perf/validation_s"])
            bar.epoch_done(row)
            run.attempt.require_newest()
            if tracker:
                tracker.log(row, pictures_of_best(run, row, tracker))
            save_epoch(run, row)
            if stop and epoch < progress.epochs:
                raise interrupted(run, stop)


def validate(parts: Parts) -> Row:
    """Measure val with the weights that are kept."""
    start = time.perf_counter()
    parts.sync_buffers()
    with kept_weights(parts):
        row = measure(parts, "val").summary("val")
    return row | {"perf/validation_s": time.perf_counter() - start}


def kept_weights(parts: Parts) -> contextlib.AbstractContextManager[None]:
    """A context in which the model has the weights that are measured and kept: the averages, where there are any."""
    return parts.ema.in_place() if parts.ema else contextlib.nullcontext()


def pictures_of_best(run: Run, row: Row, tracker: Tracker) -> list[PredictedPicture]:
    """The fixed val pictures with masks of the weights that are kept, if wandb is to show them; on the main process.

    This changes no number of the training: the model is in evaluation mode, and nothing random is drawn.
    """
    parts = run.parts
    if row["val/dice"] <= run.progress.best.dice or not tracker.wants_pictures(int(row["epoch"])):
        return []
    with kept_weights(parts):
        return predict(parts, "val", fixed_positions(len(parts.splits["val"]), parts.config.tracking.overlays))


def settle_budget(run: Run, train_s: float, validation_s: float) -> None:
    """With `train.budget_min`, fix the run's number of steps by the time of its first epoch and its validation."""
    if run.parts.config.train.budget_min:
        train_s, validation_s = broadcast_object_list([train_s, validation_s])
        fit_budget(run.parts.config, run.progress, run.progress.steps_of(1), train_s, validation_s)
