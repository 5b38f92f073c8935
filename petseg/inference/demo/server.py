"""The server of the page: pictures arrive as the bodies of POST requests, and stay in memory.

GET /                              the page
POST /predict?model=N              takes a picture's file; JSON: the result's key, size, share of each class, seconds
GET /view?of=KEY&view=V&class=NAME a PNG file
GET /compare?one=KEY&other=KEY     JSON: the share of the pixels that differ

The text of any other answer says what is wrong with the request.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path

from petseg.data.decode import MAX_PIXELS
from petseg.inference.demo.models import Model, facts_of
from petseg.inference.demo.results import Results, draw, share_that_differs
from petseg.inference.predictor import Prediction
from shards.loopback import NOTHING_ELSE, PrivateHandler, PrivateServer

MAX_BODY_BYTES = 8 * MAX_PIXELS  # the largest picture with four channels of 16 bits, and no compression
DRAIN_BYTES = 1 << 16
MAX_DIGITS = 15  # of a length
SAME_SITE = ("same-origin", "none")

logger = logging.getLogger(__name__)


class Refused(Exception):
    """A request that cannot be answered, with its status."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(PrivateHandler):
    """Answers one request."""

    server: DemoServer
    methods = "GET, HEAD, POST"

    def do_GET(self) -> None:
        path, values = self.asked
        if refused := self.refusal():
            self.answer(*refused)
        elif path == "/":
            nonce = secrets.token_urlsafe(16)
            page = render_page(self.server.models, nonce)
            self.answer(HTTPStatus.OK, page, "text/html; charset=utf-8", {"Content-Security-Policy": policy_of(nonce)})
        elif path == "/view":
            self._try(lambda: self._view(values))
        elif path == "/compare":
            self._try(lambda: self._compare(values))
        else:
            self.answer(HTTPStatus.NOT_FOUND, "here are /, /view, /compare, and /predict by POST")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, values = self.asked
        if refused := self.refusal() or self._foreign():
            self._drain()
            self.answer(*refused)
        elif path != "/predict":
            self._drain()
            self.answer(HTTPStatus.NOT_FOUND, "pictures go to /predict")
        else:
            self._try(lambda: self._predict(values))

    def _foreign(self) -> tuple[HTTPStatus, str] | None:
        """Refuse what another page in the same browser sends."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        host = (self.headers.get("Host") or "").lower()
        if site in SAME_SITE and (origin is None or origin.lower() == f"http://{host}"):
            return None
        return HTTPStatus.FORBIDDEN, "another page sent this request"

    def _try(self, work: Callable[[], tuple[str | bytes, str]]) -> None:
        """Answer with what the work returns, or with what is wrong."""
        try:
            content, kind = work()
        except Refused as error:
            self.answer(error.status, str(error))
        except ValueError as error:
            self.answer(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (ConnectionError, TimeoutError):
            raise  # the browser has gone
        except Exception as error:  # of torch, as when the GPU's memory is full
            logger.warning("a prediction failed: %s: %s", type(error).__name__, error)
            line = (str(error) or type(error).__name__).splitlines()[0][:200]
            self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"the prediction failed: {line}")
        else:
            self.answer(HTTPStatus.OK, content, kind)

    def _predict(self, values: dict[str, str]) -> tuple[str, str]:
        body = self._body()
        number = values.get("model", "")
        if not (number.isascii() and number.isdigit() and int(number) < len(self.server.models)):
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no model {number!r:.20}")
        timed = self.server.models[int(number)].predict(body)
        height, width = timed.prediction.mask.shape
        content = {
            "key": self.server.results.add(timed.prediction),
            "width": width,
            "height": height,
            "shares": list(timed.prediction.shares.values()),
            "decode_s": timed.decode_s,
            "model_s": timed.model_s,
        }
        return json.dumps(content), "application/json"

    def _view(self, values: dict[str, str]) -> tuple[bytes, str]:
        prediction = self._result(values.get("of", ""))
        with self.server.drawing:
            return draw(prediction, values.get("view", ""), values.get("class", "")), "image/png"

    def _compare(self, values: dict[str, str]) -> tuple[str, str]:
        one, other = (self._result(values.get(name, "")) for name in ("one", "other"))
        return json.dumps({"share": share_that_differs(one, other)}), "application/json"

    def _result(self, key: str) -> Prediction:
        prediction = self.server.results.get(key)
        if prediction is None:
            raise Refused(HTTPStatus.GONE, "the server no longer keeps this result: predict the picture again")
        return prediction

    def _body(self) -> bytes:
        """The bytes of the request's body; raises Refused for one that is too long, or of unknown length."""
        length = self._length()
        if length is None:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "send a picture's file as the body, with its Content-Length")
        if length > MAX_BODY_BYTES:
            self._drain()
            message = f"the file has {length:,} bytes: {MAX_BODY_BYTES:,} are possible"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("the browser has stopped sending")
        return body

    def _length(self) -> int | None:
        """How long the body is said to be."""
        stated = self.headers.get("Content-Length", "")
        return int(stated) if stated.isascii() and stated.isdigit() and len(stated) <= MAX_DIGITS else None

    def _drain(self) -> None:
        """Read the body of a refused request, up to the limit: a browser shows no answer while it still sends."""
        left = min(self._length() or 0, MAX_BODY_BYTES)
        while left > 0 and (part := self.rfile.read(min(left, DRAIN_BYTES))):
            left -= len(part)


class DemoServer(PrivateServer):
    """Serves the page of some models; raises ValueError if the port is taken."""

    def __init__(self, models: Sequence[Model], port: int) -> None:
        self.models, self.results = tuple(models), Results()
        self.drawing = threading.Lock()  # one view at a time: a view of a large picture takes much memory
        super().__init__(port, Handler)


def policy_of(nonce: str) -> str:
    """The page's own script and style, its own requests, and pictures that its script made."""
    return (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src blob: data:; "
        f"connect-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'; {NOTHING_ELSE}"
    )


def render_page(models: Sequence[Model], nonce: str) -> str:
    """page.html.j2 with its style and script in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    facts = [facts_of(model) for model in models]
    limits = {"bytes": MAX_BODY_BYTES, "pixels": MAX_PIXELS}
    return environment.get_template("page.html.j2").render(models=facts, nonce=nonce, limits=limits)
