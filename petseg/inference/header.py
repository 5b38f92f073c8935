"""What a weights file says of its model, as JSON in the metadata of its safetensors header.

format_version, petseg, code       versions: of the file, of petseg, and the git commit that wrote it
models                             arch, width, up, encoder and pretrained of each network; several = an ensemble
combined                           single, average (of the weights of several runs) or ensemble (of their
                                   probabilities)
target, border, classes            what was learnt: name, value, colour, and whether it counts in means
image_size_px, fit                 the size that the network sees, and how pictures get it
normalisation                      mean and standard deviation of RGB in 0-1
mixed_precision, channels_last     how the run computed
runs                               of each run: trial_id, shard set's hash and attribution, checkpoint, the metrics of
                                   result.json, and the numbers of evaluate-SPLIT.json with protocol and interval
measured                           numbers of this very file, where a shard set was given; else {}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from petseg.config.sizes import Fit, ImageSize, Size, is_network_size, size_of
from petseg.data.inputs import MEAN, STD
from petseg.models.networks import Network
from petseg.run_folder.checkout import Checkout
from petseg.targets.target import BACKGROUND
from shards.classes import IGNORE_VALUE, ClassEntry, ClassTable, table_of_json
from shards.files import build

FORMAT_VERSION = 1
MAX_MODELS = 64
MAX_SIDE_PX = 8192  # of the network: encoders with position embeddings allocate by it

Combined = Literal["single", "average", "ensemble"]


class NewerFormat(ValueError):
    """A file that a later petseg wrote."""


@dataclass(frozen=True)
class Origin:
    """A run that the weights come from."""

    trial_id: str
    manifest_hash: str
    attribution: str
    checkpoint: str
    metrics: dict[str, float]  # of result.json; {} if the run has not finished
    evaluations: dict[str, Any] = field(default_factory=dict)  # by split, of evaluate-SPLIT.json


@dataclass(frozen=True)
class Header:
    """The facts of a weights file."""

    models: tuple[Network, ...]
    combined: Combined
    target: str
    border: str
    classes: tuple[ClassEntry, ...]
    image_size_px: ImageSize
    fit: Fit
    mixed_precision: Literal["no", "bf16", "fp16"]
    channels_last: bool
    runs: tuple[Origin, ...]
    measured: dict[str, Any]
    code: Checkout
    petseg: str

    @property
    def size_px(self) -> Size:
        return size_of(self.image_size_px)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.classes)

    @property
    def counted(self) -> tuple[int, ...]:
        """The classes that are looked for: all but the background."""
        return tuple(one.value for one in self.classes if one.name != BACKGROUND)


def petseg_version() -> str:
    """The installed version; empty where petseg is not installed."""
    try:
        return version("petseg")
    except PackageNotFoundError:
        return ""


def to_json(header: Header) -> dict[str, Any]:
    content = asdict(header)
    content["classes"] = [one | {"counts": one["value"] in header.counted} for one in content["classes"]]
    return {"format_version": FORMAT_VERSION, **content, "normalisation": {"mean": [*MEAN], "std": [*STD]}}


def from_json(content: Any) -> Header:
    """The header of a file that could be a stranger's; raises ValueError that says what is wrong with it."""
    if not isinstance(content, dict) or type(content.get("format_version")) is not int:
        raise ValueError("it has no format version")
    if content["format_version"] > FORMAT_VERSION:
        raise NewerFormat(f"format version {content['format_version']}, and this petseg reads {FORMAT_VERSION}")
    if content.get("normalisation") != {"mean": [*MEAN], "std": [*STD]}:
        raise ValueError(f"its normalisation is {content.get('normalisation')!s:.80}")
    try:
        header = _parse(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header: {error!r:.200}") from None
    if not 1 <= len(header.models) <= MAX_MODELS:
        raise ValueError(f"it has {len(header.models)} networks: 1 to {MAX_MODELS} are possible")
    if not is_network_size(header.image_size_px) or max(header.size_px) > MAX_SIDE_PX:
        raise ValueError(f"its image_size_px is {header.image_size_px!r:.40}")
    for network in header.models:
        network.config()
    return header


@dataclass(frozen=True)
class _Plain:
    """The fields of a Header that JSON holds as they are, for `shards.files.build` to check."""

    combined: Combined
    target: str
    border: str
    image_size_px: int | str
    fit: Fit
    mixed_precision: Literal["no", "bf16", "fp16"]
    channels_last: bool
    measured: dict[str, Any]
    petseg: str


def _parse(content: Mapping[str, Any]) -> Header:
    table = table_of_json({"classes": content["classes"], "ignore_value": IGNORE_VALUE})
    plain = build(_Plain, {one.name: content[one.name] for one in fields(_Plain)})
    return Header(
        models=tuple(build(Network, one) for one in _list(content["models"])),
        classes=_two_or_more(table),
        runs=tuple(build(Origin, one) for one in _list(content["runs"])),
        code=build(Checkout, content["code"]),
        **vars(plain),
    )


def _two_or_more(table: ClassTable) -> tuple[ClassEntry, ...]:
    if len(table) < 2:
        raise ValueError(f"it has {len(table)} class")
    return table.classes


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} where a list is expected")
    return value
