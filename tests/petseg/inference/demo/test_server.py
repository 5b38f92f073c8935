"""The demo's server, asked by a real client: it shows what petseg.load(...).predict gives, and nothing to strangers."""

from __future__ import annotations

import io
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import petseg
from petseg.inference.demo import server as server_module
from petseg.inference.demo.models import Model
from petseg.inference.demo.server import DemoServer
from tests.petseg.inference.demo.conftest import SIZE, TWELVE, Client, as_png, pixels_of

PICTURE = as_png()


@pytest.mark.parametrize("number", range(4))
def test_views_are_those_of_a_prediction(client: Client, files: list[Path], number: int) -> None:
    found = client.predict(PICTURE, number).json
    wanted = petseg.load(files[number], device="cpu").predict(pixels_of(PICTURE))
    assert (found["width"], found["height"]) == SIZE
    assert len(np.unique(wanted.mask)) > 1
    assert found["shares"] == pytest.approx(list(wanted.shares.values()))
    assert found["decode_s"] > 0
    assert found["model_s"] > 0

    def view(name: str, of_class: str = "") -> np.ndarray:
        reply = client.ask("/view", of=found["key"], view=name, of_class=of_class)
        assert (reply.status, reply.headers["Content-Type"]) == (200, "image/png")
        return pixels_of(reply.body)

    assert np.array_equal(view("picture"), wanted.image)
    assert np.array_equal(view("overlay"), np.asarray(wanted.overlay()))
    assert np.array_equal(view("mask"), wanted.mask)
    assert np.array_equal(view("cutout"), np.asarray(wanted.cutout()))
    name = wanted.header.names[-1]
    assert np.array_equal(view("cutout", name), np.asarray(wanted.cutout(name)))
    np.testing.assert_allclose(view("probability", name) / 255, wanted.probabilities[-1], atol=0.51 / 255)


def test_the_exif_orientation_is_applied(client: Client) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.open(io.BytesIO(PICTURE)).save(file, "JPEG", exif=exif)
    found = client.predict(file.getvalue()).json
    assert (found["height"], found["width"]) == SIZE


def test_two_models_are_compared(client: Client) -> None:
    keys = [client.predict(PICTURE, number).json["key"] for number in range(4)]
    masks = [pixels_of(client.ask("/view", of=key, view="mask").body) for key in keys]
    same = client.ask("/compare", one=keys[0], other=keys[0]).json["share"]
    other = client.ask("/compare", one=keys[0], other=keys[2]).json["share"]
    assert same == 0
    assert other == pytest.approx((masks[0] != masks[2]).mean())
    assert other > 0
    refused = client.ask("/compare", one=keys[0], other=keys[3])
    assert (refused.status, refused.text) == (422, "not comparable: the models have different classes")
    smaller = client.predict(as_png(size=(50, 40))).json["key"]
    assert "different sizes" in client.ask("/compare", one=keys[0], other=smaller).text


def test_the_page_names_models_and_classes_as_data(client: Client) -> None:
    page = client.ask("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<12>" not in page.text
    assert f"<{TWELVE[3].name.partition('<')[2]}" not in page.text  # not as markup
    assert "class \\u003c3\\u003e" in page.text  # but as JSON
    for name in ("pets.safetensors", "pets.onnx", "other.safetensors", "twelve.safetensors"):
        assert name in page.text
    assert client.server.token not in page.text
    policy = page.headers["Content-Security-Policy"]
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert page.text.count(f'nonce="{nonce}"') == 2
    assert "unsafe" not in policy
    assert nonce not in client.ask("/").text  # each answer has its own


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", PICTURE[: len(PICTURE) // 2], b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    ids=["empty", "text", "cut off", "svg"],
)
def test_what_is_no_picture_is_refused_with_its_reason(client: Client, content: bytes) -> None:
    reply = client.predict(content)
    assert reply.status == 422
    assert reply.text
    assert "Traceback" not in reply.text
    assert len(reply.text.splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "values", "status"),
    [
        ("/view", {"of": "999999", "view": "mask"}, 410),
        ("/view", {"view": "mask"}, 410),
        ("/compare", {"one": "999999", "other": "../../etc/passwd"}, 410),
        ("/secret", {}, 404),
        ("/../etc/passwd", {}, 404),
    ],
)
def test_what_is_not_there_is_said(client: Client, path: str, values: dict[str, str], status: int) -> None:
    assert client.ask(path, **values).status == status


def test_unknown_views_classes_and_models_are_named(client: Client) -> None:
    key = client.predict(PICTURE).json["key"]
    assert "choose one of picture, overlay" in client.ask("/view", of=key, view="<b>").text
    for view in ("probability", "cutout"):
        reply = client.ask("/view", of=key, view=view, of_class="lion")
        assert (reply.status, "choose one of background, cat, dog" in reply.text) == (422, True)
    for number in ("4", "-1", "x", "", "²", "9" * 400):
        assert client.ask("/predict", "POST", PICTURE, model=number).status == 404, number


@pytest.mark.parametrize("token", ["", "wrong", "\xe9"])
@pytest.mark.parametrize(
    ("path", "method"), [("/", "GET"), ("/view", "GET"), ("/compare", "GET"), ("/predict", "POST")]
)
def test_requests_without_the_token_are_refused(client: Client, path: str, method: str, token: str) -> None:
    reply = client.ask(path, method, PICTURE if method == "POST" else None, token=token)
    assert reply.status == 403
    assert "right token" in reply.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_other_pages_of_the_browser_send_no_pictures(client: Client, headers: dict[str, str]) -> None:
    assert client.ask("/predict", "POST", PICTURE, headers, model=0).status == 403


def test_the_page_itself_sends_pictures(client: Client) -> None:
    headers = {"Origin": f"http://127.0.0.1:{client.server.server_port}", "Sec-Fetch-Site": "same-origin"}
    assert client.ask("/predict", "POST", PICTURE, headers, model=0).status == 200


def test_bodies_are_limited(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_BODY_BYTES", len(PICTURE) - 1)
    reply = client.predict(PICTURE)
    assert (reply.status, f"{len(PICTURE) - 1:,} are possible" in reply.text) == (413, True)
    monkeypatch.undo()
    assert client.predict(PICTURE).status == 200
    for length in ("", "abc", "-5", "²", "9" * 40):
        with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=30) as connection:
            line = f"Content-Length: {length}\r\n" if length else ""
            path = f"/predict?model=0&token={client.server.token}"
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{line}\r\n".encode())
            assert connection.recv(64).split()[1] in (b"411", b"413"), length


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(client: Client, method: str) -> None:
    reply = client.ask("/predict", method)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD, POST")


def test_many_requests_at_once_get_their_own_pictures(client: Client) -> None:
    pictures = [as_png(seed, (40 + seed, 30)) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: client.predict(one[1], one[0] % 4).json, enumerate(pictures)))
        shown = list(pool.map(lambda one: client.ask("/view", of=one["key"], view="picture").body, found))
    assert [one["width"] for one in found] == [40 + seed for seed in range(12)]
    for picture, view in zip(pictures, shown, strict=True):
        assert np.array_equal(pixels_of(picture), pixels_of(view))


def test_a_failure_of_the_model_is_an_answer(
    client: Client, models: list[Model], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory\nat some place")

    monkeypatch.setattr(models[0].predictor, "predictions", fail)
    reply = client.predict(PICTURE)
    assert (reply.status, reply.text) == (500, "the prediction failed: out of memory")
    assert "out of memory" in caplog.text
    assert client.predict(PICTURE, 2).status == 200


def test_a_port_that_is_taken_is_one_line(client: Client, models: list[Model]) -> None:
    with pytest.raises(ValueError, match=rf"--port {client.server.server_port}: .*: choose another, or leave it out"):
        DemoServer(models, client.server.server_port)
