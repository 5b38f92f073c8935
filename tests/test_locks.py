"""The locks hold what setup.cfg asks for, each package once: the runtime's alone, and that of development on top."""

from __future__ import annotations

import configparser
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
RUNTIME, DEVELOPMENT = "requirements.lock", "requirements-dev.lock"


def locked(name: str) -> dict[str, str]:
    """Package -> version of a lock, without what it includes."""
    lines = [line for line in (REPOSITORY / name).read_text().splitlines() if line and not line.startswith("-")]
    pins = {
        canonicalize_name(package.split("[")[0]): version for package, _, version in (x.partition("==") for x in lines)
    }
    assert len(pins) == len(lines)
    return pins


def asked(*extras: str) -> list[str]:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    return [line for text in texts for line in text.splitlines() if line]


def needed(requirements: Iterable[str]) -> set[str]:
    """The names of all packages that these need on this platform, by the metadata of what is installed."""
    todo, seen = [Requirement(text) for text in requirements], set()
    while todo:
        one = todo.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        for text in distribution(one.name).requires or []:
            other = Requirement(text)
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in one.extras or [""]):
                todo.append(other)
    return {name for name, _ in seen}


def test_the_runtime_lock_is_what_petseg_and_its_encoders_need() -> None:
    assert set(locked(RUNTIME)) == needed(asked("encoders"))


def test_the_development_lock_adds_the_rest_and_pins_nothing_twice() -> None:
    assert (REPOSITORY / DEVELOPMENT).read_text().startswith(f"--requirement {RUNTIME}\n")
    assert not set(locked(RUNTIME)) & set(locked(DEVELOPMENT))
    assert needed(asked("encoders", "dev")) <= set(locked(RUNTIME)) | set(locked(DEVELOPMENT))


def test_what_is_installed_is_what_is_locked() -> None:
    for name, version in (locked(RUNTIME) | locked(DEVELOPMENT)).items():
        assert distribution(name).version.partition("+")[0] == version.partition("+")[0], name
