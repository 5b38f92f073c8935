"""Models with fresh weights, and their page on loopback."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from petseg.export import main as export
from petseg.inference.demo.models import Model, load_models
from petseg.inference.demo.server import DemoServer
from petseg.inference.weights_file import load_model, save_weights
from petseg.models.networks import Network
from shards.classes import ClassEntry
from shards.command import OK, run_command
from tests.petseg.inference.test_export import header_of, write_weights

TWELVE = tuple(ClassEntry(f"class <{i}>", i, (20 * i, 0, 255 - 20 * i)) for i in range(12))
SIZE = (90, 70)  # width and height of a picture, which is not that of any model


def as_png(seed: int = 0, size: tuple[int, int] = SIZE) -> bytes:
    """The file of a picture of noise."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)))


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    server: DemoServer

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None,
        **values: str | int,
    ) -> Reply:  # fmt: skip
        """With the server's token, if no other is given. `of_class` is the value `class`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        words = {"token": self.server.token, **values}
        if "of_class" in words:
            words["class"] = words.pop("of_class")
        connection.request(method, f"{path}?{urlencode(words)}", body, headers or {})
        answer = connection.getresponse()
        reply = Reply(answer.status, answer.headers, answer.read())
        connection.close()
        return reply

    def predict(self, content: bytes, model: int = 0) -> Reply:
        return self.ask("/predict", "POST", content, model=model)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model of three classes, its ONNX file, another of the same classes, and one of twelve classes."""
    folder = tmp_path_factory.mktemp("models")
    made = []
    for name, header in {
        "pets": header_of(),
        "other": header_of(Network("unet", 6, "transposed", "", False)),
        "twelve": header_of(classes=TWELVE, target="as_packed", fit="letterbox"),
    }.items():
        (folder / name).mkdir()
        _, model = load_model(write_weights(folder / name, header))
        with torch.no_grad():
            logits = model.eval()(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
            bias = model.get_parameter("segmentation_head.bias")
            bias -= logits.mean((0, 2, 3))  # so that a mask has several classes
        made.append(folder / f"{name}.safetensors")
        save_weights(header, model.state_dict(), made[-1])
    onnx = folder / "pets.onnx"
    words = ["--weights", str(made[0]), "--out", str(onnx), "--pictures", "2"]
    assert run_command(export, words) == OK
    return [made[0], onnx, *made[1:]]


@pytest.fixture(scope="session")
def models(files: list[Path]) -> list[Model]:
    return load_models(files, "cpu")


@pytest.fixture(scope="session")
def client(models: list[Model]) -> Iterator[Client]:
    with DemoServer(models, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()
