"""The report on loopback, asked by a real client while its sweep's folder changes."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs import report
from jobs.design.expansion import expand
from jobs.design.shard_sets import ShardSets
from jobs.design.spec import Spec
from jobs.reporting.page import render_page
from jobs.reporting.serve import LivePage, ReportServer, fingerprint
from jobs.reporting.statistics.records import read_records
from jobs.runs.sweep_file import save_sweep
from jobs.runs.trial import Submission, Sweep, Trial
from jobs.runs.trial_state import TrialState
from jobs.runs.trials import plan_sweep
from petseg.config.values import trial_id
from petseg.run_folder.layout import Result, claim_folder, save_result
from shards.command import CANCELLED, WRONG_USE, run_command
from shards.manifest import Manifest, Source, Split, save_manifest

REPOSITORY = Path(__file__).parents[3]


def sweep_in(tmp_path: Path) -> Sweep:
    """Two networks; one trial is finished, the other was never begun."""
    (tmp_path / "shards").mkdir()
    manifest = save_manifest(
        Manifest(Source("drawn", ""), {}, {"train": Split(9, "0" * 16), "val": Split(2, "1" * 16)}, ()),
        tmp_path / "shards",
    )
    axes = {"model.arch": ["unet", "resnet34_unet"]}
    cells = expand(Spec("lab", axes, {"data.shards": str(tmp_path / "shards"), "train.epochs": 2}))
    sweep = plan_sweep(
        Spec("lab", axes, {}), cells, ShardSets({cells[0].config.data.shards: manifest}), tmp_path / "runs" / "lab"
    )
    save_sweep(sweep)
    for cell in cells:
        folder = sweep.folder / "trials" / trial_id(cell.config, manifest.hash)
        claim_folder(cell.config, manifest.hash, folder)
    finish(sweep.trials[0], 0.9)
    return sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_in(tmp_path)


def finish(trial: Trial, dice: float) -> None:
    metrics = {"val/loss": 0.4, "val/dice": dice, "val/all_pet_dice": 0.55}
    save_result(Result(trial.id, metrics, 1, 1, 31, 1, "node1", "cpu", 60.0, 83.0, 0.01, 84.0), trial.folder)
    trial.write_state(TrialState("done", host="node1", job_id="1"))


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: str


@dataclass(frozen=True)
class Client:
    server: ReportServer

    def ask(self, path: str = "/", method: str = "GET", token: str | None = None, **headers: str) -> Reply:
        """With the right token, if no other is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        token = self.server.token if token is None else token
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"{path}?token={token}" if token else path, headers=named)
        answer = connection.getresponse()
        reply = Reply(answer.status, answer.headers, answer.read().decode())
        connection.close()
        return reply


@pytest.fixture(scope="module")
def serving() -> Iterator[Callable[[LivePage], Client]]:
    open_servers: list[tuple[ReportServer, threading.Thread]] = []

    def serve(page: LivePage) -> Client:
        server = ReportServer(page, 0)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        open_servers.append((server, thread))
        return Client(server)

    yield serve
    for server, thread in open_servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is made again as soon as it has changed, however long making it took."""
    monkeypatch.setattr("jobs.reporting.serve.REST", 0)


@pytest.fixture
def client(sweep: Sweep, serving: Callable[[LivePage], Client], restless: None) -> Client:
    return serving(LivePage(sweep.folder, look_every_s=0.0))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, serving: Callable[[LivePage], Client]) -> Client:
    """The sweep does not change meanwhile."""
    return serving(LivePage(sweep_in(tmp_path_factory.mktemp("shown")).folder))


def test_the_served_page_is_the_file_with_a_script_that_polls(sweep: Sweep, client: Client) -> None:
    live, file = client.ask(), render_page(sweep, read_records(sweep))
    assert "connect-src" not in file
    assert "fetch(" not in file
    without = re.sub(r"\{\n  const VERSION = .*\n\}(?=</script>)", "", live.body, flags=re.DOTALL)
    assert without.replace("; connect-src 'self'", "") == file
    assert f'const VERSION = "{client.ask("/version").body}"' in live.body


def test_headers_are_strict(shown: Client) -> None:
    for reply in (shown.ask(), shown.ask("/version"), shown.ask(token="wrong"), shown.ask(method="POST")):
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert "Server" not in reply.headers
        assert "frame-ancestors 'none'" in reply.headers["Content-Security-Policy"]
    page = shown.ask()
    (of_the_page,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page.body)
    assert page.headers["Content-Security-Policy"].startswith(of_the_page)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert shown.server.token not in page.body


@pytest.mark.parametrize("token", ["", "wrong", "%ff%00", "%C3%A9"])
@pytest.mark.parametrize("path", ["/", "/version", "/../etc/passwd"])
def test_requests_without_the_token_are_refused(shown: Client, path: str, token: str) -> None:
    reply = shown.ask(path, token=token)
    assert reply.status == 403
    assert "right token" in reply.body
    assert shown.server.token not in reply.body


def test_each_server_has_a_long_token_of_its_own(shown: Client, serving: Callable[[LivePage], Client]) -> None:
    one, other = shown.server, serving(shown.server.page).server
    assert one.token != other.token
    assert min(len(one.token), len(other.token)) >= 32
    assert one.url == f"http://127.0.0.1:{one.server_port}/?token={one.token}"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),  # another port: through ssh -L
        ("localhost:8000", 200),
        ("localhost", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8000", 403),
        ("", 403),
    ],
)
def test_other_host_names_are_refused(shown: Client, host: str, status: int) -> None:
    assert shown.ask("/version", Host=host).status == status


def test_other_paths_and_methods_are_refused(shown: Client) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        reply = shown.ask(method=method)
        assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")
    assert shown.ask("/sweep.json").status == 404
    head, whole = shown.ask(method="HEAD"), shown.ask()
    assert (head.status, head.body) == (200, "")
    assert head.headers["Content-Length"] == str(len(whole.body.encode()))
    with socket.create_connection(("127.0.0.1", shown.server.server_port), timeout=60) as connection:
        connection.sendall(b"no such thing as this line\r\n\r\n")
        assert connection.makefile("rb").read() == b"Bad Request"


def test_it_listens_on_loopback_alone(shown: Client) -> None:
    assert shown.server.server_address[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):  # another address of the loopback network is none of its own
        socket.create_connection(("127.0.0.2", shown.server.server_port), timeout=60)


def test_the_page_changes_when_its_sweep_does(sweep: Sweep, client: Client) -> None:
    before = client.ask()
    assert "0.9000" in before.body
    assert "0.8500" not in before.body
    same = client.ask(If_None_Match=before.headers["ETag"])
    assert (same.status, same.body, same.headers["ETag"]) == (304, "", before.headers["ETag"])
    version = client.ask("/version")
    assert client.ask("/version", If_None_Match=version.headers["ETag"]).status == 304
    sweep.trials[1].write_state(TrialState("running", host="node1", job_id="1"))
    sweep.add_submissions([Submission(sweep.trials[1].id, "1", "debug", "x.out")])
    finish(sweep.trials[1], 0.85)
    after = client.ask("/version", If_None_Match=version.headers["ETag"])
    assert (after.status, after.body != version.body) == (200, True)
    page = client.ask(If_None_Match=before.headers["ETag"])
    assert page.status == 200
    assert "0.8500" in page.body


def test_an_unfinished_sweep_is_served(sweep: Sweep, serving: Callable[[LivePage], Client], restless: None) -> None:
    (sweep.trials[0].folder / "result.json").unlink()
    client = serving(LivePage(sweep.folder, look_every_s=0.0))
    assert "no result yet" in client.ask().body
    finish(sweep.trials[0], 0.7)
    assert "0.7000" in client.ask().body


def test_the_previous_page_stays_after_a_failed_render(
    sweep: Sweep, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    before = client.ask().body
    whole = (sweep.folder / "sweep.json").read_text()
    (sweep.folder / "sweep.json").write_text(whole[:20])
    assert client.ask().body == before
    assert client.ask().body == before
    assert [record.message.partition(":")[0] for record in caplog.records] == ["the page stays as it was"]  # said once
    (sweep.folder / "sweep.json").write_text(whole)
    finish(sweep.trials[0], 0.8)
    assert "0.8000" in client.ask().body


def test_concurrent_requests_get_the_previous_page_during_a_render(sweep: Sweep) -> None:
    making, made = threading.Event(), threading.Event()

    class SlowPage(LivePage):
        def _render(self, sweep: Sweep) -> tuple[str, bytes]:
            if hasattr(self, "_page") and self._page[0]:
                making.set()
                assert made.wait(60)
            return super()._render(sweep)

    page = SlowPage(sweep.folder, look_every_s=0.0)
    old = page.look()
    finish(sweep.trials[1], 0.85)
    page._next_look = 0.0  # however long the last look took
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(page.look)
        assert making.wait(60)
        assert pool.submit(page.look).result(60) == old
        made.set()
        new = first.result(60)
    assert new != old
    assert page.look() == new


def test_two_browsers_at_once(shown: Client) -> None:
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda _: shown.ask(), range(8)))
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1


def test_files_that_the_page_does_not_show_cause_no_render(sweep: Sweep) -> None:
    folder = sweep.trials[0].folder
    before = fingerprint(sweep.folder)
    (folder / "heartbeat.json").write_text("{}")
    (folder / ".result.json.0.tmp").write_text("{")
    (folder / "checkpoints").mkdir()
    assert fingerprint(sweep.folder) == before
    os.utime(folder / "result.json", (1, 1))
    assert fingerprint(sweep.folder) != before


def test_ctrl_c_ends_it(sweep: Sweep) -> None:
    command = [sys.executable, "jobs/report.py", str(sweep.folder), "--serve"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stdout is not None
        first, hint = serving.stdout.readline(), serving.stdout.readline()
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/\?token=\S{32}\n", first)[0])
        assert f"ssh -N -L {port}:127.0.0.1:{port} " in hint
        serving.send_signal(signal.SIGINT)
        _, error = serving.communicate(timeout=60)
    assert (serving.returncode, error) == (CANCELLED, "interrupted\n")
    assert not (sweep.folder / "report.html").exists()


def test_wrong_use(sweep: Sweep, capsys: pytest.CaptureFixture[str], shown: Client) -> None:
    taken = str(shown.server.server_port)
    for flags, words in (
        (["--serve", "--format", "csv"], "writes no file"),
        (["--serve", "--out", "x.html"], "writes no file"),
        (["--port", "8000"], "--port 8000 is for --serve"),
        (["--serve", "--port", "99999"], "--port 99999: "),
        (["--serve", "--port", taken], f"--port {taken}: "),
    ):
        assert run_command(report.main, [str(sweep.folder), *flags]) == WRONG_USE
        assert words in capsys.readouterr().err
