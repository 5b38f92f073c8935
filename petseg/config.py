"""RunConfig: one frozen tree that says what a run is, checked when it is built and never changed afterwards.

The same tree makes the command line (tyro), the axes of a sweep (dotted names such as `model.arch`) and config.json.
Fields marked `identity: False` (names, paths, tracking, threads) do not change the numbers and are left out of the
run's identity, which is a hash of the rest and of the shard set.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

SIZE_MULTIPLE_PX = 32
_FREE = {"identity": False}

Node = TypeVar("Node")


def _require(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} = {value!r}: {rule}")


@dataclass(frozen=True)
class DataConfig:
    shards: str = field(default="data/shards", metadata=_FREE)
    """Folder of the shard set, made by `python -m shards.pack`; or http(s)://, s3://, gs://, file://, or
    `pipe:COMMAND`, whose output is the file that stands for {} in it: such shards are staged to data.cache_dir."""
    image_size_px: int = 256
    """Pictures are squashed to this many pixels square (a multiple of 32)."""
    border: Literal["fg", "bg", "ignore"] = "fg"
    """What the trimap's border counts as: pet, background, or left out of loss and metrics."""
    threads: int = field(default=2, metadata=_FREE)
    """Threads per process that read and decode."""
    shuffle_window_shards: int = 16
    """Samples are shuffled among those of so many shards, which are shuffled too: reading stays near-sequential."""
    cache: Literal["auto", "none", "node", "device"] = field(default="auto", metadata=_FREE)
    """Where decoded samples are kept: nowhere, in a memory-mapped file per node, in the GPU's memory, or by size."""
    cache_dir: str = field(default="", metadata=_FREE)
    """Local folder of decoded samples and staged shards; by default $PETSEG_CACHE or one in the temporary folder."""
    cache_gb: float = field(default=50.0, metadata=_FREE)
    """What that folder may take; the least recently used goes first."""
    max_lost_samples: int = 0
    """Samples per epoch, over all processes, that training may go without because they cannot be read."""

    def __post_init__(self) -> None:
        size = self.image_size_px
        _require(
            size > 0 and size % SIZE_MULTIPLE_PX == 0,
            "data.image_size_px",
            size,
            f"must be a multiple of {SIZE_MULTIPLE_PX}",
        )
        _require(self.threads >= 1, "data.threads", self.threads, "must be at least 1")
        window, budget = self.shuffle_window_shards, self.max_lost_samples
        _require(window >= 1, "data.shuffle_window_shards", window, "must be at least 1")
        _require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "must be positive")
        _require(budget >= 0, "data.max_lost_samples", budget, "must not be negative")


@dataclass(frozen=True)
class AugmentConfig:
    policy: Literal["none", "elastic", "elastic_crop"] = "none"
    """elastic: smooth random displacement; elastic_crop: that or a random crop scaled back, one or the other."""
    p: float = 0.2
    """Probability that a sample is changed."""
    elastic_alpha: float = 30.0
    """Strength of the displacement, in the sense of torchvision's ElasticTransform (30 is about 0.5 px rms)."""
    elastic_sigma_px: float = 5.0
    """Smoothness of the displacement: standard deviation of its Gaussian kernel, in pixels."""
    crop_min_area: float = 0.5
    """A crop keeps at least this share of the picture's area."""

    def __post_init__(self) -> None:
        _require(0 <= self.p <= 1, "augment.p", self.p, "must lie in [0, 1]")
        _require(self.elastic_alpha >= 0, "augment.elastic_alpha", self.elastic_alpha, "must not be negative")
        _require(
            self.elastic_sigma_px >= 1,
            "augment.elastic_sigma_px",
            self.elastic_sigma_px,
            "must be at least 1",
        )
        _require(0 < self.crop_min_area <= 1, "augment.crop_min_area", self.crop_min_area, "must lie in (0, 1]")


@dataclass(frozen=True)
class ModelConfig:
    arch: Literal["unet", "resnet34_unet"] = "unet"
    """Architecture."""
    width: int = 64
    """Channels of the first stage; all others scale with it."""
    up: Literal["bilinear", "transposed"] = "bilinear"
    """How the decoder doubles the size: interpolation, or a learned 2x2 transposed convolution."""

    def __post_init__(self) -> None:
        _require(self.width >= 2 and self.width % 2 == 0, "model.width", self.width, "must be even and at least 2")


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adam", "adamw"] = "adam"
    """Optimizer; adamw leaves normalisation layers and biases without weight decay."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Weight decay (adam: L2 penalty, adamw: decoupled)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: kept, or a cosine down to zero at the last step."""
    warmup: float = 0.0
    """Share of all steps in which the learning rate rises from zero."""
    grad_clip: float = 0.0
    """Largest norm of the gradient, 0 = no clipping."""

    def __post_init__(self) -> None:
        _require(self.lr > 0 and math.isfinite(self.lr), "optim.lr", self.lr, "must be positive")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must not be negative")
        _require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "must lie in [0, 1)")
        _require(self.grad_clip >= 0, "optim.grad_clip", self.grad_clip, "must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = 100
    """Passes over the train split."""
    batch_size: int = 32
    """Samples per optimizer step, over all processes and accumulation steps together."""
    accumulation_steps: int = 1
    """Forward and backward passes per optimizer step; more need less memory."""
    loss: Literal["ce", "dice", "ce_dice"] = "ce"
    """Cross-entropy, soft Dice, or their sum."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the forward and backward pass; fp16 needs a GPU."""
    channels_last: bool = True
    """Keep activations in NHWC order, which convolutions prefer."""
    seed: int = 0
    """Seed of the weights, the order of the samples and the augmentation."""
    test: bool = True
    """Measure the test split with the best weights when training has ended."""
    log_every: int = field(default=10, metadata=_FREE)
    """Steps between two looks at the loss: progress, the check for NaN, and where an interrupt stops all processes."""
    save_every_min: float = field(default=10.0, metadata=_FREE)
    """Save at least this often within an epoch, so that a kill without warning costs no more than this; 0 = never."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "train.epochs", self.epochs, "must be at least 1")
        _require(self.batch_size >= 1, "train.batch_size", self.batch_size, "must be at least 1")
        _require(self.accumulation_steps >= 1, "train.accumulation_steps", self.accumulation_steps, "must be >= 1")
        _require(
            self.batch_size % self.accumulation_steps == 0,
            "train.batch_size",
            self.batch_size,
            f"must be a multiple of train.accumulation_steps = {self.accumulation_steps}",
        )
        _require(0 <= self.seed < 2**31, "train.seed", self.seed, "must lie in [0, 2**31)")
        _require(self.log_every >= 1, "train.log_every", self.log_every, "must be at least 1")
        _require(self.save_every_min >= 0, "train.save_every_min", self.save_every_min, "must not be negative")


@dataclass(frozen=True)
class TrackingConfig:
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Where wandb keeps its view of the run; metrics.jsonl is written in any case."""
    project: str = "petseg"
    """Project of the wandb run."""
    entity: str = ""
    """User or team of the wandb run; empty = your default."""
    overlays: int = 8
    """Validation pictures drawn with their masks at the end."""

    def __post_init__(self) -> None:
        _require(self.overlays >= 0, "tracking.overlays", self.overlays, "must not be negative")


@dataclass(frozen=True)
class RunConfig:
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=_FREE)


def identity(config: RunConfig, manifest_hash: str) -> dict[str, Any]:
    """What makes the run's numbers: the config without names, paths and tracking, and the shard set's hash."""
    return {**_identity_fields(config), "manifest_hash": manifest_hash}


def _identity_fields(node: Any) -> dict[str, Any]:
    return {
        f.name: _identity_fields(value) if is_dataclass(value := getattr(node, f.name)) else value
        for f in fields(node)
        if f.metadata.get("identity", True)
    }


def trial_id(config: RunConfig, manifest_hash: str) -> str:
    """First 10 hex digits of sha256 over the canonical JSON of the run's identity."""
    content = json.dumps(identity(config, manifest_hash), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:10]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    return asdict(config)


def config_from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """The config of a config.json; fields that it lacks take their defaults. Raises ValueError as `with_values`."""
    return with_values(RunConfig(), flatten(tree))


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A copy of the config with dotted fields set, as in `with_values(config, {"model.arch": "unet"})`.

    Raises ValueError for a field that does not exist, a value of another type or outside its range.
    """
    known = field_types()
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)
            raise ValueError(f"there is no config field {name!r}; near it: {', '.join(near)}")
    typed = {name: _typed(name, value, known[name]) for name, value in values.items()}
    return _rebuilt(config, "", typed)


@functools.cache
def field_types(node: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted name of each config field -> its type."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(node).items():
        nested = isinstance(hint, type) and is_dataclass(hint)
        types.update(field_types(hint, f"{prefix}{name}.") if nested else {prefix + name: hint})
    return types


def _rebuilt(node: Node, prefix: str, values: Mapping[str, Any]) -> Node:
    changed = {}
    for name, child in vars(node).items():
        dotted = prefix + name
        changed[name] = _rebuilt(child, f"{dotted}.", values) if is_dataclass(child) else values.get(dotted, child)
    return type(node)(**changed)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value as the field's type; YAML reads `1e-3` as a string, `no` as false and `null` as None: put right."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        value = {False: "no", None: "none"}.get(value, value) if value in (False, None) else value
        if value not in choices:
            raise ValueError(f"{name} = {value!r}: choose one of {', '.join(choices)}")
        return value
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not hint:
        raise ValueError(f"{name} = {value!r}: must be of type {hint.__name__}")
    return value
