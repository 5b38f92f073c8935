"""What a training process imports before its first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from petseg.run_folder.layout import load_result

REPOSITORY = Path(__file__).parents[2]


TRAIN_WITH_EACH = """
import sys
from petseg.train import main
for name in ("adam", "adamw", "sgd", "muon"):
    main([*sys.argv[2:], "--optim.name", name, "--out", f"{sys.argv[1]}/{name}"])
print(*({"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_training_does_not_wait_for_torchs_compiler(pet_shards: Path, tmp_path: Path) -> None:
    flags = ["--data.shards", str(pet_shards), "--data.image-size-px", "32", "--model.width", "4"]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_WITH_EACH, str(tmp_path), *flags, "--train.epochs", "1"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert load_result(tmp_path / "muon") is not None
    assert done.stdout.splitlines()[-1] == ""
