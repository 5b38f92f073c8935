"""How the files of a sample are named in a tar: by this packer, or by whoever made somebody else's shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from shards.archive import Found, render_header
from shards.index import MEMBER_SUFFIXES
from shards.manifest import THREE_VALUES, Manifest

# What webdataset takes for key and suffix: the key ends at the first dot of the file's name, folders belong to it
KEY_AND_SUFFIX = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
SHORTENED_AT = 100  # bytes of a name; a header before this one (pax, GNU) holds the whole of it


@dataclass(frozen=True)
class Layout:
    """Suffixes and mask values of one shard set; the kinds of members are MEMBER_SUFFIXES, whatever they are named."""

    image_suffixes: tuple[str, ...] = ("jpg",)
    mask_suffixes: tuple[str, ...] = ("png",)
    mask_values: Mapping[str, int] = field(default_factory=lambda: dict(THREE_VALUES))
    is_foreign: bool = False

    def kind_of(self, suffix: str) -> str | None:
        """jpg, png or json; None for a member that a reader of pictures and masks leaves alone."""
        kinds = (self.image_suffixes, self.mask_suffixes, ("json",))
        return next((k for k, names in zip(MEMBER_SUFFIXES, kinds, strict=True) if suffix.lower() in names), None)

    def is_header_of(self, header: bytes, found: Found, name: str, num_bytes: int) -> bool:
        """Whether a member `name` (KEY.jpg, KEY.png or KEY.json) can have this header."""
        if not self.is_foreign:
            # Byte for byte, because a tar's header checksum does not cover every byte, and readers forgive some.
            return header == render_header(name, num_bytes)
        if len(found.name.encode()) >= SHORTENED_AT:
            return True
        key, kind = split_name(found.name)
        return f"{key.rpartition('/')[2]}.{self.kind_of(kind)}" == name


def split_name(name: str) -> tuple[str, str]:
    """(webdataset's key, suffix) of a member; two empty strings where webdataset sees none."""
    match = KEY_AND_SUFFIX.fullmatch(name)
    return (match[1], match[2]) if match else ("", "")


def foreign_layout(image_suffix: str, mask_suffix: str, mask_values: Mapping[str, int]) -> Layout:
    """The layout of shards made elsewhere; jpg includes jpeg."""
    images = ("jpg", "jpeg") if image_suffix == "jpg" else (image_suffix,)
    return Layout(images, (mask_suffix,), mask_values, is_foreign=True)


def layout_of(manifest: Manifest) -> Layout:
    """The layout that a set's manifest describes. Raises ValueError if a foreign set does not say its suffixes."""
    packer = manifest.packer
    if not packer.get("foreign"):
        return Layout(mask_values=manifest.mask_values)
    try:
        return foreign_layout(packer["image_suffix"], packer["mask_suffix"], manifest.source.values)
    except KeyError as error:
        raise ValueError(f"the manifest of a foreign set lacks {error}: run --index again") from None
