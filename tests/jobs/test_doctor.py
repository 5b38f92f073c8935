"""The doctor on a healthy setup, and on one that is broken in each way that it looks for."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import SoftFileLock
from torch import nn

from jobs import doctor, doctor_allreduce, doctor_partition, doctor_places, doctor_setup, doctor_training
from jobs.doctor import CHECKS, main
from jobs.doctor_setup import Finding, Setup
from petseg import augment, interrupt
from petseg.losses import LOSSES, cross_entropy
from shards.command import run_command
from shards.manifest import (
    Manifest,
    Sample,
    index_name,
    load_index,
    load_manifest,
    save_index,
    save_manifest,
    split_of_keys,
)
from slurm.rehearsal_cluster import Cluster
from slurm.resources import Resources
from tests.petseg.shard_server import serve

Doctor = Callable[..., dict[str, Finding]]
KEY = "canary0123456789canary0123456789canary01"


@pytest.fixture
def ask(pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run some checks on drawn pets, with further flags; returns the findings by name."""

    def run(only: str, *flags: str, shards: Path | str = pet_shards) -> dict[str, Finding]:
        settings = {"data.shards": shards, "data.image_size_px": 64, "data.cache_dir": tmp_path / "cache"}
        words = [f for name, value in settings.items() for f in ("--set", f"{name}={value}")]
        words += ["--runs-dir", str(tmp_path / "runs"), "--gpus", "0", *flags, "--only", only, "--json"]
        code = run_command(main, words)
        findings = {row["what"]: Finding(**row) for row in json.loads(capsys.readouterr().out)}
        assert code == (3 if any(finding.status == "FAIL" for finding in findings.values()) else 0)
        return findings

    return run


@pytest.fixture
def copied(pet_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pet_shards, tmp_path / "copied"))


def test_a_healthy_setup(ask: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All checks, an all-reduce of two processes on this machine among them."""
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a launcher around us: nobody else will come
    found = ask(",".join(CHECKS), "--cluster", "local", "--tasks-per-node", "2", "--all-reduce", "--deep")
    assert {name: finding.status for name, finding in found.items()} == dict.fromkeys(CHECKS, "ok"), found
    assert "18 cells, 2 processes each" in found["config"].detail
    assert "each byte read, each sample decoded" in found["shards"].detail
    assert "27 train, 3 val, 30 test; no key and no picture in two" in found["splits"].detail
    assert "unet, ce: loss" in found["overfit"].detail
    assert "resnet34_unet, ce: loss" in found["overfit"].detail
    assert "stopped 2 times" in found["resume"].detail
    assert "2 processes (cpu)" in found["all-reduce"].detail
    assert all(finding.seconds >= 0 for finding in found.values())
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_lines_for_people(pet_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--set", f"data.shards={pet_shards}", "--set", "data.image_size_px=64", "--cluster", "local"]
    flags += ["--set", f"data.cache_dir={tmp_path}", "--runs-dir", str(tmp_path / "file" / "runs")]
    (tmp_path / "file").write_text("in the way")
    assert run_command(main, [*flags, "--quick", "--skip", "transforms"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [
        "config", "partition", "wandb", "shards", "splits", "folder", "cache",
    ]  # fmt: skip
    assert lines[0].startswith("ok    config")
    assert lines[5].startswith("FAIL  folder")
    assert " -> choose another folder with --runs-dir" in lines[5]
    assert "7 checks" in lines[-1]
    assert "1 failed, 0 with a warning" in lines[-1]


def test_a_check_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["--only", "shard"]) == 2
    assert "there is no check 'shard': choose among config, partition, wandb, shards" in capsys.readouterr().err


def test_a_profile_is_what_jobs_ask_for(
    ask: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "petseg").mkdir()
    (tmp_path / "petseg" / "profiles.toml").write_text('[mine]\ngpus = 8\npartition = "a100"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    asked: list[Resources] = []

    def note(setup: Setup) -> Finding:
        asked.append(setup.command.resources)
        return Finding("ok", "config", "")

    monkeypatch.setattr("jobs.doctor_data.check_config", note)
    ask("config", "--profile", "mine")  # with --gpus 0
    assert asked == [Resources(partition="a100", gpus_per_node=0)]
    assert run_command(main, ["--profile", "none"]) == 2
    assert "no profile 'none': choose one of mine" in capsys.readouterr().err


def test_a_check_that_breaks_hides_no_other(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.CHECKS, "config", "jobs.doctor_data:listed")
    found = ask("config,wandb")
    assert found["config"].status == "FAIL"
    assert "TypeError" in found["config"].detail
    assert found["wandb"].status == "ok"


def test_planning_stays_free_of_torch() -> None:
    code = "import sys, jobs.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# shards and splits


def test_no_shard_set_is_said_once(ask: Doctor, tmp_path: Path) -> None:
    found = ask("shards,splits,cache,resume", shards=tmp_path / "none")
    assert "pack one with `python -m shards.pack" in found["shards"].detail
    assert {found[name].detail for name in ("splits", "cache", "resume")} == {"not checked: see shards"}
    assert ask("splits", shards=tmp_path / "none")["splits"].detail.startswith("not checked: no shard set in")


def test_shards_that_are_cut_missing_or_have_another_index(ask: Doctor, copied: Path) -> None:
    with (copied / "train-000000.tar").open("r+b") as file:
        file.truncate(5000)
    (copied / "test-000001.tar").unlink()
    (copied / index_name("val-000000.tar")).write_text("[]")
    finding = ask("shards", shards=copied)["shards"]
    assert finding.status == "FAIL"
    assert "train-000000.tar has 5000 bytes" in finding.detail
    assert "test-000001.tar is missing" in finding.detail
    assert "val-000000.index.json is altered" in finding.detail
    assert finding.advice == f"python -m shards.verify {copied} --repair ANOTHER-COPY"


def test_a_wrong_byte_is_found_by_deep_only(ask: Doctor, copied: Path) -> None:
    with (copied / "train-000000.tar").open("r+b") as file:
        file.seek(load_index(copied, "train-000000.tar")[0].jpg.offset + 50)
        file.write(b"\0\1\2")
    assert ask("shards", shards=copied)["shards"].status == "ok"
    finding = ask("shards", "--deep", shards=copied)["shards"]
    assert finding.status == "FAIL"
    assert "findings" in finding.detail


def test_remote_shards(ask: Doctor, pet_shards: Path, tmp_path: Path) -> None:
    with serve(pet_shards) as server:
        found = ask("shards,splits", shards=server.url)
        assert {finding.status for finding in found.values()} == {"ok"}, found
        assert "tars not (--deep fetches them)" in found["shards"].detail
        assert not [name for name in server.asked if name.endswith(".tar")]
        assert "each fetched, sha256 as in the manifest" in ask("shards", "--deep", shards=server.url)["shards"].detail
    found = ask("shards", shards=server.url)
    assert found["shards"].status == "FAIL"


def changed(folder: Path, shard: str, change: Callable[[list[Sample]], list[Sample]]) -> Manifest:
    """The set with another index of one shard, and a manifest that fits."""
    manifest = load_manifest(folder)
    sha256 = save_index(change(load_index(folder, shard)), folder, shard)
    shards = tuple(replace(s, index_sha256=sha256) if s.name == shard else s for s in manifest.shards)
    splits = {
        split: split_of_keys(sample.key for s in manifest.of_split(split) for sample in load_index(folder, s.name))
        for split in manifest.splits
    }
    return save_manifest(replace(manifest, shards=shards, splits=splits), folder)


def test_a_key_in_two_splits(ask: Doctor, copied: Path) -> None:
    (first, *_) = load_index(copied, "train-000000.tar")
    changed(copied, "test-000000.tar", lambda samples: [first, *samples[1:]])
    finding = ask("splits", shards=copied)["splits"]
    assert finding.status == "FAIL"
    assert f"{first.key} is in train and test" in finding.detail


def test_a_picture_in_two_splits_under_another_name(ask: Doctor, copied: Path) -> None:
    (first, *_) = load_index(copied, "train-000000.tar")
    changed(copied, "test-000000.tar", lambda samples: [replace(samples[0], jpg=first.jpg), *samples[1:]])
    finding = ask("splits", shards=copied)["splits"]
    assert finding.status == "warn"
    assert "1 pictures are in two splits" in finding.detail


def test_keys_that_are_not_the_manifests(ask: Doctor, copied: Path) -> None:
    manifest = load_manifest(copied)
    wrong = replace(manifest.splits["val"], key_xor="0" * 16)
    save_manifest(replace(manifest, splits={**manifest.splits, "val": wrong}), copied)
    finding = ask("splits", shards=copied)["splits"]
    assert finding.status == "FAIL"
    assert "key_xor='0000000000000000'" in finding.detail


# config


@pytest.mark.parametrize(
    ("flags", "status", "detail"),
    [
        (["--axis", "model.arch=unet,vgg"], "FAIL", "model.arch = 'vgg': choose one of unet, resnet34_unet"),
        (["--set", "train.batch_size=4", "--tasks-per-node", "8"], "FAIL", "train.batch_size = 4 is less than 8"),
        (
            ["--set", "train.batch_size=10", "--tasks-per-node", "4"],
            "warn",
            "shared unevenly by 4 processes x 1 passes",
        ),
        (["--set", "train.mixed_precision=fp16"], "warn", "fp16 needs a GPU"),
        (["--axis", "data.threads=1,2"], "warn", "36 cells are only 18 trials"),
        (["--set", "data.image_size_px=128"], "warn", "packed at 64 px would be enlarged to data.image_size_px = 128"),
    ],
)
def test_configs(ask: Doctor, flags: list[str], status: str, detail: str) -> None:
    finding = ask("config", *flags)["config"]
    assert finding.status == status
    assert detail in finding.detail


def test_a_gpu_without_bf16(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    assert ask("config")["config"].detail.startswith("Old GPU cannot compute in bf16")


# training

ONE_MODEL = ("--axis", "model.arch=unet", "--set", "train.mixed_precision=no")


def test_a_loss_with_the_wrong_sign(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It falls and falls; the masks say that it is not the right one."""
    monkeypatch.setattr(doctor_training, "FIT_STEPS", 4)
    monkeypatch.setitem(LOSSES, "ce", lambda logits, target: -cross_entropy(logits, target))
    finding = ask("overfit", *ONE_MODEL)["overfit"]
    assert finding.status == "FAIL"
    assert "unet, ce does not learn one batch: loss -" in finding.detail


def test_a_target_that_has_nothing_to_do_with_the_picture(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    from petseg import run

    monkeypatch.setattr(doctor_training, "FIT_STEPS", 4)
    monkeypatch.setattr(run, "build_target", lambda trimap, *_: torch.randint(0, 2, trimap.shape))
    assert ask("overfit", *ONE_MODEL)["overfit"].status == "FAIL"


@pytest.mark.parametrize("rate", ["1e-7", "1e30"])
def test_a_learning_rate_that_is_out_of_range(ask: Doctor, monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    monkeypatch.setattr(doctor_training, "FIT_STEPS", 15)
    finding = ask("overfit", *ONE_MODEL, "--set", f"optim.lr={rate}")["overfit"]
    assert finding.status == "warn"
    assert finding.advice == f"is optim.lr = {float(rate):g} right?"


def moving_the_picture_only(before: Callable) -> Callable:
    return lambda draws, image, trimap, config: (before(draws, image, trimap, config)[0], trimap)


def blurring_the_mask(before: Callable) -> Callable:
    def apply(draws: object, image: torch.Tensor, trimap: torch.Tensor, config: object) -> tuple:
        image, trimap = before(draws, image, trimap, config)
        return image, nn.functional.avg_pool2d(trimap.float().unsqueeze(1), 3, 1, 1).squeeze(1) * 2

    return apply


def never_the_same(before: Callable) -> Callable:
    def apply(*args: object) -> tuple:
        image, trimap = before(*args)
        return image + torch.rand_like(image), trimap

    return apply


@pytest.mark.parametrize(
    ("broken", "detail"),
    [
        (moving_the_picture_only, "elastic: picture and mask agree on "),
        (blurring_the_mask, "elastic: the mask has values ["),
        (never_the_same, "elastic: two calls with the same seed, epoch and sample differ"),
        (lambda before: lambda draws, image, trimap, config: (image, trimap), "it leaves pictures as they are"),
    ],
)
def test_broken_augmentations(
    ask: Doctor, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Callable], Callable], detail: str
) -> None:
    monkeypatch.setattr(augment, "apply", broken(augment.apply))
    finding = ask("transforms")["transforms"]
    assert finding.status == "FAIL"
    assert detail in finding.detail


def test_draws_that_do_not_depend_on_the_epoch(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = augment.draw
    monkeypatch.setattr(augment, "draw", lambda config, ids, seed, epoch, size: draw(config, ids, seed, 1, size))
    assert "all epochs have the same draws" in ask("transforms")["transforms"].detail
    monkeypatch.undo()
    assert ask("transforms", "--set", "augment.p=0")["transforms"].status == "warn"


def test_batchnorm_that_moves_in_evaluation(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "eval", lambda self: self)
    finding = ask("batchnorm", *ONE_MODEL)["batchnorm"]
    assert finding.status == "FAIL"
    assert "after 1 epochs of 3 passes it has counted 4: evaluation moves it" in finding.detail


def test_batchnorm_that_stands_still_after_the_first_evaluation(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the lab's first code."""
    train = nn.Module.train
    monkeypatch.setattr(nn.Module, "train", lambda self, mode=True: self if mode else train(self, mode))
    finding = ask("batchnorm", *ONE_MODEL)["batchnorm"]
    assert "after 2 epochs of 3 passes it has counted 3: training leaves it in evaluation mode" in finding.detail


def test_a_resume_without_the_optimizers_moments(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Optimizer, "load_state_dict", lambda self, state: None)
    finding = ask("resume", *ONE_MODEL)["resume"]
    assert finding.status == "FAIL"
    assert "it has another final model and final optimizer and metrics.jsonl" in finding.detail


def test_a_run_that_does_not_listen(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = type("Deaf", (), {"requested": lambda: False, "requeue_requested": lambda: False})
    monkeypatch.setattr("petseg.epoch.interrupt", deaf)
    assert "goes on to its end" in ask("resume", *ONE_MODEL)["resume"].detail
    assert interrupt.requested() is False


def test_with_a_gpu_the_resume_is_tried_on_the_cpu(
    pet_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--set", f"data.shards={pet_shards}", "--set", f"data.cache_dir={tmp_path}", *ONE_MODEL]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    command = doctor.tyro.cli(doctor.Command, args=flags)
    finding = doctor_training.check_resume(doctor_setup.Setup(command, tmp_path, tuple(flags)))
    assert finding.status == "ok", finding


# places


def test_a_folder_below_a_file(ask: Doctor, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    finding = ask("folder")["folder"]
    assert finding.status == "FAIL"
    assert "cannot be written: Not a directory" in finding.detail


def test_a_sweep_that_is_larger_than_the_disk(ask: Doctor, tmp_path: Path) -> None:
    finding = ask("folder", "--set", "model.width=65536")["folder"]
    assert finding.status == "FAIL"
    assert "18 trials take up to" in finding.detail
    assert list(tmp_path.glob("**/.doctor-*")) == []


def test_a_file_system_without_locks(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_places, "FileLock", SoftFileLock)  # takes no flock
    assert "two processes hold the same lock" in ask("folder")["folder"].detail


def test_a_clock_that_is_off(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(doctor_places.time, "time", lambda: now() + 60)
    finding = ask("folder")["folder"]
    assert finding.status == "warn"
    assert "-60 s off this host's" in finding.detail


@pytest.mark.parametrize(
    ("cache", "gb", "status", "detail"),
    [
        ("node", "0.0001", "FAIL", "0.000984 GB decoded, room for 0.0001 GB"),
        ("auto", "0.0001", "warn", "every epoch decodes anew"),
        ("auto", "1", "ok", "node, 0.00 GB decoded"),
    ],
)
def test_room_in_the_cache(ask: Doctor, cache: str, gb: str, status: str, detail: str) -> None:
    finding = ask("cache", "--set", f"data.cache={cache}", "--set", f"data.cache_gb={gb}")["cache"]
    assert finding.status == status
    assert detail in finding.detail


def test_a_cache_that_others_can_write_to(ask: Doctor, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    finding = ask("cache")["cache"]
    assert finding.status == "FAIL"
    assert "others may write to the cache folder" in finding.detail


# wandb


class NothingHere(http.server.BaseHTTPRequestHandler):
    """Answers, which is enough."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Something on loopback that answers, and a home without keys."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NothingHere) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        for name in ("WANDB_API_KEY", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"WANDB_BASE_URL": url, "NETRC": str(tmp_path / "netrc")}.items():
            monkeypatch.setenv(name, value)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield url
        server.shutdown()
        thread.join()


ONLINE = ("--set", "tracking.wandb=online")


def test_wandb_online_needs_a_key_that_jobs_have(
    ask: Doctor, wandb_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "FAIL"
    assert "no key for 127.0.0.1" in finding.detail
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "warn"
    assert "keys in the environment are not passed to jobs" in finding.detail
    assert ask("wandb", *ONLINE, "--cluster", "local")["wandb"].status == "ok"
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {KEY}\n")
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "ok"
    assert KEY not in str(finding)
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 secret {KEY}\n")
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "FAIL"
    assert KEY not in str(finding)


def test_wandb_that_does_not_answer(ask: Doctor, wandb_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    finding = ask("wandb", *ONLINE)["wandb"]
    assert finding.status == "FAIL"
    assert "Connection refused" in finding.detail
    monkeypatch.setenv("WANDB_BASE_URL", "file:///etc/passwd")
    assert "no http(s) address" in ask("wandb", *ONLINE)["wandb"].detail


# Slurm


def test_without_slurm(ask: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = ask("partition")["partition"]
    assert finding.status == "warn"
    assert "no sbatch on PATH" in finding.detail
    assert ask("all-reduce", "--all-reduce")["all-reduce"].status == "warn"  # one process


SMALL_JOB = ("--cpus-per-task", "1", "--mem-gb", "2")


@pytest.mark.slurm
def test_what_a_partition_allows(ask: Doctor, on_cluster: Cluster) -> None:
    finding = ask("partition", *SMALL_JOB, "--partition", "gpu", "--gpus", "2", "--nodes", "2")["partition"]
    assert finding.status == "ok", finding
    assert "2 nodes of 2 GPUs, 4 CPUs" in finding.detail
    assert "to start at" in finding.detail
    assert ask("partition", *SMALL_JOB)["partition"].detail.startswith("gpu: ")
    for flags, detail in (
        (("--partition", "gpus"), "no partition gpus: there are gpu, low"),
        (("--gpus", "3"), "0 of its 2 nodes have 3 GPUs, 3 CPUs and 2 GB, and --nodes is 1"),
        (("--nodes", "3"), "2 of its 2 nodes have"),
        (("--cpus-per-task", "5"), "0 of its 2 nodes have 0 GPUs, 5 CPUs"),
        (("--mem-gb", "100000"), "and 100000 GB"),
        (("--constraint", "a100"), "sbatch would refuse the job"),
    ):
        finding = ask("partition", *SMALL_JOB, *flags)["partition"]
        assert finding.status == "FAIL"
        assert detail in finding.detail


@pytest.mark.slurm
def test_a_partition_with_limits_and_nodes_that_are_down(ask: Doctor, on_cluster: Cluster) -> None:
    def update(*settings: str, check: bool = True) -> None:
        subprocess.run(["scontrol", "update", *settings], check=check, timeout=30)

    try:
        update("PartitionName=low", "MaxTime=30", "MaxNodes=1")
        flags = (*SMALL_JOB, "--partition", "low", "--timeout-min", "60", "--nodes", "2")
        finding = ask("partition", *flags)["partition"]
        assert finding.status == "FAIL"
        assert "--timeout-min 60 is more than its 30 minutes; --nodes 2 is more than its MaxNodes" in finding.detail
        detail = ask("partition", *flags, "--partition", "low,gpu")["partition"].detail
        assert detail.startswith("sbatch would refuse")  # EnforcePartLimits=ALL: each of them must allow it
        assert "(gpu: 2 nodes" in detail
        update("PartitionName=low", "State=DOWN")
        assert "it is DOWN" in ask("partition", *flags)["partition"].detail
        update("NodeName=ALL", "State=DRAIN", "Reason=test")
        finding = ask("partition", *SMALL_JOB, "--partition", "gpu")["partition"]
        assert finding.status == "warn", finding
        assert "2 nodes are large enough, but drained" in finding.detail
    finally:
        update("PartitionName=low", "MaxTime=INFINITE", "MaxNodes=UNLIMITED", "State=UP")
        update("NodeName=ALL", "State=RESUME", check=False)  # which nodes refuse that are not drained


def test_slurms_words() -> None:
    times = {"30": 30, "90:30": 90.5, "1:30:00": 90, "2-0": 2880, "2-12": 3600, "1-01:01:00": 1501}
    assert {text: doctor_partition.minutes(text) for text in times} == times
    assert doctor_partition.minutes("UNLIMITED") == float("inf")
    gres = {"gpu:a100:4(S:0-1),gpu:h100:2,shard:8": 6, "gpu:8": 8, "gpu": 1, "(null)": 0, "gpu:fake:2": 2}
    assert {text: doctor_partition.count_gpus(text) for text in gres} == gres
    nodes = doctor_partition.parse_nodes(
        "n1|64+|512000+|gpu:4|idle*\nn2|8|16000|(null)|mixed-\nn2|8|16000|(null)|mixed-"
    )
    assert [(node.cpus, node.mem_mb, node.gpus, node.usable) for node in nodes] == [
        (64, 512000, 4, False), (8, 16000, 0, True),
    ]  # fmt: skip


def test_an_all_reduce_that_cannot_meet(ask: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    finding = ask("all-reduce", "--cluster", "local", "--tasks-per-node", "2")["all-reduce"]
    assert finding.status == "FAIL"
    assert "2 processes did not come to an end" in finding.detail
    log = Path(finding.advice.removeprefix("its log: "))
    assert "none0" in log.read_text()


def test_what_an_all_reduce_says() -> None:
    row = {"world_size": 2, "hosts": ["a", "b"], "device": "cpu", "wrong": 0, "ms": 2.0, "gb_per_s": 32.0}
    asked = Resources(nodes=2, gpus_per_node=0)
    for changes, resources, status, detail in (
        ({}, asked, "ok", "2 processes (cpu) on a, b: 64 MB in 2.0 ms, 32.00 GB/s; all sums right"),
        ({"wrong": 5}, asked, "FAIL", "but 5 sums are wrong"),
        ({"world_size": 1}, asked, "FAIL", "but 2 processes were asked for"),
        ({}, Resources(nodes=2), "FAIL", "but GPUs were asked for"),
    ):
        finding = doctor_allreduce.judge(row | changes, resources)
        assert (finding.status, detail in finding.detail) == (status, True)


@pytest.mark.slurm
@pytest.mark.slow
def test_an_all_reduce_over_two_nodes(ask: Doctor, on_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    finding = ask("all-reduce", *SMALL_JOB, "--nodes", "2", "--partition", "gpu")["all-reduce"]
    assert finding.status == "ok", finding
    assert "2 processes (cpu) on " in finding.detail


@pytest.mark.slurm
def test_an_all_reduce_that_waits_for_too_long_is_cancelled(ask: Doctor, on_cluster: Cluster) -> None:
    flags = (*SMALL_JOB, "--tasks-per-node", "2", "--dependency", "singleton", "--wait-min", "0.02")
    blocker = ["sbatch", "--job-name=petseg-doctor", "--output=/dev/null", "--wrap=sleep 30"]
    job_id = subprocess.run(blocker, check=True, timeout=30, capture_output=True, text=True).stdout.split()[-1]
    try:
        finding = ask("all-reduce", *flags)["all-reduce"]
    finally:
        subprocess.run(["scancel", job_id], check=True, timeout=30)
    assert finding.status == "FAIL"
    assert "was PENDING (Dependency)" in finding.detail
