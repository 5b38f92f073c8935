"""What the counter of operations sees: memory that lives, FLOPs, and the time of one after the other."""

from __future__ import annotations

import torch
from torch import nn

from petseg.footprint.operations import Op, OpCounter, roofline_s

KIB = 2**10


def test_the_counter_sees_what_lives() -> None:
    held = torch.zeros(256)  # 1 KiB
    with OpCounter([held]) as counter:
        a = held + 1
        b = a.view(2, 128) * 2  # a view takes nothing
        assert counter.live_bytes == 3 * KIB
        del a
        assert counter.live_bytes == 2 * KIB
        b.add_(1)
        assert counter.live_bytes == 2 * KIB
    assert counter.peak_bytes == 3 * KIB
    # an addition reads and writes 1 KiB; the one in place reads, and writes what it read
    assert [op.touched_bytes for op in counter.ops] == [2 * KIB, 2 * KIB, 2 * KIB]


def test_the_counter_knows_a_convolution() -> None:
    x, layer = torch.zeros(2, 3, 8, 8), nn.Conv2d(3, 5, 3, padding=1, bias=False)
    with OpCounter() as counter:
        layer(x).sum().backward()
    # a product and a sum for each of 27 inputs of 2 * 5 * 64 outputs, and as many for the weight's gradient
    assert counter.flops == 2 * (2 * 27 * 2 * 5 * 64)


def test_the_counter_knows_attention_on_a_cpu() -> None:
    """Two products of 5 x 7 places and 8 channels, for each of 2 pictures and 3 heads; backward, five of them."""
    query, key, value = (torch.randn(2, 3, places, 8, requires_grad=True) for places in (5, 7, 7))
    with OpCounter() as counter:
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        forward = counter.flops
        found.sum().backward()
    product = 2 * 5 * 7 * 8 * 2 * 3
    assert forward == 2 * product
    assert counter.flops - forward == 5 * product


def test_an_expanded_tensor_is_read_once() -> None:
    row, table = torch.zeros(1, 256), torch.zeros(64, 256)
    with OpCounter() as counter:
        row.expand(64, 256) + table
    assert [op.touched_bytes for op in counter.ops] == [KIB + 2 * 64 * KIB]


def test_operations_take_the_longest_of_three() -> None:
    ops = [Op(1000, 10, half=True), Op(1000, 10, half=False), Op(0, 500, half=True), Op(0, 1, half=True)]
    seconds = roofline_s(ops, half_flops=100, full_flops=50, bytes_per_s=100, launch_s=0.5)
    assert seconds == 10 + 20 + 5 + 0.5
