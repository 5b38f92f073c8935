"""What requests cannot do to the demo's server, and what they do at the same time."""

from __future__ import annotations

import io
import re
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.petseg.inference.demo.conftest import Client, as_png

PICTURE = as_png()


def test_more_pixels_than_can_be_are_named(client: Client) -> None:
    file = io.BytesIO()
    Image.new("1", (5001, 5000)).save(file, "PNG")
    reply = client.predict(file.getvalue())
    assert (reply.status, "5001 x 5000 pixels" in reply.text) == (422, True)


@pytest.mark.parametrize("length", ["many", "-1", "9" * 5000, ""])
def test_a_body_of_unknown_length_is_refused(client: Client, length: str) -> None:
    assert client.ask("/predict", "POST", None, {"Content-Length": length}, model=0).status == 411


def test_a_browser_that_stops_sending_does_no_harm(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=60) as connection:
        query = f"/predict?model=0&token={client.server.token}"
        connection.sendall(f"POST {query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nhalf".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert client.ask("/").status == 200
    assert not caplog.records


def test_each_page_has_a_nonce_of_its_own_for_its_script_and_style(client: Client) -> None:
    one, other = client.ask("/"), client.ask("/")
    policy = one.headers["Content-Security-Policy"]
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert nonce not in other.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    tags = re.findall(r"<(?:script|style)\b[^>]*>", one.text)
    assert len(tags) == 4
    for tag in tags:
        assert f'nonce="{nonce}"' in tag or 'type="application/json"' in tag


def test_a_model_predicts_one_picture_at_a_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = client.server.models[2].predictor
    at_work, most, whole = [0], [0], predictor._logits

    def counted(*args: object) -> object:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        try:
            return list(whole(*args))
        finally:
            at_work[0] -= 1

    monkeypatch.setattr(predictor, "_logits", counted)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda seed: client.predict(as_png(seed), 2), range(8)))
    assert {reply.status for reply in replies} == {200}
    assert most == [1]


def test_two_models_predict_at_the_same_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits until the other one is at work, too."""
    both = threading.Barrier(2, timeout=60)
    for model in (client.server.models[0], client.server.models[2]):

        def together(*args: object, whole: object = model.predictor._logits) -> object:
            both.wait()
            return list(whole(*args))

        monkeypatch.setattr(model.predictor, "_logits", together)
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda number: client.predict(PICTURE, number), (0, 2)))
    assert [reply.status for reply in replies] == [200, 200]


def test_no_picture_touches_the_disk(client: Client) -> None:
    opened: list[object] = []
    watching = True

    def note(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and watching and isinstance(args[2], int) and args[2] & 0o3:
            opened.append(args[0])

    sys.addaudithook(note)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        file = io.BytesIO()
        Image.open(io.BytesIO(PICTURE)).save(file, kind)
        key = client.predict(file.getvalue()).json["key"]
        assert client.ask("/view", of=key, view="overlay").status == 200
    watching = False
    assert opened == []
