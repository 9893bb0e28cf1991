"""A gateway as it is run: gunicorn with several workers, real sockets, real signals."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.ports import free_port, refused_port
from tests.support.servers import Servers, home
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, Received, cut, reply

Serve = Callable[..., Any]

PLAIN = """
[gateway]
name = "test"
threads = 8
[services.svc]
instances = ["{url}"]
{service}
[[routes]]
path = "/svc"
service = "svc"
strip_prefix = true
{route}
"""


def plain(url: str, *, service: str = "", route: str = "", more: str = "") -> str:
    return PLAIN.format(url=url, service=service, route=route) + more


def get(url: str, **options: Any) -> requests.Response:
    return requests.get(url, timeout=20, **options)


@pytest.mark.parametrize("algorithm", ["fixed-window", "token-bucket"])
def test_two_workers_allow_exactly_the_quota(
    algorithm: str, serve: Serve, backend: Backend
) -> None:
    limiter = f"""
[[middleware]]
use = "limiter"
quota = "100 per 15 minutes"
algorithm = "{algorithm}"
"""
    gateway = serve(plain(backend.url, more=limiter), workers=2)
    began = time.monotonic()
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: get(gateway.url + "/svc"), range(400)))
    more = int((time.monotonic() - began) / 9)
    statuses = Counter(answer.status_code for answer in answers)
    assert len(backend.requests) == statuses[200]
    if algorithm == "fixed-window":
        assert statuses == {200: 100, 429: 300}
    else:  # the bucket refills while the test runs: one token every 9 seconds
        assert 100 <= statuses[200] <= 100 + more
        assert statuses[200] + statuses[429] == 400
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["retryAfter"] == int(refused.headers["Retry-After"])


SLEEPY = """
import time
def app(environ, start_response):
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start_response("200 OK", [("Content-Length", "4")])
    return [b"done"]
"""


NAMES_ITS_WORKER = """
import os
def factory(app):
    def tell(environ, start_response):
        environ["HTTP_X_WORKER"] = str(os.getpid())
        return app(environ, start_response)
    return tell
"""


def test_killing_a_worker_loses_no_other_workers_request(
    serve: Serve, backend: Backend, tmp_path: Path
) -> None:
    (tmp_path / "worker_name.py").write_text(NAMES_ITS_WORKER)
    more = """
[[middleware]]
use = "limiter"
quota = "100000 per hour"
[[middleware]]
use = "worker_name:factory"
"""
    release = threading.Event()

    def held(connection: socket.socket, _request: Received) -> None:
        release.wait(60)
        connection.sendall(reply(b"done"))

    gateway = serve(plain(backend.url, more=more), env={"PYTHONPATH": str(tmp_path)})

    def ask(number: int) -> str:
        try:
            return get(f"{gateway.url}/svc/{number}").text
        except requests.ConnectionError:
            return "lost"

    def served_by(first: int = 0) -> dict[int, int]:
        """Return which worker got which request, from the *first* that the backend got on."""
        received = backend.requests[first:]
        return {int(r.target[1:]): int(r.value("X-Worker") or 0) for r in received}

    with ThreadPoolExecutor(24) as threads:
        # Both are up once each of them has served something.
        until(lambda: list(threads.map(ask, range(24))) and len(set(served_by().values())) == 2)
        before = len(backend.requests)
        backend.answers = [held]
        answers = [threads.submit(ask, number) for number in range(24)]  # for 16 threads in all
        until(lambda: len(set(served_by(before).values())) == 2)
        in_hand = served_by(before)
        victim = min(in_hand.values())
        # The limiter's store is in use by both when one of them dies.
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in gateway.workers())
        release.set()
        for number, worker in in_hand.items():
            assert answers[number].result() == ("lost" if worker == victim else "done")
    assert get(gateway.url + "/svc/0").text == "done"


STREAMS = """
BLOCK = b"x" * 65536
COUNT = 4096  # 256 MiB
def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        total = 0
        while block := environ["wsgi.input"].read(65536):
            total += len(block)
        body = str(total).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    start_response("200 OK", [("Content-Length", str(len(BLOCK) * COUNT))])
    return (BLOCK for _ in range(COUNT))
"""


def resident(pid: int, what: str) -> int:
    """Return bytes of memory: ``VmRSS`` now, or ``VmHWM``, the most there ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_each_way_leave_memory_flat(
    chunked: bool, serve: Serve, serve_app: Serve
) -> None:
    upstream = serve_app(STREAMS)
    gateway = serve(plain(upstream.url, more='[[middleware]]\nuse = "logger"\n'), workers=1)
    with get(gateway.url + "/svc", stream=True) as begun:
        assert begun.raw.read(10) == b"x" * 10
    [worker] = gateway.workers()
    before = resident(worker, "VmRSS")
    size = 256 << 20
    block = b"y" * 65536
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as sock:
        if chunked:
            sock.sendall(b"POST /svc HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            frame = b"10000\r\n" + block + b"\r\n"
        else:
            head = f"POST /svc HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
            sock.sendall(head.encode())
            frame = block
        for _ in range(size // len(block)):
            sock.sendall(frame)
        if chunked:
            sock.sendall(b"0\r\n\r\n")
        answer = sock.recv(65536)
        while not answer.endswith(str(size).encode()):
            answer += sock.recv(65536)
    if not chunked:
        received = 0
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as sock:
            sock.sendall(b"GET /svc HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while data := sock.recv(1 << 20):
                received += len(data)
        assert received > size
    assert resident(worker, "VmHWM") - before < 16 << 20


def test_events_arrive_one_by_one_through_every_layer(serve: Serve, backend: Backend) -> None:
    ours, theirs = socket.socketpair()

    def events(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(5):
            connection.sendall(f"data: {number}\n\n".encode())
            assert theirs.recv(1) == b"."  # the client has read it
        return False

    backend.answers = [events]
    everything = """
[[middleware]]
use = "logger"
[[middleware]]
use = "limiter"
quota = "100/m"
[[middleware]]
use = "body-limit"
limit = "1MiB"
[[middleware]]
use = "cors"
origins = ["*"]
"""
    gateway = serve(plain(backend.url, more=everything))
    answer = get(gateway.url + "/svc", stream=True)
    for number in range(5):
        assert answer.raw.read1(1000) == f"data: {number}\n\n".encode()
        ours.sendall(b".")
    assert answer.raw.read1(1000) == b""
    ours.close()
    theirs.close()


def test_a_reload_under_load_fails_no_request(serve: Serve, serve_app: Serve) -> None:
    upstream = serve_app(SLEEPY)
    text = plain(upstream.url, route='name = "first"')
    gateway = serve(text)
    statuses: Counter[int | str] = Counter()
    stop = threading.Event()

    def client() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                try:
                    answer = session.get(gateway.url + "/svc?0.005", timeout=20)
                    statuses[answer.status_code] += 1
                    statuses[answer.headers.get("X-Version", "old")] += 1
                except requests.RequestException as error:
                    statuses[repr(error)] += 1

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in ("one", "two"):
        changed = text + f'response_fields = {{ set = {{ "X-Version" = "{version}" }} }}\n'
        gateway.file.write_text(changed)
        gateway.signal(signal.SIGHUP)
        until(lambda version=version: statuses[version] > 20)
    old_workers = gateway.workers()
    gateway.file.write_text("[gateway]\nnmae = 'typo'\n")
    gateway.signal(signal.SIGHUP)
    until(lambda: not set(gateway.workers()) & set(old_workers))
    seen = statuses["two"]
    until(lambda: statuses["two"] > seen + 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert {key for key in statuses if isinstance(key, int)} == {200}
    assert set(statuses) <= {200, "old", "one", "two"}, statuses
    assert "gateway.nmae" in gateway.log


def test_requests_in_flight_finish_when_the_gateway_is_stopped(
    serve: Serve, backend: Backend
) -> None:
    stops = threading.Event()

    def answer(connection: socket.socket, _request: Received) -> None:
        assert stops.wait(20)
        connection.sendall(reply(b"done"))

    backend.answers = [answer]
    gateway = serve(plain(backend.url))
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(get, gateway.url + "/svc") for _ in range(4)]
        backend.wait_for_requests(4)
        gateway.signal(signal.SIGTERM)
        until(gateway.refuses)
        stops.set()
        assert [answer.result().text for answer in answers] == ["done"] * 4
    assert gateway.process.wait(25) == 0


def test_one_worker_checks_health_for_all_workers(
    serve: Serve, serve_app: Serve, backend: Backend
) -> None:
    backend.answers = [reply(b"", status="503 Unavailable")]
    text = plain(
        backend.url,
        service='health = { path = "/health", interval = "0.5s", timeout = "1s" }',
        more='[admin]\nprefix = ""\n',
    )
    gateway = serve(text, workers=3)
    until(lambda: len(backend.requests) >= 4)
    began, first = time.monotonic(), len(backend.requests)
    until(lambda: len(backend.requests) >= first + 6)
    # Three workers that each checked would need a third of that time.
    assert time.monotonic() - began > 1.2
    assert {request.target for request in backend.requests} == {"/health"}

    def known() -> list[tuple[bool, int]]:
        """Return what every worker knows, which takes some requests to meet them all."""
        answers = [get(gateway.url + "/health").json() for _ in range(12)]
        statuses = [answer["services"].get("svc", {}) for answer in answers]
        return [(status.get("healthy"), status.get("status")) for status in statuses]

    until(lambda: known() == [(False, 503)] * 12)
    backend.answers = [reply(b"")]
    until(lambda: get(gateway.url + "/health").json()["services"]["svc"]["healthy"])


def test_a_truncated_answer_is_cut_at_the_client_too(serve: Serve, backend: Backend) -> None:
    backend.answers = [
        cut(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"),
        cut(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"),
    ]
    gateway = serve(plain(backend.url, more='[[middleware]]\nuse = "logger"\n'))
    for _ in range(2):
        with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
            get(gateway.url + "/svc")

    def errors() -> list[str]:
        records = [json.loads(line) for line in gateway.log.splitlines() if line[:1] == "{"]
        return [record["error"] for record in records if "error" in record]

    until(lambda: len(errors()) >= 2)
    assert errors() == ["UpstreamCut"] * 2
    assert "Traceback" not in gateway.log


def test_down_and_slow_services_answer_as_listed(serve: Serve, backend: Backend) -> None:
    def silent(connection: socket.socket, _request: Received) -> bool:
        return connection.recv(1) != b""

    backend.answers = [silent]
    with refused_port() as port:
        more = f"""
[services.down]
instances = ["http://127.0.0.1:{port}"]
[[routes]]
path = "/down"
service = "down"
"""
        gateway = serve(plain(backend.url, service='timeout = "300ms"', more=more))
        down, slow = get(gateway.url + "/down"), get(gateway.url + "/svc")
    assert (down.status_code, down.json()["error"]) == (503, "Connection refused")
    assert (slow.status_code, slow.json()["error"]) == (504, "Request timeout")
    assert get(gateway.url + "/nothing").json()["message"] == "Route not found!"


HOSTILE = [
    b"GET /svc HTTP/1.1\r\n\r\n",  # F01
    b"GET /svc/../x HTTP/1.1\r\nHost: a\r\n\r\n",  # E05
    b"GET /svc/%2e%2e/x HTTP/1.1\r\nHost: a\r\n\r\n",  # E06
    b"GET /svc%2fx HTTP/1.1\r\nHost: a\r\n\r\n",  # E08
    b"GET /svc HTTP/1.1\r\nHost: a@evil\r\n\r\n",  # F04
    b"GET http://b/svc HTTP/1.1\r\nHost: a\r\n\r\n",  # F10
    b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",  # F13
    b"TRACE /svc HTTP/1.1\r\nHost: a\r\n\r\n",  # F14
    b"GET /svc HTTP/1.1\r\nHost: a\r\nX_User_Id: evil\r\n\r\n",  # D03
    b"POST /svc HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nG",  # A01
    b"POST /svc HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",  # A03
    b"POST /svc HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",  # A09
    b"GET /svc HTTP/1.1\nHost: a\n\n",  # B01
    b"GET /svc HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",  # B03
    b"GET /svc HTTP/1.2\r\nHost: a\r\n\r\n",  # B09
    b"GET /svc HTTP/1.1\r\nHost: a\r\nSCRIPT_NAME: /svc\r\n\r\n",  # D19
]


def test_hostile_requests_reach_no_service(serve: Serve, backend: Backend) -> None:
    gateway = serve(plain(backend.url), workers=1)
    for data in HOSTILE:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as sock:
            sock.sendall(data)
            answer = sock.recv(65536)
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), (data, answer)
    assert backend.requests == []
    assert get(gateway.url + "/svc").status_code == 200


def stalled(port: int, data: bytes, many: int) -> list[socket.socket]:
    clients = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(many)]
    for client in clients:
        client.sendall(data)
    return clients


def test_silent_and_lingering_clients_delay_no_other_client(serve: Serve, backend: Backend) -> None:
    """M04, M05: more of them than the one worker has threads."""
    gateway = serve(plain(backend.url), workers=1)
    silent = stalled(gateway.port, b"", 30)
    answered = stalled(gateway.port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 12)
    for client in answered:
        assert client.recv(12) == b"HTTP/1.1 404"
    assert get(gateway.url + "/svc").status_code == 200
    assert not select.select(silent, [], [], 0)[0]  # which had not been sent away for that
    for client in silent + answered:
        client.close()


def test_persistent_connections_do_not_keep_other_clients_out(
    serve: Serve, backend: Backend
) -> None:
    """As many as there are threads ask without a pause, and another client comes along."""
    gateway = serve(plain(backend.url).replace("threads = 8", "threads = 2"), workers=2)
    stop = threading.Event()

    def keep_asking() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                assert session.get(gateway.url + "/svc", timeout=20).status_code == 200

    with ThreadPoolExecutor(12) as threads:
        asking = [threads.submit(keep_asking) for _ in range(12)]
        try:
            backend.wait_for_requests(300, timeout=60)
            for _ in range(20):
                assert get(gateway.url + "/svc").status_code == 200
        finally:
            stop.set()
        for one in asking:
            one.result()


def test_a_client_that_never_ends_its_head_is_disconnected(serve: Serve, backend: Backend) -> None:
    """M01: as many of them as there are threads, each still sending now and then."""
    text = plain(backend.url).replace("threads = 8", 'threads = 8\nhead_timeout = "2s"')
    gateway = serve(text, workers=1)
    tricklers = stalled(gateway.port, b"GET / HTTP/1.1\r\nHost: a\r\n", 8)
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.5):
            for client in tricklers:
                try:
                    client.sendall(b"X: y\r\n")
                except OSError:
                    pass

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        assert get(gateway.url + "/svc").status_code == 200
    finally:
        stop.set()
        thread.join()
        for client in tricklers:
            client.close()


def test_the_configuration_for_gunicorn_itself_does_the_same(
    tmp_path: Path, backend: Backend
) -> None:
    file = tmp_path / "gateway.toml"
    port = free_port()
    text = plain(backend.url).replace("threads = 8", f'workers = 2\nbind = "127.0.0.1:{port}"')
    file.write_text(text)
    conf = Path(__file__).parents[2] / "gunicorn.conf.py"
    commands = [
        ["-c", str(conf)],
        ["-b", f"127.0.0.1:{port}", f"wsgigate:load({str(file)!r})"],
    ]
    for number, options in enumerate(commands):
        env = {"WSGIGATE_CONFIG": str(file), **home(tmp_path)}
        command = [sys.executable, "-m", "gunicorn", *options]
        with Servers() as servers:
            served = servers.start(command, tmp_path / f"log{number}", env, port=port)
            assert get(served.url + "/svc").text == "ok"


def test_all_errors_of_a_file_are_reported_and_nothing_starts(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[gateway]\nbnid = 1\n[[routes]]\npath = "x"\nservice = "none"\n')
    done = subprocess.run(
        [sys.executable, "-m", "wsgigate", "run", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "gateway.bnid" in done.stderr
    assert "routes[0]" in done.stderr
    assert "Traceback" not in done.stderr
