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
