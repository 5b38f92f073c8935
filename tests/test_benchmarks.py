"""The benchmarks are run in one way, which each of them and the Makefile say."""

from __future__ import annotations

import json
import os
import re
import runpy
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
def test_each_answers_to_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As `python -m` runs it, but in this process, which has torch already."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)  # other tests may have imported it
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert end.value.code in (0, None)
    assert f"benchmarks.{name}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.long
def test_the_gpu_benchmark_runs_in_miniature_without_a_gpu(tmp_path: Path) -> None:
    """Each part but compilation, which takes a CPU minutes; what it writes on the way is whole."""
    out = tmp_path / "gpu.json"
    parts = ("steps", "loop", "estimates", "exact", "dice", "fused")
    small = ("--image-size-px", "64", "--width", "4", "--batch-sizes", "4", "--pictures", "40", "--epochs", "2")
    command = [sys.executable, "-m", "benchmarks.gpu", "--minutes", "20", *small, "--dice", "0.01", "0.999"]
    command += ["--step-s", "0.1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--out", str(out), "--only", *parts], cwd=REPOSITORY, env=env, capture_output=True, text=True,
        timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    value = {(row["part"], row["what"]): row["value"] for row in rows}
    assert not [row for row in rows if row["what"] in ("ended early", "left out")]
    assert value["steps", "resnet34_unet, batch 4, eager"] > 0
    assert value["loop", "unet, batch 4, strong"] > 0
    hashes = {value["exact", what] for what in ("deterministic, once", "deterministic, again", "killed and resumed")}
    assert len(hashes) == 1
    assert value["fused", "one operator"] == "Triton needs a GPU"
    assert value["fused", "64 channels of 16 px, batch 4, residual: layers"] > 0
    assert value["dice", "val Dice 0.01"] > 0
    assert value["dice", "val Dice 0.999"] == "not reached"
    assert "| exact | killed and resumed |" in out.with_suffix(".md").read_text()
