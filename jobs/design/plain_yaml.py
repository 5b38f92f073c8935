"""YAML text -> plain values; refuses what a person would not have meant."""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000  # of a sweep file


def parse_yaml(text: str) -> Any:
    """Plain values; raises ValueError for a text that is not YAML, repeats a key, or has more values than any file."""
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    _require_few(content)
    return content


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where yaml.safe_load silently takes the later value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # here and not in construct_mapping, which sees the keys that `<<` has merged in as well
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            first = seen.setdefault((key.tag, key.value), key)
            if first is not key:
                lines = f"line {first.start_mark.line + 1} and again on line {key.start_mark.line + 1}"
                raise ValueError(f"the key {key.value!r} stands on {lines}: keep one of them")
        return node


def _require_few(content: Any) -> None:
    """Nine lines of anchors and aliases (&a, *a) can stand for billions of values, or for a list that holds itself."""
    left, count = [content], 0
    while left:
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"it stands for more than {MAX_VALUES:,} values")
        one = left.pop()
        left.extend([*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else ())
