"""The ledger closes for exactly once, and for nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petseg.data.ledger import Count, Ledger, losses_in_words
from petseg.data.loader import Batch
from petseg.data.plan import MicroBatch
from petseg.data.tars import Lost
from shards.cause import Cause
from shards.command import Failure
from shards.manifest import key_hash, split_of_keys

keys = st.lists(st.text("abcdefgh", min_size=1, max_size=6), unique=True, min_size=1, max_size=40)


def batch(read: list[str], lost: list[str] = [], filler: bool = False) -> Batch:  # noqa: B006
    hashes = np.array([key_hash(key) for key in read] + [0] * len(lost), np.uint64)
    plan = MicroBatch(np.arange(len(hashes)), 0, len(hashes), last=True, filler=filler)
    empty = torch.empty(0)
    return Batch(plan, empty, empty, empty, hashes, [Lost("train-000000.tar", key, 512, "it is gone") for key in lost])


def count(*batches: Batch) -> Count:
    ledger = Ledger()
    for one in batches:
        ledger.add(one)
    return ledger.count


@given(keys, st.randoms(), st.integers(1, 4))
def test_the_ledger_balances_for_any_order_on_any_number_of_ranks(
    all_keys: list[str], random: object, world: int
) -> None:
    expected = split_of_keys(all_keys)
    random.shuffle(all_keys)  # type: ignore[attr-defined]
    ranks = [count(batch(all_keys[rank::world])) for rank in range(world)]
    total = sum(ranks, Count())
    total.check(expected, "train")
    assert total.coverage(expected) == 1.0


@given(keys)
def test_a_missing_repeated_or_swapped_sample_does_not_balance(all_keys: list[str]) -> None:
    expected = split_of_keys(all_keys)
    wrong = [all_keys[1:], [*all_keys, all_keys[0]], [*all_keys[1:], "not-of-the-set"]]
    if len(all_keys) > 1:
        wrong.append([*all_keys[:-1], all_keys[0]])
    for seen in wrong:
        with pytest.raises(Failure, match="the ledger of train does not balance"):
            count(batch(seen)).check(expected, "train")


@given(keys)
def test_a_sample_seen_three_times_does_not_balance(all_keys: list[str]) -> None:
    """Its hash alone would not show it: two of three cancel out."""
    with pytest.raises(Failure, match="the ledger of train does not balance"):
        count(batch([*all_keys, all_keys[0], all_keys[0]])).check(split_of_keys(all_keys), "train")


def test_the_error_has_the_counts() -> None:
    expected = split_of_keys(["a", "b", "c"])
    with pytest.raises(
        Failure, match=r"2 samples were consumed and 0 lost, the manifest has 3; XOR of the keys [0-9a-f]"
    ):
        count(batch(["a", "b"])).check(expected, "train")


def test_fillers_do_not_count() -> None:
    count(batch(["a", "b"]), batch(["a"], filler=True)).check(split_of_keys(["a", "b"]), "train")


def test_lost_samples_balance_by_key_or_by_number() -> None:
    expected = split_of_keys(["a", "b", "c"])
    named = count(batch(["a", "b"], lost=["c"]))
    named.check(expected, "train")
    assert named.coverage(expected) == pytest.approx(2 / 3)
    count(batch(["a", "b"], lost=[""])).check(expected, "train")
    with pytest.raises(Failure):
        count(batch(["a", "b"], lost=["d"])).check(expected, "train")
    with pytest.raises(Failure):
        count(batch(["a"], lost=[""])).check(expected, "train")


@pytest.mark.parametrize("cause", [Cause.DATA, Cause.NODE_FAILURE])
def test_a_node_that_cannot_read_a_sample_is_the_cause_of_all_losses(cause: Cause) -> None:
    lost = [Lost("train-000000.tar", "a", 512, "altered"), Lost("train-000001.tar", "b", 512, "EIO", cause)]
    failure = Ledger(Count(), lost).failure("train", 0)
    assert failure.cause is cause
    assert "a at byte 512 of train-000000.tar: altered" in str(failure)


def test_an_error_names_a_few_of_many() -> None:
    words = losses_in_words([f"sample {i}" for i in range(20)], "train", 3)
    assert words.startswith("20 samples of split train are unreadable (data.max_lost_samples allows 3):\n  sample 0")
    assert words.endswith("sample 7\n  and 12 more")


@pytest.mark.parametrize(("number", "more"), [(8, ""), (9, "\n  and 1 more")])
def test_eight_losses_are_named_and_the_rest_is_counted(number: int, more: str) -> None:
    words = losses_in_words([f"sample {i}" for i in range(number)], "val", 0)
    named = "\n  ".join(f"sample {i}" for i in range(8))
    assert words == f"{number} samples of split val are unreadable (an evaluation must be complete):\n  {named}{more}"


def test_a_ledger_adds_up_what_was_read_and_keeps_what_was_lost() -> None:
    ledger = Ledger()
    ledger.add(batch(["a", "b"], lost=["c", ""]))
    ledger.add(batch(["d"], lost=["e"], filler=True))
    ledger.add(batch(["f"]))
    read, lost = key_hash("a") ^ key_hash("b") ^ key_hash("f"), key_hash("c")
    assert ledger.count == Count(samples=3, xor=read, lost=2, lost_xor=lost, unnamed=1)
    assert [one.key for one in ledger.lost] == ["c", ""]
    assert Ledger().lost == []  # each has a list of its own


def test_counts_of_two_processes_are_added_to_the_bit() -> None:
    """Hashes have 64 bits, and tensors of torch whole numbers with a sign."""
    high = Count(samples=3, xor=2**64 - 1, lost=2, lost_xor=2**63, unnamed=1)
    low = Count(samples=4, xor=1, lost=5, lost_xor=2**63 + 7, unnamed=2)

    class Accelerator:
        device = torch.device("cpu")

        def gather(self, own: torch.Tensor) -> torch.Tensor:
            other = np.array([[low.samples, low.xor, low.lost, low.lost_xor, low.unnamed]], np.uint64)
            return torch.cat([own, torch.from_numpy(other.view(np.int64))])

    together = Count(samples=7, xor=2**64 - 2, lost=7, lost_xor=7, unnamed=3)
    assert Ledger(high).gather(Accelerator()) == high + low == together


def test_a_ledger_that_does_not_balance_is_told_in_full() -> None:
    expected = split_of_keys(["a", "b", "c"])
    seen = count(batch(["a", "b"], lost=["d"]))
    with pytest.raises(Failure) as error:
        seen.check(expected, "val")
    xor = key_hash("a") ^ key_hash("b") ^ key_hash("d")
    assert error.value.cause is Cause.DATA
    assert str(error.value) == (
        "the ledger of val does not balance: 2 samples were consumed and 1 lost, the manifest has 3; XOR of the keys "
        f"{xor:016x}, the manifest's {expected.key_xor}. Some sample was seen twice or not at all: please report this"
    )
