"""Any name as a key of a shard, which leads back to it.

Keys match `[A-Za-z0-9_-]+`. Every other byte of the name's UTF-8 becomes `-x` and two hex digits, so that `aachen/1 b`
is `aachen-x2f1-x20b`; a name that already holds such a sequence has its `-` written as `-x2d`. A key that would be too
long ends in `-z` and a hash instead: its name stands in the sample's JSON alone.
"""

from __future__ import annotations

import hashlib
import re

from shards.sources.listing import MAX_KEY_LENGTH

HASH_DIGITS = 16
_SAFE = re.compile(rb"[A-Za-z0-9_-]")
_LOOKS_ENCODED = re.compile(rb"-(?=x[0-9a-f]{2}|z[0-9a-f]{16}$)")


def key_of(name: str) -> str:
    """The key of a sample with this name; raises ValueError for an empty name, or one that is no text."""
    try:
        data = name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {name!r} is not UTF-8: rename the file") from None
    if not data:
        raise ValueError("a picture has an empty key: let {key} match its name")
    looks_encoded = {found.start() for found in _LOOKS_ENCODED.finditer(data)}
    pieces = []
    for place in range(len(data)):
        byte = data[place : place + 1]
        pieces.append(byte if _SAFE.match(byte) and place not in looks_encoded else b"-x%02x" % byte[0])
    key = b"".join(pieces).decode()
    if len(key) > MAX_KEY_LENGTH:
        digest = hashlib.sha256(data).hexdigest()[:HASH_DIGITS]
        key = f"{key[: MAX_KEY_LENGTH - HASH_DIGITS - 2]}-z{digest}"
    return key
