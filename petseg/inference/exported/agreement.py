"""Whether an exported program computes what the model does: compared on the same pictures, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from petseg.data.inputs import normalise, to_image
from petseg.inference.header import Header
from petseg.inference.samples import Samples
from petseg.metrics.pixels import count_pixels, picture_dice, predicted_classes

BATCH = 4
MAX_DIFFERENCE = 1e-3  # of a probability, in float32: what other orders of addition do stays far below

Probabilities = Callable[[torch.Tensor], torch.Tensor]  # (B, H, W, 3) uint8 -> (B, K, H, W) float32


@dataclass(frozen=True)
class Agreement:
    """How far two programs agree on some pictures."""

    pictures: int
    max_difference: float  # of a probability
    other_pixels: float  # share of the pixels whose class differs
    dice: tuple[float, float] | None  # mean Dice of the model and of the exported program; None without classes

    def lines(self) -> list[str]:
        """What the terminal shows."""
        line = f"compared on {self.pictures} pictures: probabilities differ by {self.max_difference:.2e} at most"
        found = [f"{line}, {self.other_pixels:.4%} of the pixels have another class"]
        if self.dice:
            found.append(f"Dice {self.dice[0]:.6f} of the model, {self.dice[1]:.6f} exported")
        return found


@torch.inference_mode()
def compare(model: Probabilities, exported: Probabilities, samples: Samples, header: Header) -> Agreement:
    """Compare both programs picture by picture, in batches of 4 and of 1, so that no size of a batch is built in."""
    differences, others, dice = list[torch.Tensor](), 0, list[torch.Tensor]()
    parts = torch.arange(len(samples.images)).split(BATCH)
    if len(parts[-1]) > 1:
        parts = (*parts[:-1], parts[-1][:1], parts[-1][1:])
    for ids in parts:
        one, other = (program(samples.images[ids]) for program in (model, exported))
        differences.append((one - other).abs().max())
        others += int((predicted_classes(one) != predicted_classes(other)).sum())
        if samples.classes is not None:
            truth = samples.classes[ids]
            dice.append(torch.stack([picture_dice(count_pixels(p, truth, header.counted)) for p in (one, other)]))
    means = torch.cat(dice, dim=1).mean(dim=1).tolist() if dice else None
    pixels = samples.images.shape[0] * samples.images.shape[1] * samples.images.shape[2]
    largest = float(torch.stack(differences).max())  # nan if one is, which Python's max would drop
    return Agreement(len(samples.images), largest, others / pixels, (means[0], means[1]) if means else None)


def of_logits(network: Callable[[torch.Tensor], torch.Tensor]) -> Probabilities:
    """The probabilities of a network that takes normalised pictures."""

    def run(images: torch.Tensor) -> torch.Tensor:
        return network(normalise(to_image(images, torch.device("cpu")), channels_last=False)).float().softmax(dim=1)

    return run


def of_pixels(program: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> Probabilities:
    """The probabilities of a program that takes pixels; raises ValueError if its classes are not the most probable."""

    def run(images: torch.Tensor) -> torch.Tensor:
        probabilities, classes = program(images)
        chosen = probabilities.gather(1, classes[:, None].long())[:, 0]  # rounding makes ties of close logits
        if not (probabilities.amax(dim=1) - chosen).max() <= MAX_DIFFERENCE:
            raise ValueError("the classes of the exported program are not its most probable ones: nothing was written")
        return probabilities

    return run


def require_agreement(found: Agreement) -> None:
    """Raises ValueError if an exported program is not the model."""
    if not found.max_difference <= MAX_DIFFERENCE:  # nan too
        raise ValueError(
            f"the exported program differs from its model by {found.max_difference:.3g} in a probability, more than "
            f"{MAX_DIFFERENCE}: nothing was written"
        )
