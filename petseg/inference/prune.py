"""A weights file with whole channels removed: the same architecture at a smaller width, to be trained further."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from petseg.config import OWN_ARCHITECTURES
from petseg.inference.header import Header, petseg_version
from petseg.inference.weights_file import SUFFIX, build_network, load_model, save_weights
from petseg.models.build import count_parameters
from petseg.models.narrow import narrow
from petseg.run_folder.checkout import running_code


@dataclass(frozen=True)
class Pruned:
    """What was written."""

    header: Header
    width_before: int
    parameters_before: int
    parameters: int

    def __str__(self) -> str:
        share = self.parameters / self.parameters_before
        model = self.header.models[0]
        return (
            f"{model.arch}, width {self.width_before} -> {model.width}: "
            f"{self.parameters_before:,} -> {self.parameters:,} parameters ({share:.1%})"
        )


def prune(weights: Path, keep: float, out: Path) -> Pruned:
    """Write a weights file of the width keep * width, rounded to an even number.

    The numbers that were measured of the whole network are left out: they are not those of the pruned one.
    Raises ValueError for a file that cannot be read, and for a network that cannot be made narrower.
    """
    if out.suffix != SUFFIX:
        raise ValueError(f"--out {out}: its name must end in {SUFFIX}")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.absolute().parent}")
    if out.exists() and out.samefile(weights):
        raise ValueError(f"--out {out} is the file that is pruned: choose another name")
    header, wide = load_model(weights)
    network = header.models[0]
    if len(header.models) > 1:
        raise ValueError(
            f"{weights} is an ensemble of {len(header.models)} networks: prune the file of one of them, or let a small "
            "network learn from all of them with --distill.teacher"
        )
    if network.arch not in OWN_ARCHITECTURES:
        raise ValueError(
            f"{weights} is a {network.arch}, whose encoder has no width: only {' and '.join(OWN_ARCHITECTURES)} can be "
            "pruned; let a small network learn from it with --distill.teacher"
        )
    width = slim_width(network.width, keep)
    origins = tuple(replace(one, metrics={}, evaluations={}) for one in header.runs)
    header = replace(
        header,
        models=(replace(network, width=width),),
        runs=origins,
        measured={},
        code=running_code(),
        petseg=petseg_version(),
    )
    slim = build_network(header)
    narrow(wide, slim)
    save_weights(header, slim.state_dict(), out)
    load_model(out)  # what cannot be read back is found here
    return Pruned(header, network.width, count_parameters(wide), count_parameters(slim))


def slim_width(width: int, keep: float) -> int:
    """The even width nearest to keep * width, at least 2; raises ValueError for a share outside (0, 1]."""
    if not 0 < keep <= 1:
        raise ValueError(f"--keep {keep}: must lie in (0, 1]")
    return max(2, 2 * round(keep * width / 2))
