"""WebSockets through a gateway, with a real client and a real server of theirs behind it."""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import Server, ServerConnection
from websockets.sync.server import serve as serve_websockets
from websockets.typing import Subprotocol

from tests.support.certificates import make_certificate
from tests.support.waiting import until

Serve = Callable[..., Any]

GATEWAY = """
[gateway]
name = "test"
threads = 4
{gateway}
[services.echo]
instances = ["{scheme}://127.0.0.1:{port}"]
{service}
[[routes]]
path = "/ws"
service = "echo"
strip_prefix = true
websocket = {websocket}
{route}
[[routes]]
path = "/plain"
service = "echo"
{more}
[[middleware]]
use = "logger"
"""


class Echo:
    """A server that sends back what it gets, and remembers the handshakes."""

    def __init__(self, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        self.scheme = "https" if tls else "http"
        self.requests: list[Any] = []
        self.server: Server = serve_websockets(
            self._serve,
            "127.0.0.1",
            0,
            select_subprotocol=lambda _, asked: Subprotocol("chat") if "chat" in asked else None,
            max_size=None,
            ping_interval=None,
            ssl=tls,
            **options,
        )
        self.port = self.server.socket.getsockname()[1]

    def _serve(self, connection: ServerConnection) -> None:
        self.requests.append(connection.request)
        try:
            for message in connection:
                connection.send(message)
        except ConnectionClosed:
            pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def echo() -> Iterator[Echo]:
    yield from echoing(Echo())


@pytest.fixture
def tls_echo(certificate: Path) -> Iterator[Echo]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from echoing(Echo(context))


def echoing(made: Echo) -> Iterator[Echo]:
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()


def gateway(echo: Echo, **parts: str) -> str:
    empty = dict.fromkeys(("gateway", "service", "route", "more"), "")
    known = {"websocket": "true", "scheme": echo.scheme, "port": echo.port}
    return GATEWAY.format(**{**empty, **known, **parts})


def url(server: Any, path: str = "/ws/room?x=1", tls: object = None) -> str:
    scheme = "ws" if tls is None else "wss"
    return f"{scheme}://127.0.0.1:{server.port}{path}"


def opened(server: Any, path: str = "/ws/room?x=1", **options: Any) -> Any:
    address = url(server, path, options.get("ssl"))
    return connect(address, proxy=None, ping_interval=None, max_size=None, **options)


def converse(server: Any, **options: Any) -> None:
    large = os.urandom(1 << 21)  # nothing that could be compressed
    with opened(server, subprotocols=["other", "chat"], **options) as client:
        assert client.subprotocol == "chat"
        client.send("hello")
        assert client.recv(timeout=20) == "hello"
        for _ in range(3):
            client.send(large)
        for _ in range(3):
            assert client.recv(timeout=20) == large


def records(server: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines() if line[:1] == "{"]


def test_a_refusal_of_the_service_reaches_the_client_as_it_is(serve: Serve) -> None:
    def refuse(connection: ServerConnection, request: Any) -> Any:
        response = connection.respond(401, "no token\n")
        response.headers["WWW-Authenticate"] = 'Bearer realm="rooms"'
        response.headers["Set-Cookie"] = "seen=1"
        return response

    for made in echoing(Echo(process_request=refuse)):
        server = serve(gateway(made), workers=1)
        for _ in range(10):  # more than there may be of those that are open
            with pytest.raises(InvalidStatus) as refused:
                opened(server)
            response = refused.value.response
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="rooms"'
            assert response.headers["Set-Cookie"] == "seen=1"
            assert response.body == b"no token\n"


def test_messages_pass_both_ways_and_are_logged_at_the_end(serve: Serve, echo: Echo) -> None:
    server = serve(gateway(echo), workers=1)
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(converse, server) for _ in range(4)]:
            done.result()
    asked = echo.requests[0]
    assert asked.path == "/room?x=1"
    assert asked.headers["X-Forwarded-For"] == "127.0.0.1"
    assert asked.headers["Via"].startswith("1.1 ")
    assert asked.headers["Upgrade"] == "websocket"
    until(lambda: len(records(server)) == 4)
    for record in records(server):
        assert record["status"] == 101
        assert record["bytes"] > 3 << 21
        assert not record.get("aborted")
    assert requests.get(server.url + "/none", timeout=20).status_code == 404
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log


def test_gunicorns_own_worker_serves_them_too(serve_app: Serve, echo: Echo, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(gateway(echo))
    source = f"import wsgigate\napp = wsgigate.load({str(tmp_path / 'gateway.toml')!r})\n"
    server = serve_app(source, "-k", "gthread", "--threads", "4")
    converse(server)
    until(lambda: records(server))
    assert "Traceback" not in server.log


def test_they_pass_through_tls_on_both_sides(
    serve: Serve, tls_echo: Echo, certificate: Path
) -> None:
    """Of both TLS holds back what no poller sees: messages larger than its records."""
    own = f'tls = {{ cert = "{certificate}" }}\n'
    service = f'tls = {{ ca = "{certificate}" }}'
    server = serve(gateway(tls_echo, gateway=own, service=service), workers=1)
    tls = ssl.create_default_context(cafile=str(certificate))
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(converse, server, ssl=tls) for _ in range(4)]:
            done.result()
    until(lambda: len(records(server)) == 4)
    assert {record["status"] for record in records(server)} == {101}
    assert not any(record.get("aborted") for record in records(server))
    assert "Traceback" not in server.log


def test_an_instance_with_an_untrusted_certificate_gets_none(serve: Serve, tls_echo: Echo) -> None:
    server = serve(gateway(tls_echo), workers=1)
    assert refusal(server) == 502
    assert tls_echo.requests == []


def test_gunicorns_gevent_worker_serves_many_at_a_time(
    serve_app: Serve, echo: Echo, tmp_path: Path
) -> None:
    """More than there are threads anywhere, and a plain request beside them."""
    text = gateway(echo, gateway="websockets = 50")
    (tmp_path / "gateway.toml").write_text(text)
    source = f"import wsgigate\napp = wsgigate.load({str(tmp_path / 'gateway.toml')!r})\n"
    server = serve_app(source, "-k", "gevent", "--workers", "1")
    with ExitStack() as stack:
        clients = [stack.enter_context(opened(server)) for _ in range(50)]
        assert refusal(server) == 503
        assert requests.get(server.url + "/none", timeout=20).status_code == 404
        for number, client in enumerate(clients):
            client.send(f"hello {number}")
        for number, client in enumerate(clients):
            assert client.recv(timeout=20) == f"hello {number}"
    until(lambda: len([record for record in records(server) if record["status"] == 101]) == 50)
    converse(server)
    assert "Traceback" not in server.log


WERKZEUG = """
import sys
import wsgigate
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), wsgigate.load(sys.argv[2]), threaded=True)
"""


def test_so_does_the_server_of_werkzeug(serve_command: Serve, echo: Echo, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(gateway(echo))
    server = serve_command(
        lambda port: [sys.executable, "-c", WERKZEUG, str(port), str(tmp_path / "gateway.toml")]
    )
    converse(server)
    until(lambda: records(server))
    assert "Traceback" not in server.log


def refusal(server: Any, path: str = "/ws", **options: Any) -> int:
    with pytest.raises(InvalidStatus) as refused, opened(server, path, **options):
        pass
    return int(refused.value.response.status_code)


def test_a_route_that_does_not_say_so_has_none(serve: Serve, echo: Echo) -> None:
    """C07."""
    server = serve(gateway(echo), workers=1)
    assert refusal(server, "/plain") >= 400
    assert echo.requests == []


def test_an_unauthorized_client_gets_none(serve: Serve, echo: Echo) -> None:
    secret = "0123456789" * 4
    route = (
        f'middleware = [{{ use = "authenticator", algorithms = ["HS256"], secret = "{secret}" }}]'
    )
    server = serve(gateway(echo, route=route), workers=1)
    assert refusal(server) == 401
    assert echo.requests == []


def test_they_take_no_thread_from_requests(serve: Serve, echo: Echo) -> None:
    """More than there are threads, for which the worker starts others as long as they last."""
    server = serve(gateway(echo), workers=1)
    [worker] = server.workers()
    for _ in range(2):
        with ExitStack() as stack:
            clients = [stack.enter_context(opened(server)) for _ in range(20)]
            for number, client in enumerate(clients):
                client.send(f"hello {number}")
                assert client.recv(timeout=20) == f"hello {number}"
            assert requests.get(server.url + "/none", timeout=20).status_code == 404
            assert threads_of(worker) > 20
        until(lambda: threads_of(worker) < 20)
    assert "Traceback" not in server.log


def threads_of(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/task"))


def test_they_hold_no_more_threads_than_they_may(serve: Serve, echo: Echo) -> None:
    server = serve(gateway(echo, gateway="websockets = 2"), workers=1)
    with ExitStack() as stack:
        clients = [stack.enter_context(opened(server)) for _ in range(2)]
        assert refusal(server) == 503
        assert requests.get(server.url + "/none", timeout=20).status_code == 404
        clients[0].close()

        def again() -> bool:
            try:
                with opened(server) as client:
                    client.send("again")
                    return client.recv(timeout=20) == "again"
            except InvalidStatus:
                return False

        until(again)


def test_a_silent_one_is_closed(serve: Serve, echo: Echo) -> None:
    server = serve(gateway(echo, websocket='{ idle_timeout = "1s" }'), workers=1)
    with opened(server) as client, pytest.raises(ConnectionClosed):
        client.recv(timeout=20)
    until(lambda: records(server))


def test_a_close_at_one_end_closes_the_other(serve: Serve, echo: Echo) -> None:
    server = serve(gateway(echo), workers=1)
    with opened(server) as client:
        client.socket.close()
    until(lambda: len(records(server)) == 1)
    with opened(server) as client:
        echo.server.shutdown()
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=20)
    until(lambda: len(records(server)) == 2)
    with pytest.raises(InvalidStatus) as refused, opened(server):
        pass
    assert refused.value.response.status_code == 503
    assert "Traceback" not in server.log


def test_a_stopping_gateway_closes_them_after_a_while(serve: Serve, echo: Echo) -> None:
    server = serve(gateway(echo), workers=1)
    with opened(server) as client:
        server.signal(signal.SIGTERM)
        client.send("still there")
        assert client.recv(timeout=20) == "still there"
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=20)
    assert server.process.wait(25) == 0
    assert records(server)[0]["status"] == 101
