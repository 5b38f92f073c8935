"""Tensors of two packages are paired by name and shape."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from petseg.models.weight_names import Match, match, some


def tensors(names: Iterable[str], size: int = 2) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(size) for name in names}


WANTED = tensors(["model.conv.weight", "model.conv.bias", "model.stages_0.weight", "model.bn.num_batches_tracked"])


@pytest.mark.parametrize("prefix", ["", "model.", "encoder.", "network.encoder.model.", "module.deep.er."])
def test_a_prefix_makes_no_difference(prefix: str) -> None:
    """Nor does the dot or the underscore before a stage's number; counters of batches are nobody's weights."""
    found = match(
        WANTED, tensors(f"{prefix}{name}" for name in ("conv.weight", "conv.bias", "stages.0.weight", "fc.bias"))
    )
    assert found.pairs == {
        "model.conv.weight": f"{prefix}conv.weight",
        "model.conv.bias": f"{prefix}conv.bias",
        "model.stages_0.weight": f"{prefix}stages.0.weight",
    }
    assert found.missing == ()
    assert found.wanted == 3


def test_the_prefix_with_the_most_pairs_is_that_of_the_encoder() -> None:
    """A checkpoint of a whole network: the decoder has a convolution of the same shape."""
    given = tensors(["decoder.conv.weight", *(f"encoder.{n}" for n in ("conv.weight", "conv.bias", "stages.0.weight"))])
    assert set(match(WANTED, given).pairs.values()) == set(given) - {"decoder.conv.weight"}


def test_a_tensor_of_another_shape_or_none_at_all_is_missing() -> None:
    given = tensors(["conv.weight"]) | tensors(["conv.bias"], size=3)
    found = match(WANTED, given)
    assert found.pairs == {"model.conv.weight": "conv.weight"}
    assert found.missing == ("model.conv.bias", "model.stages_0.weight")
    nothing = match(WANTED, tensors(["other.thing"]))
    assert (nothing.pairs, nothing.wanted) == ({}, 3)
    message = (
        r"^x: only 0 of the encoder's 3 tensors .* Missing: model\.conv\.weight, .*; the file has: other\.thing\. Is"
    )
    with pytest.raises(ValueError, match=message):
        nothing.check("x", tensors(["other.thing"]))


def test_nearly_all_tensors_are_enough() -> None:
    names = [f"a{number}.weight" for number in range(100)]
    for missing, is_enough in ((5, True), (6, False)):
        found = match(tensors(names), tensors(names[:-missing]))
        assert len(found.pairs) == 100 - missing
        if is_enough:
            found.check("x", {})
        else:
            with pytest.raises(ValueError, match="only 94 of the encoder's 100"):
                found.check("x", {})


def test_names_of_efficientnet_pytorch_are_timms() -> None:
    """The first block of its two stages expands nothing; timm counts the blocks within their stage."""
    first = ["conv_dw.weight", "bn1.weight", "conv_pw.weight", "bn2.running_mean"]
    second = ["conv_pw.weight", "bn1.weight", "conv_dw.weight", "bn2.weight", "conv_pwl.weight", "bn3.running_var"]
    blocks = [*(f"blocks.0.0.{name}" for name in first), *(f"blocks.1.0.{name}" for name in second)]
    wanted = tensors(["conv_stem.weight", "bn1.weight", *blocks, "bn2.weight"])
    given = [
        "_conv_stem.weight", "_bn0.weight", "_blocks.0._depthwise_conv.weight", "_blocks.0._bn1.weight",
        "_blocks.0._project_conv.weight", "_blocks.0._bn2.running_mean", "_blocks.1._expand_conv.weight",
        "_blocks.1._bn0.weight", "_blocks.1._depthwise_conv.weight", "_blocks.1._bn1.weight",
        "_blocks.1._project_conv.weight", "_blocks.1._bn2.running_var", "_bn1.weight",
    ]  # fmt: skip
    more = ["_blocks.2._bn1.weight"]  # of a larger one
    assert match(wanted, tensors([*given, *more])) == Match(dict(zip(wanted, given, strict=True)), ())
    own = tensors(wanted)  # timm's own file
    assert match(wanted, own).pairs == {name: name for name in wanted}


def test_three_names_stand_for_many() -> None:
    assert [some(names) for names in ((), ("a", "b", "c"), ("a", "b", "c", "d"))] == ["", "a, b, c", "a, b, c, ..."]
