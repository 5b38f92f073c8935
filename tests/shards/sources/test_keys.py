"""Keys are fit for a shard, distinct for distinct names, and lead back to the names."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.index import KEY_PATTERN
from shards.sources.keys import HASH_DIGITS, key_of
from shards.sources.listing import MAX_KEY_LENGTH

names = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.text("-xz0f2e./ü ", min_size=1, max_size=60),  # what the encoding itself is made of
)


def name_of(key: str) -> str | None:
    """The name that a key was made of; None for one that was too long."""
    if re.search(rf"-z[0-9a-f]{{{HASH_DIGITS}}}$", key):
        return None
    return re.sub(rb"-x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), key.encode()).decode()


@given(names)
def test_a_key_leads_back_to_its_name(name: str) -> None:
    key = key_of(name)
    assert KEY_PATTERN.fullmatch(key)
    assert len(key) <= MAX_KEY_LENGTH
    assert name_of(key) in (name, None)
    if len(name.encode()) * 4 <= MAX_KEY_LENGTH:
        assert name_of(key) == name


@given(names, names)
def test_other_names_have_other_keys(one: str, other: str) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("0001TP_006690", "0001TP_006690"),
        ("aachen/aachen_0.1", "aachen-x2faachen_0-x2e1"),
        ("Straße 7", "Stra-xc3-x9fe-x207"),
        ("a-x2f", "a-x2dx2f"),
        ("a-z0123456789abcdef", "a-x2dz0123456789abcdef"),
        ("-", "-"),
    ],
)
def test_golden_keys(name: str, key: str) -> None:
    assert key_of(name) == key
    assert name_of(key) == name


def test_a_long_name_is_cut_and_stays_distinct() -> None:
    one, other = key_of("a" * 200), key_of("a" * 201)
    assert len(one) == len(other) == MAX_KEY_LENGTH
    assert one != other
    assert name_of(one) is None


def test_long_names_have_the_keys_that_they_always_had() -> None:
    assert key_of("a" * 91) == f"{'a' * 72}-z9b9fe7f0a48c2b9a"
    assert key_of("ü" * 30) == f"{'-xc3-xbc' * 9}-z2853a123adb3d816"


@pytest.mark.parametrize("name", ["a" * MAX_KEY_LENGTH, "ü" * 11 + "ab"])
def test_a_name_of_which_the_whole_key_fits_is_not_cut(name: str) -> None:
    assert name_of(key_of(name)) == name
    assert len(key_of(name)) == MAX_KEY_LENGTH
    assert name_of(key_of(f"{name}a")) is None


def test_what_has_no_key() -> None:
    with pytest.raises(ValueError, match="empty key"):
        key_of("")
    with pytest.raises(ValueError, match="not UTF-8"):
        key_of("a\udce4")
