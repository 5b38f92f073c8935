"""Results of all processes, in the order of the split, and the network's sizes and pixels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from petseg.data.inputs import IGNORE_INDEX
from petseg.data.ledger import Count, Ledger
from petseg.data.tars import Lost
from petseg.evaluation.gathered import close_ledger, collect, collect_masks
from petseg.evaluation.measure import PredictedPicture
from petseg.evaluation.network import for_display, network_of, pixels_of, windows_per_picture
from petseg.metrics.overlay import TRUTH_RGB, WRONG_RGB
from petseg.run.parts import Parts
from petseg.targets.target import Target
from shards.cause import Cause
from shards.classes import ClassEntry
from shards.command import Failure
from shards.manifest import split_of_keys

KEYS = ["a", "b", "c", "d", "e"]


class TwoProcesses:
    """What accelerate does for a process whose peer has these tensors, one for each time that something is gathered."""

    device = torch.device("cpu")

    def __init__(self, *theirs: torch.Tensor) -> None:
        self.theirs = list(theirs)

    def pad_across_processes(self, tensor: torch.Tensor, dim: int, pad_index: int) -> torch.Tensor:
        assert dim == 0
        missing = len(self.theirs[0]) - len(tensor)
        return torch.cat([tensor, tensor.new_full((max(0, missing), *tensor.shape[1:]), pad_index)])

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        theirs = self.theirs.pop(0)
        missing = len(tensor) - len(theirs)
        fill = -1 if tensor.ndim < 3 else 0
        return torch.cat([tensor, theirs, theirs.new_full((max(0, missing), *theirs.shape[1:]), fill)])


def parts_of(accelerator: object = None, num_classes: int = 2, size: tuple[int, int] = (2, 4), **data: Any) -> Parts:
    config = SimpleNamespace(data=SimpleNamespace(size_px=size, **data))
    manifest = SimpleNamespace(splits={"test": split_of_keys(KEYS)})
    target = SimpleNamespace(is_binary=num_classes == 2)
    device = torch.device("cpu")
    return cast(
        Parts,
        SimpleNamespace(config=config, manifest=manifest, target=target, accelerator=accelerator, device=device),
    )


def row(position: int, loss: float = 0.5) -> list[float]:
    return [position, loss, 10.0 * position]


@pytest.mark.parametrize(("ours", "theirs"), [([4, 2], [0, 3, 1]), ([1, 0, 4, 3], [2])], ids=["fewer", "more"])
def test_rows_come_in_the_order_of_the_split_without_padding(ours: list[int], theirs: list[int]) -> None:
    own, other = (torch.tensor([row(i) for i in some], dtype=torch.float64) for some in (ours, theirs))
    table = collect(parts_of(TwoProcesses(other)), "test", own)
    assert table.tolist() == [row(i) for i in range(5)]


def test_losses_that_are_not_finite_are_counted() -> None:
    own = torch.tensor([row(0, float("nan")), row(1), row(2, float("inf"))], dtype=torch.float64)
    other = torch.tensor([row(3), row(4, float("nan"))], dtype=torch.float64)
    with pytest.raises(Failure) as error:
        collect(parts_of(TwoProcesses(other)), "test", own)
    assert error.value.cause is Cause.NAN
    assert str(error.value) == (
        "the loss is NaN or infinite on 3 pictures of test: the weights have diverged; try a lower optim.lr, "
        "optim.grad_clip 1 or train.mixed_precision no"
    )


@pytest.mark.parametrize(("num_classes", "row_bytes"), [(2, 2), (3, 12)])
def test_masks_come_in_the_order_of_the_split_without_padding(num_classes: int, row_bytes: int) -> None:
    """A mask is filled with the number of its picture."""
    ours, theirs = [3, 1, 0], [4, 2]
    own = [torch.full((1, 2, row_bytes), number, dtype=torch.uint8) for number in ours]
    other = torch.cat([torch.full((1, 2, row_bytes), number, dtype=torch.uint8) for number in theirs])
    parts = parts_of(TwoProcesses(torch.tensor(theirs), other), num_classes, size=(2, 12))
    found = collect_masks(parts, torch.tensor(ours), own)
    assert found.shape == (5, 2, row_bytes)
    assert found[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    nothing = parts_of(TwoProcesses(torch.tensor(range(5)), torch.cat([other, other, other[:1]])), num_classes, (2, 12))
    assert collect_masks(nothing, torch.zeros(0, dtype=torch.int64), []).shape == (5, 2, row_bytes)


class OneProcess:
    device = torch.device("cpu")
    gather = staticmethod(lambda tensor: tensor)


def test_an_evaluation_must_be_complete() -> None:
    parts = parts_of(OneProcess())
    whole = Count(samples=5, xor=int(split_of_keys(KEYS).key_xor, 16))
    close_ledger(parts, "test", Ledger(whole))
    with pytest.raises(Failure, match=r"^the ledger of test does not balance: 5 samples were consumed and 0 lost"):
        close_ledger(parts, "test", Ledger(Count(samples=5)))
    lost = Ledger(Count(samples=4, lost=1, unnamed=1), [Lost("test-000000.tar", "e", 512, "altered")])
    with pytest.raises(Failure) as error:
        close_ledger(parts, "test", lost)
    assert error.value.cause is Cause.DATA
    assert str(error.value) == (
        "1 samples of split test are unreadable (an evaluation must be complete):\n"
        "  e at byte 512 of test-000000.tar: altered"
    )


def test_a_mask_can_fill_all_of_a_squashed_picture_and_no_margins() -> None:
    target = torch.tensor([[[0, 1, 1, 0], [0, 1, IGNORE_INDEX, 0]], [[IGNORE_INDEX] * 4, [0] * 4]])
    assert pixels_of(parts_of(fit="squash"), target).tolist() == [8, 8]
    for fit in ("letterbox", "crop"):
        assert pixels_of(parts_of(fit=fit), target).tolist() == [7, 4]


def test_masks_for_display_have_the_networks_size() -> None:
    own = torch.tensor([[[0, 7, 2, 0], [1, 1, 2, 2]]])
    parts = parts_of()
    assert for_display(parts, own) is own
    shown = for_display(parts, own[:, :, ::2].repeat_interleave(2, dim=1))
    assert shown.tolist() == [[[0, 0, 2, 2], [1, 1, 2, 2]]]
    assert shown.dtype == own.dtype
    halved = for_display(parts, torch.arange(24).view(1, 3, 8))
    assert halved.tolist() == [[[1, 3, 5, 7], [17, 19, 21, 23]]]  # of an even number of pixels the right one


def test_the_network_sees_whole_pictures_through_windows() -> None:
    def model(image: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image.shape))
        return image

    seen: list[tuple[int, ...]] = []
    parts = parts_of(size=(32, 64), fit="crop")
    parts.bare_model, parts.eval_batch_size = model, 2
    network_of(parts)(torch.zeros(1, 3, 32, 128))
    assert seen == [(2, 3, 32, 64), (1, 3, 32, 64)]  # three windows that overlap by half
    parts.config.data.fit = "letterbox"
    assert network_of(parts) is model


def test_windows_per_picture_are_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(32, 64), (32, 128), (64, 128)]  # 1, 3 and 9 windows
    monkeypatch.setattr("petseg.evaluation.network.surveyed_sizes", lambda tars: sizes)
    assert windows_per_picture(cast(Any, SimpleNamespace(fit="crop", size_px=(32, 64)))) == pytest.approx(13 / 3)
    assert windows_per_picture(cast(Any, SimpleNamespace(fit="squash", size_px=(32, 64)))) == 1.0
    del sizes[:]
    assert windows_per_picture(cast(Any, SimpleNamespace(fit="crop", size_px=(32, 64)))) == 1.0


@pytest.mark.parametrize("num_classes", [2, 3])
def test_what_does_not_count_is_drawn_neither_wrong_nor_right(num_classes: int) -> None:
    """A row of pixels: right, wrong, ignored."""
    grey = np.full((1, 12, 3), 100, np.uint8)
    truth = np.array([[1] * 4 + [0] * 4 + [IGNORE_INDEX] * 4], np.uint8)
    classes = tuple(ClassEntry(str(i), i, (0, 0, 200 * i % 256)) for i in range(num_classes))
    target = Target("drawn", classes, {"": np.zeros((1, 256), np.uint8)}, "")
    picture = PredictedPicture("a", grey, truth, np.ones((1, 12), np.uint8), target)
    assert picture.counts.tolist() == [[True] * 8 + [False] * 4]
    drawn = picture.overlay()
    assert (drawn[0, 8:] == 100).all()
    assert drawn[0, 3].tolist() == list(TRUTH_RGB)
    assert (drawn[0, :8] != 100).any(axis=1).all()
    if num_classes == 3:
        assert drawn[0, 6].tolist() == list(WRONG_RGB)  # hatched
