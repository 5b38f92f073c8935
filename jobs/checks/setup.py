"""What the doctor's checks share: findings, the command, and what the command stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from jobs.checks.samples import write_small_set
from jobs.design.expansion import Cell, expand
from jobs.design.shard_sets import require_known_sets, typed_locations
from jobs.design.spec import DEFAULT_SWEEP, Spec, load_spec, parse_axes, parse_settings
from petseg.config import DataConfig, RunConfig
from petseg.config.values import with_values
from petseg.data.store import Store, open_store
from shards.command import Failure
from slurm.resources import Resources

if TYPE_CHECKING:
    from petseg.run_folder.layout import Result

SMALL_SIZE_PX, SMALL_WIDTH, SMALL_BATCH = 64, 8, 8

Status = Literal["ok", "warn", "FAIL"]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Finding:
    """What one check says: a line of the table."""

    status: Status
    what: str
    detail: str
    advice: str = ""
    seconds: float = 0.0


class NotChecked(RuntimeError):
    """A check cannot be made because what it stands on is not there; the check `root` says why."""

    def __init__(self, root: str, why: str) -> None:
        super().__init__(f"{root}: {why}")
        self.root, self.why = root, why


@dataclass(frozen=True)
class Command:
    """Check all that a sweep stands on, before GPU hours are spent: exit code 0, or 3 if anything is wrong."""

    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    profile: str | None = None
    """What jobs ask for on a cluster, by a name of ~/.config/petseg/profiles.toml; other flags override it."""
    sweep: Path = DEFAULT_SWEEP
    """Sweep file in wandb's form, as for jobs/sweep.py."""
    name: str = ""
    """Name of the sweep's folder; by default the file's `name`."""
    runs_dir: Path = Path("runs")
    """Where sweeps lie; every node must see it."""
    cluster: Literal["slurm", "local"] = "slurm"
    """Where the sweep is to run: through sbatch, or on this machine."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further axis, or another one's values, as NAME=VALUE,VALUE; can be repeated."""
    allow_pipe: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Fetch shards from the addresses, or by the commands, that the sweep file names, although you have never submitted
    them: it could be a stranger's."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A fixed value for all trials, as NAME=VALUE; can be repeated."""
    only: str = ""
    """Names of checks, with commas between: no others are made."""
    skip: str = ""
    """Names of checks that are not made."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave out the checks that train."""
    deep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Read each byte of each shard, and decode each sample."""
    all_reduce: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run a job of a few seconds that adds numbers up over all the processes that a trial would have."""
    wait_min: float = 10.0
    """How long the job of --all-reduce may wait in the queue; the one that looks at a node waits a minute at most."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the findings as JSON."""

    def spec(self) -> Spec:
        return load_spec(self.sweep).changed(parse_axes(self.axis), parse_settings(self.set, "--set"))


@dataclass
class Setup:
    """What is checked, computed once; raises NotChecked in every check that needs a part that cannot be had."""

    command: Command
    folder: Path  # temporary, on this machine
    argv: tuple[str, ...] = ()  # as the doctor was called
    _failed: dict[str, NotChecked] = field(default_factory=dict)

    @cached_property
    def spec(self) -> Spec:
        return self._once("config", self.command.spec)

    @cached_property
    def cells(self) -> list[Cell]:
        return self._once("config", lambda: expand(self.spec))

    @property
    def config(self) -> RunConfig:
        """The config of the first cell."""
        return self.cells[0].config

    @cached_property
    def store(self) -> Store:
        return self._once("shards", partial(self._open, self.config.data))

    @cached_property
    def stores(self) -> tuple[Store, ...]:
        """The shard sets of all cells, that of the first cell first."""
        others = [config.data for config in self.distinct(lambda config: config.data.shards)[1:]]
        return (self.store, *(self._once(data.shards, partial(self._open, data)) for data in others))

    def store_of(self, config: RunConfig) -> Store:
        """The shard set that a cell's config names."""
        names = [one.data.shards for one in self.distinct(lambda config: config.data.shards)]
        return self.stores[names.index(config.data.shards)]

    @cached_property
    def small_set(self) -> Path:
        """A shard set of a few real samples."""
        return self._once("shards", lambda: write_small_set(self.store, self.folder / "small"))

    @cached_property
    def straight(self) -> tuple[Path, Result]:
        """The folder of a small run of two epochs that nothing interrupted, and its result."""
        from petseg.training.loop import train

        folder = self.folder / "straight"
        with one_thread():
            return folder, self._once("run", lambda: train(self.small(self.augmented), folder))

    @property
    def augmented(self) -> RunConfig:
        """The last cell that augments, or the last one."""
        configs = [cell.config for cell in self.cells]
        return next((c for c in reversed(configs) if c.augment.policy != "none"), configs[-1])

    def distinct(self, key: Callable[[RunConfig], Any]) -> list[RunConfig]:
        """The first config for each value of the key, in the order of the cells."""
        configs: dict[Any, RunConfig] = {}
        for cell in self.cells:
            configs.setdefault(key(cell.config), cell.config)
        return list(configs.values())

    def small(self, config: RunConfig, **values: Any) -> RunConfig:
        """The config cut down to seconds on a few real samples; keyword arguments set dotted fields, __ for the dot."""
        import torch

        without_gpu = config.train.mixed_precision == "fp16" and not torch.cuda.is_available()
        cut = {
            "data.shards": str(self.small_set),
            "data.image_size_px": SMALL_SIZE_PX,
            "data.threads": 1,
            "data.cache": "none",
            "data.cache_dir": str(self.folder / "cache"),
            "model.width": min(config.model.width, SMALL_WIDTH),
            "train.epochs": 2,
            "train.batch_size": SMALL_BATCH,
            "train.accumulation_steps": 2 if config.train.accumulation_steps > 1 else 1,
            "train.late_batches": min(2, config.train.late_batches),
            "train.mixed_precision": "no" if without_gpu else config.train.mixed_precision,
            "train.test": False,
            "train.log_every": 1,
            "tracking.wandb": "disabled",
            "tracking.overlays": 0,
        }
        return with_values(config, cut | {name.replace("__", "."): value for name, value in values.items()})

    def close(self) -> None:
        opened = vars(self).get("stores") or [vars(self)[name] for name in ("store",) if name in vars(self)]
        for store in opened:
            store.close()

    def _open(self, data: DataConfig) -> Store:
        command = self.command
        if not command.allow_pipe:
            require_known_sets(self.cells, typed_locations(self.spec, [*command.set, *command.axis]), command.sweep)
        return open_store(data.shards, data.cache_dir, data.cache_gb)

    def _once(self, name: str, build: Callable[[], Found]) -> Found:
        if name not in self._failed:
            try:
                return build()
            except NotChecked as error:
                self._failed[name] = error
            except (ValueError, OSError, Failure) as error:
                self._failed[name] = NotChecked(name, str(error))
            except Exception as error:  # a bug's message says little
                self._failed[name] = NotChecked(name, f"{type(error).__name__}: {error}")
        raise self._failed[name]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's threads wait for each other on small tensors: 69 s instead of 13 for all checks, on two busy cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
