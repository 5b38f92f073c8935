"""The benchmarks are run in one way, which each of them and the Makefile say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
COMMANDS = sorted(
    path.stem
    for path in (REPOSITORY / "benchmarks").glob("*.py")
    if "parse(BenchConfig" in path.read_text() and path.read_text().startswith('"""')
)


def test_each_is_a_module_to_its_own_words() -> None:
    assert len(COMMANDS) >= 7
    for name in COMMANDS:
        text = (REPOSITORY / "benchmarks" / f"{name}.py").read_text()
        assert f"\npython -m benchmarks.{name} " in text, name
        assert not re.search(r"^python benchmarks/", text, re.MULTILINE), name


def test_so_it_is_to_the_makefile() -> None:
    text = (REPOSITORY / "Makefile").read_text()
    assert "benchmarks/" not in re.sub(r"--json \S+", "", text)
    assert set(re.findall(r"-m benchmarks\.(\w+) --json", text)) <= set(COMMANDS)
    assert "-m benchmarks.footprint" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_each_answers_to_help(name: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"benchmarks.{name}" in done.stdout
