"""Which variables jobs inherit, and variables that hold for the length of a block."""

from __future__ import annotations

import os

import pytest

from slurm.environment import environment, sbatch_environment


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("HF_TOKEN", False),
        ("api_key", False),
        ("MYSQL_PASSWD", False),
        ("GOOGLE_CREDENTIALS", False),
        ("GOOGLE_CREDENTIALS_FILE", True),
        ("SSH_KEY_PATH", True),
        ("SECRETS_DIR", True),
        ("KEY_FILE_TEXT", False),  # only a name that ends so says where a secret lies
        ("MY_TOKENIZERS_TOKEN", False),
        ("SRUN_DEBUG", False),
        ("SLURMD_NODENAME", False),
        ("TORCHELASTIC_RUN_ID", False),
        ("SLURM_CLUSTERS", True),
        ("SUBMITIT_PREEMPT_SIGNAL", True),
        ("MY_SLURM_ACCOUNT", True),
        ("slurm_notes", True),
        ("MASTER_ADDR", False),
        ("MASTER_PORT", False),
        ("WORLD_SIZE", False),
        ("LOCAL_RANK", False),
        ("LOCAL_WORLD_SIZE", False),
        ("RANKING", True),
    ],
)
def test_which_variables_reach_a_job(name: str, is_kept: bool) -> None:
    assert sbatch_environment({name: "x"}) == ({name: "x"} if is_kept else {})


def test_variables_hold_for_the_block_and_are_touched_only_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "a")
    monkeypatch.setenv("CHANGED", "a")
    monkeypatch.setenv("GONE", "a")
    monkeypatch.delenv("NEW", raising=False)
    before = dict(os.environ)
    wanted = {**before, "CHANGED": "b", "NEW": "b"}
    del wanted["GONE"]
    touched: list[str] = []
    put = os.putenv
    monkeypatch.setattr(os, "putenv", lambda name, value: touched.append(name.decode()) or put(name, value))

    def work() -> None:
        with environment(wanted):
            assert dict(os.environ) == wanted
            os.environ["BY_THE_BLOCK"] = "c"
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert dict(os.environ) == before
    assert sorted(touched) == ["BY_THE_BLOCK", "CHANGED", "CHANGED", "GONE", "NEW"]
