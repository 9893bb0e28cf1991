"""Clients that hold on to a worker, as many of each kind as it has threads; and its ends.

The same clients are tried on gunicorn's own threaded worker, to show what is cured.
"""

from __future__ import annotations

import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wsgigate.testing.backend import Backend, Received, reply

Serve = Callable[..., Any]

THREADS = 4
OPTIONS = ("--workers", "1", "--threads", str(THREADS), "--keep-alive", "2")
QUICK = (*OPTIONS, "--worker-class", "served0.Quick")
PLAIN = (*OPTIONS, "--worker-class", "gthread", "--graceful-timeout", "1")

APP = """
import sys, time
from wsgigate.integrations.gate_worker import GateWorker

class Patient(GateWorker):
    head_timeout = 60.0

class Quick(GateWorker):
    head_timeout = idle_timeout = linger_timeout = 1.0

def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        try:
            body = environ["wsgi.input"].read()
        except Exception as error:
            sys.stderr.write(f"BROKEN {type(error).__name__}\\n")
            raise
        sys.stderr.write(f"WHOLE {len(body)}\\n")
    if environ["PATH_INFO"] == "/big":
        start_response("200 OK", [("Content-Length", str(1 << 28))])
        return (bytes(1 << 20) for _ in range(1 << 8))
    if environ["PATH_INFO"] == "/one-piece":
        start_response("200 OK", [("Content-Length", str(1 << 25))])
        return [bytes(1 << 25)]
    if environ["PATH_INFO"] == "/exit":
        sys.exit("an application's whim")
    if environ["PATH_INFO"] == "/own-timeout":
        raise TimeoutError("the application's own")
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

HEAD = b" HTTP/1.1\r\nHost: a\r\n"
KINDS = {
    "one byte": b"G",
    "half a head": b"GET /" + HEAD,
    "half a body": b"POST /" + HEAD + b"Content-Length: 100\r\n\r\nhalf",
    "half a chunk": b"POST /" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    "a body in drops": b"POST /" + HEAD + b"Content-Length: 100000\r\n\r\n",
    "a head in drops": b"GET /" + HEAD + b"X: ",
    "never reads": b"GET /big" + HEAD + b"\r\n",
    "lingers": b"GET /" + HEAD + b"Connection: close\r\n\r\n",
    "says nothing": b"",
    "keeps its connection and half a head": b"GET /" + HEAD + b"\r\nGET /" + HEAD,
}
DRIPS = {"a body in drops", "a head in drops"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


class Attackers:
    """Clients of one kind; those that send in drops do so in a thread."""

    def __init__(self, port: int, kind: str, *, tls: ssl.SSLContext | None = None) -> None:
        self.sockets: list[socket.socket] = []
        for _ in range(THREADS):
            client = socket.create_connection(("127.0.0.1", port), timeout=20)
            if kind == "never reads":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            if tls is not None:
                client = tls.wrap_socket(client, server_hostname="127.0.0.1")
            client.sendall(KINDS[kind])
            self.sockets.append(client)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip)
        if kind in DRIPS:
            self._thread.start()

    def _drip(self) -> None:
        while not self._stop.wait(0.1):
            for client in self.sockets:
                try:
                    client.sendall(b"1")
                except OSError:
                    pass

    def __enter__(self) -> Attackers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for client in self.sockets:
            client.close()

    def all_let_go(self) -> bool:
        """Wait until the server has closed every connection; what it says before does not count."""
        for client in self.sockets:
            try:
                while client.recv(1 << 20):
                    pass
            except TimeoutError:
                return False
            except OSError:
                pass
        return True


def until(condition: Callable[[], object], *, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return found


def get(url: str, **options: Any) -> requests.Response:
    return requests.get(url, **{"timeout": 20, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_slow_clients_are_let_go_and_others_served(kind: str, serve_app: Serve) -> None:
    """M01 to M05."""
    server = serve_app(APP, *QUICK)
    with Attackers(server.port, kind) as attackers:
        assert get(server.url).text == "ok"
        assert attackers.all_let_go()
    if kind in ("half a body", "half a chunk", "a body in drops"):
        assert server.log.count("BROKEN ClientStalled") == THREADS
    assert "WHOLE" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("kind", ["half a head", "a body in drops", "never reads", "lingers"])
def test_slow_clients_are_let_go_behind_tls_too(
    kind: str, serve_app: Serve, certificate: Path
) -> None:
    server = serve_app(APP, *QUICK, "--certfile", str(certificate), "--keyfile", str(certificate))
    tls = ssl.create_default_context(cafile=str(certificate))
    with Attackers(server.port, kind, tls=tls) as attackers:
        url = server.url.replace("http:", "https:")
        assert get(url, verify=str(certificate)).text == "ok"
        assert attackers.all_let_go()
    assert "WHOLE" not in server.log
    assert "Traceback" not in server.log


def test_half_a_handshake_is_let_go(serve_app: Serve, certificate: Path) -> None:
    server = serve_app(APP, *QUICK, "--certfile", str(certificate), "--keyfile", str(certificate))
    with Attackers(server.port, "one byte") as attackers:  # a first byte that TLS can begin with
        url = server.url.replace("http:", "https:")
        assert get(url, verify=str(certificate)).text == "ok"
        assert attackers.all_let_go()


@pytest.mark.parametrize("kind", ["half a head", "half a body", "never reads"])
def test_gunicorns_own_worker_is_held_for_good(kind: str, serve_app: Serve) -> None:
    server = serve_app(APP, *PLAIN)
    with Attackers(server.port, kind), pytest.raises(requests.Timeout):
        get(server.url, timeout=3)


def test_a_large_response_in_one_piece_may_take_longer_than_the_idle_timeout(
    serve_app: Serve,
) -> None:
    server = serve_app(APP, *QUICK)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.settimeout(20)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /one-piece" + HEAD + b"Connection: close\r\n\r\n")
        received, began = 0, time.monotonic()
        while data := client.recv(1 << 16):
            received += len(data)
            if time.monotonic() - began < 2.5:
                time.sleep(0.05)
    assert received > 1 << 25


def test_what_an_application_does_to_itself_is_told_and_ends_nobody_else(
    serve_app: Serve,
) -> None:
    """Q14."""
    server = serve_app(APP, *QUICK)
    [worker] = until(server.workers)
    assert get(server.url + "/exit").status_code == 500
    with pytest.raises(requests.ConnectionError):
        get(server.url + "/own-timeout")
    assert get(server.url).text == "ok"
    assert server.workers() == [worker]
    assert "the application's own" in server.log
    assert "an application's whim" in server.log


class Load:
    """Clients that keep asking, with kept connections and with new ones."""

    def __init__(self, url: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url = url
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(keep,)) for keep in (True, True, False)
        ]

    def _ask(self, keep: bool) -> None:
        with requests.Session() as session:
            session.trust_env = False
            fields = {} if keep else {"Connection": "close"}
            while not self._stop.is_set():
                try:
                    self.outcomes[session.get(self._url, timeout=20, headers=fields).text] += 1
                except requests.RequestException as error:
                    self.outcomes[repr(error)] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, more: int = 30) -> None:
        """Wait until more of them have been answered."""
        seen = self.outcomes["ok"]
        until(lambda: self.outcomes["ok"] >= seen + more)


@pytest.fixture
def besieged() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_reloads_under_load_and_siege_fail_no_request(
    serve_app: Serve, besieged: ExitStack
) -> None:
    """Q03."""
    server = serve_app(APP, *QUICK, "--workers", "2")
    old = until(lambda: len(server.workers()) == 2 and server.workers())
    with Load(server.url) as load:
        for kind in ("half a head", "a body in drops", "lingers"):
            besieged.enter_context(Attackers(server.port, kind))
        load.goes_on()
        for _ in range(2):
            server.signal(signal.SIGHUP)
            until(lambda old=old: not set(server.workers()) & set(old))
            old = server.workers()
            load.goes_on()
    assert set(load.outcomes) == {"ok"}


def test_workers_that_have_served_enough_are_replaced_without_loss(serve_app: Serve) -> None:
    """Q11."""
    server = serve_app(APP, *QUICK, "--workers", "2", "--max-requests", "40")
    with Load(server.url) as load:
        until(lambda: server.log.count("Autorestarting worker") >= 3)
        load.goes_on()
    assert set(load.outcomes) == {"ok"}


def test_a_stopping_worker_finishes_requests_and_waits_for_no_attacker(
    serve_app: Serve, besieged: ExitStack
) -> None:
    """Q01."""
    server = serve_app(APP, *QUICK)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(get(server.url + "/?1.5").text))
    asking.start()
    for kind in ("half a head", "never reads", "lingers", "says nothing"):
        besieged.enter_context(Attackers(server.port, kind))
    until(lambda: answers or asking.is_alive())
    server.signal(signal.SIGTERM)
    asking.join()
    assert answers == ["ok"]
    assert server.process.wait(15) == 0


def test_a_worker_told_to_quit_does_so_though_a_request_is_under_way(serve_app: Serve) -> None:
    server = serve_app(APP, *QUICK)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /" + HEAD + b"\r\nGET /?600" + HEAD + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        server.signal(signal.SIGINT)
        server.process.wait(10)


TOLD_TO_STOP_AT_BIRTH = """
import os, signal
workers, threads, worker_class = 1, 2, "wsgigate.integrations.gate_worker.GateWorker"
def post_fork(server, worker):
    if worker.age == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # into the hands of the master's handler
"""


def test_a_signal_that_comes_while_a_worker_is_born_is_not_lost(
    serve_app: Serve, tmp_path: Path
) -> None:
    (tmp_path / "conf.py").write_text(TOLD_TO_STOP_AT_BIRTH)
    server = serve_app(APP, "-c", str(tmp_path / "conf.py"))
    until(lambda: server.log.count("Booting worker") == 2)
    assert server.log.count("Worker exiting") == 1
    assert get(server.url).text == "ok"


def test_without_a_descriptor_left_a_worker_rests_and_goes_on(serve_app: Serve) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    server = serve_app(limit + APP, *QUICK)
    [worker] = until(server.workers)
    with ExitStack() as stack:
        for _ in range(60):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            stack.callback(client.close)
        until(lambda: "Resting from accepting" in server.log)
        assert get(server.url).text == "ok"
    assert server.workers() == [worker]
    assert "Traceback" not in server.log


def test_more_silent_clients_than_a_worker_may_have_keep_nobody_out(serve_app: Serve) -> None:
    """M05."""
    server = serve_app(APP, *OPTIONS, "-k", "served0.Patient", "--worker-connections", "20")
    with ExitStack() as stack:
        for _ in range(100):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            stack.callback(client.close)
        assert get(server.url).text == "ok"


GATEWAY = """
[gateway]
name = "test"
threads = 4
[services.svc]
instances = ["{url}"]
[[routes]]
path = "/"
service = "svc"
"""


def test_an_instance_is_let_go_when_the_client_leaves(serve: Serve, backend: Backend) -> None:
    """While the head is waited for, and in the middle of a stream that says nothing."""

    def held(connection: socket.socket, _request: Received) -> bool:
        return connection.recv(1) != b""

    def streams(connection: socket.socket, request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        return held(connection, request)

    backend.answers = [held, streams, reply(b"ok")]
    gateway = serve(GATEWAY.format(url=backend.url) + '[[middleware]]\nuse = "logger"\n', workers=1)
    for number in (1, 2):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
            client.sendall(b"GET /" + HEAD + b"\r\n")
            backend.wait_for_requests(number)
            if number == 2:
                assert b"200" in client.recv(1 << 16)
        backend.wait_until_closed(5)
    assert get(gateway.url).text == "ok"
    until(lambda: '"status":499' in gateway.log and '"error":"ClientLeft"' in gateway.log)
    assert "Traceback" not in gateway.log
