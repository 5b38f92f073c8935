"""A real HTTP server on loopback that serves a folder, and misbehaves as it is told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ALWAYS = 10**9


@dataclass
class Fault:
    """What goes wrong with a file the first `times` times it is asked for."""

    times: int = 1
    status: int = 0  # instead of the file
    redirect: str = ""
    drop_after: int = -1  # bytes, then the connection is closed
    stall_after: int = -1  # bytes, then nothing for ever
    truncate_to: int = -1  # a whole answer with fewer bytes
    flip: bool = False  # one wrong byte
    pause_s: float = 0.0  # between pieces of 4 KiB


@dataclass
class ShardServer:
    folder: Path
    faults: dict[str, Fault] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    targets: list[str] = field(default_factory=list)  # paths with their queries
    headers: list[dict[str, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/pets"


@contextmanager
def serve(folder: Path) -> Iterator[ShardServer]:
    """Serve the folder at /pets until the block ends."""
    told = ShardServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix("/pets/")
            told.asked[name] += 1
            told.targets.append(self.path)
            told.headers.append(dict(self.headers))
            fault = told.faults.get(name, Fault(times=0))
            answer(self, told, folder / name, fault if told.asked[name] <= fault.times else Fault(times=0))

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            pass  # a client that goes away in the midst is part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    told.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield told
    finally:
        told.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, told: ShardServer, path: Path, fault: Fault) -> None:
    if fault.redirect:
        handler.send_response(302)
        handler.send_header("Location", fault.redirect)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    if fault.status or not path.is_file():
        handler.send_error(fault.status or 404)
        return
    content = bytearray(path.read_bytes())
    if fault.flip:
        content[len(content) // 2] ^= 1
    if fault.truncate_to >= 0:
        del content[fault.truncate_to :]
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for start in range(0, len(content), 4096):
        if 0 <= fault.stall_after <= start:
            told.ended.wait()
        if 0 <= fault.drop_after <= start:
            handler.close_connection = True
            return
        handler.wfile.write(content[start : start + 4096])
        if fault.pause_s:
            handler.wfile.flush()
            time.sleep(fault.pause_s)
