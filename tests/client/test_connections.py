"""The lifetime and reuse of connections, and which requests may be sent again.

Ids such as N01 are those of a catalogue of attacks and faults.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from werkzeug.test import Client

from tests.support.ports import refused_port
from wsgigate.client.adapter import Adapter, Sessions, Timeout
from wsgigate.client.http11 import Fields
from wsgigate.testing.backend import Backend, Received, ScriptedAnswer, cut, reply
from wsgigate.testing.fakes import FakeClock

Forward = Callable[..., Client]


@pytest.fixture
def adapter() -> Iterator[Adapter]:
    with requests.Session() as session:
        made = Adapter()
        session.mount("http://", made)
        yield made


def request_to(url: str, method: str = "GET", body: object = None) -> Any:
    request: Any = requests.PreparedRequest()
    request.method = method
    request.url = url + "/"
    request.body = body
    request.headers = Fields({"Host": "a.test"})
    request.headers.target = "/"
    return request


def ask(
    adapter: Adapter, url: str, method: str = "GET", body: object = None, **options: Any
) -> requests.Response:
    request = request_to(url, method, body)
    options.setdefault("timeout", Timeout(25, 25, 25))
    return adapter.send(request, **options)


def races(number: int) -> list[ScriptedAnswer]:
    """Return answers of a backend that closes the connection of its second request, unanswered."""
    return [reply(b"first"), *[cut(b"")] * number, reply(b"again")]


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_a_connection_that_the_instance_has_closed_is_not_reused(
    method: str, backend: Backend, forward: Forward
) -> None:
    """N01: whatever the method, as nothing was sent on it."""
    backend.answers = [cut(reply(b"first")), reply(b"second")]
    client = forward(backend.url)
    assert client.get("/").data == b"first"
    backend.wait_until_closed()
    assert client.open("/", method=method, data=b"x").data == b"second"
    assert len(backend.requests) == 2


@pytest.mark.parametrize(
    ("method", "body"), [("GET", b""), ("HEAD", b""), ("PUT", b"all"), ("DELETE", b"")]
)
def test_an_idempotent_request_is_resent_once(
    method: str, body: bytes, backend: Backend, own: Forward
) -> None:
    """N02, N04: the connection was closed when the request was on its way."""
    backend.answers = races(1)
    client = own(backend.url)
    client.get("/")
    answer = client.open("/", method=method, data=body or None)
    assert answer.status_code == 200
    assert [request.method for request in backend.requests] == ["GET", method, method]
    assert backend.requests[2].body == body
    assert backend.connections == 2


def test_a_request_is_resent_only_once(backend: Backend, own: Forward) -> None:
    backend.answers = races(2)
    client = own(backend.url)
    client.get("/")
    assert client.get("/").status_code == 502
    assert len(backend.requests) == 3


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_request_that_is_not_idempotent_is_never_resent(
    method: str, backend: Backend, forward: Forward
) -> None:
    """N03"""
    backend.answers = races(1)
    client = forward(backend.url)
    client.get("/")
    assert client.open("/", method=method, data=b"x").status_code == 502
    assert len(backend.requests) == 2


def test_a_request_whose_body_was_read_is_not_resent(backend: Backend, own: Forward) -> None:
    """N04, N09: more of it was read than is still there."""
    backend.answers = races(1)
    client = own(backend.url)
    client.get("/")
    assert client.put("/", data=b"x" * 200_000).status_code == 502
    assert len(backend.requests) == 2


def test_a_request_is_not_resent_after_part_of_a_response(backend: Backend, own: Forward) -> None:
    """N08"""
    backend.answers = [reply(b"first"), cut(b"HTTP/1.1 200 OK\r\nX"), reply(b"again")]
    client = own(backend.url)
    client.get("/")
    assert client.get("/").status_code == 502
    assert len(backend.requests) == 2


def test_a_request_over_a_new_connection_is_not_resent(backend: Backend, forward: Forward) -> None:
    """N15: no attempts but those that are asked for."""
    backend.answers = [cut(b""), reply(b"again")]
    assert forward(backend.url).get("/").status_code == 502
    assert len(backend.requests) == 1


def test_the_connection_used_last_is_reused_first(backend: Backend, adapter: Adapter) -> None:
    backend.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok", reply(b"ok")]
    first = ask(adapter, backend.url)  # unfinished, so that the second needs another connection
    backend.answers = [reply(b"ok")]
    ask(adapter, backend.url).close()
    first.close()
    ask(adapter, backend.url).close()
    assert [request.connection for request in backend.requests] == [1, 2, 2]


@pytest.mark.parametrize("seconds", [3.9, 4.1, 61.0])
def test_an_idle_connection_is_reused_until_its_timeout(seconds: float, backend: Backend) -> None:
    clock = FakeClock()
    adapter = Adapter(clock=clock)
    for _ in range(2):
        assert ask(adapter, backend.url).content == b"ok"
        clock.advance(seconds)
    assert backend.connections == (1 if seconds < 4 else 2)
    adapter.close()


def test_a_busy_connection_is_not_reused_after_max_age(backend: Backend) -> None:
    """N23: so that a name is looked up again."""
    clock = FakeClock()
    adapter = Adapter(clock=clock)
    for _ in range(21):
        ask(adapter, backend.url)
        clock.advance(3)
    assert backend.connections == 2
    adapter.close()


def test_idle_connections_of_other_instances_are_closed_by_later_requests(backend: Backend) -> None:
    clock = FakeClock()
    adapter = Adapter(clock=clock)
    ask(adapter, backend.url)
    clock.advance(10)
    with Backend() as other:
        ask(adapter, other.url)
        backend.wait_until_closed()
        assert adapter.pools()[backend.url].open_connections == 0
        adapter.close()


def test_the_number_of_idle_connections_is_limited(backend: Backend) -> None:
    adapter = Adapter(max_idle=1)
    backend.answers = [reply(b"long")[:-1]]
    answers = [ask(adapter, backend.url) for _ in range(2)]
    assert adapter.pools()[backend.url].open_connections == 2
    for answer in answers:
        answer.close()  # not read to its end, so closed
    assert adapter.pools()[backend.url].open_connections == 0
    backend.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"]
    answers = [ask(adapter, backend.url) for _ in range(2)]
    pool = adapter.pools()[backend.url]
    assert (pool.open_connections, pool.idle_connections) == (2, 0)
    for answer in answers:
        answer.close()
    adapter.close()


def stalled(connection: socket.socket, _request: Received) -> bool:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nbegun")
    return connection.recv(1) != b""


def test_the_number_of_open_connections_is_limited(backend: Backend, own: Forward) -> None:
    """N16: a bounded wait, then 503."""
    adapter = Adapter(max_open=1)
    backend.answers = [stalled, reply(b"ok")]
    client = own(backend.url, adapter=adapter, connect_timeout=0.5)
    held = ask(adapter, backend.url)
    answer = client.get("/")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.json is not None
    assert answer.json["error"] == "Too many connections"
    held.close()
    assert own(backend.url, adapter=adapter).get("/").data == b"ok"


def test_a_waiting_request_gets_the_connection_that_becomes_free(backend: Backend) -> None:
    adapter = Adapter(max_open=1)
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    said = socket.socketpair()

    def slowly(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(half)
        said[1].recv(1)
        connection.sendall(b"ok")
        return True

    backend.answers = [slowly, reply(b"ok")]
    held = ask(adapter, backend.url)
    got: list[bytes] = []
    waiting = threading.Thread(target=lambda: got.append(ask(adapter, backend.url).content))
    waiting.start()
    said[0].sendall(b".")
    assert held.content == b"ok"
    waiting.join(30)
    assert got == [b"ok"]
    assert backend.connections == 1
    adapter.close()
    for end in said:
        end.close()


def test_threads_that_share_connections_get_their_own_responses(backend: Backend) -> None:
    """R14"""

    def echo(connection: socket.socket, request: Received) -> None:
        connection.sendall(reply(request.body))

    backend.answers = [echo]
    adapter = Adapter(max_open=3)
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(20):
            body = f"{number}-{turn}".encode()
            try:
                if ask(adapter, backend.url, "POST", body).content != body:
                    wrong.append(body)
            except requests.RequestException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert backend.connections <= 3
    assert adapter.pools()[backend.url].open_connections <= 3
    adapter.close()


def test_a_dropped_response_frees_its_slot(backend: Backend) -> None:
    """N20"""
    adapter = Adapter(max_open=1)
    backend.answers = [stalled, reply(b"ok")]
    ask(adapter, backend.url)
    backend.wait_until_closed()
    assert ask(adapter, backend.url).content == b"ok"
    adapter.close()


def test_each_of_many_instances_keeps_a_connection() -> None:
    """N17"""
    adapter = Adapter()
    backends = [Backend() for _ in range(15)]
    for each in backends:
        each.__enter__()
    for _ in range(3):
        for each in backends:
            assert ask(adapter, each.url).content == b"ok"
    assert [each.connections for each in backends] == [1] * 15
    adapter.close()
    for each in backends:
        each.wait_until_closed()
        each.__exit__(None, None, None)


def test_a_forked_process_opens_its_own_connections(backend: Backend, adapter: Adapter) -> None:
    """A connection in two processes gives the answers of one to the other."""
    assert ask(adapter, backend.url).content == b"ok"
    child = os.fork()
    if not child:
        try:
            right = ask(adapter, backend.url).content == b"ok"
            os._exit(0 if right and len(adapter.pools()) == 1 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ask(adapter, backend.url).content == b"ok"
    assert [request.connection for request in backend.requests] == [1, 2, 1]


def test_a_forked_process_closes_its_copies_of_the_parents_connections(backend: Backend) -> None:
    """What the parent closed, or the time of keeping ended, was open for as long as a child was."""
    sessions = Sessions()
    adapter: Any = sessions.adapter(backend.url)
    assert ask(adapter, backend.url).content == b"ok"
    go, told = os.pipe()
    child = os.fork()
    if not child:
        os.close(told)
        os.read(go, 1)  # serves nothing yet
        os._exit(0)
    sessions.close()
    backend.wait_until_closed()
    os.close(told)
    os.close(go)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_closed_adapter_keeps_no_connection(backend: Backend) -> None:
    adapter = Adapter()
    held = ask(adapter, backend.url)
    assert held.content == b"ok"
    pool = adapter.pools()[backend.url]
    adapter.close()
    assert pool.open_connections == 0
    backend.wait_until_closed()


def test_a_garbage_collected_adapter_leaves_no_connection_open(backend: Backend) -> None:
    adapter = Adapter()
    assert ask(adapter, backend.url).content == b"ok"
    del adapter
    gc.collect()
    backend.wait_until_closed()


def test_a_client_slow_to_begin_its_body_occupies_no_connection(backend: Backend) -> None:
    clock = FakeClock()

    class Slow:
        length = 3

        def read(self, _size: int) -> bytes:
            clock.advance(100)
            return b"abc"

    adapter = Adapter(clock=clock)
    assert ask(adapter, backend.url, "POST", Slow()).content == b"ok"
    assert backend.requests[0].body == b"abc"
    adapter.close()


def test_every_address_of_a_host_is_tried(
    backend: Backend, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    with refused_port() as dead:
        addresses = [(*kind, ("127.0.0.1", port)) for port in (dead, backend.port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        assert ask(adapter, "http://two.test").content == b"ok"


@pytest.mark.parametrize("setting", ["max_idle", "max_open", "idle_timeout", "max_age"])
def test_an_invalid_limit_is_an_error_that_names_it(setting: str) -> None:
    settings: dict[str, Any] = {setting: -1}
    with pytest.raises(ValueError, match=setting):
        Adapter(**settings)


def test_a_removed_instance_has_no_open_connection(backend: Backend) -> None:
    backend.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlo", reply(b"ok")]
    adapter = Adapter()
    with Backend() as other:
        ask(adapter, other.url)
        begun = ask(adapter, backend.url, stream=True)
        ask(adapter, backend.url).close()
        idle, pool = adapter.pools()[other.url], adapter.pools()[backend.url]
        assert (pool.open_connections, pool.idle_connections) == (2, 1)
        adapter.forget(backend.url)
        assert (pool.open_connections, pool.idle_connections) == (1, 0)
        assert list(adapter.pools()) == [other.url]
        assert idle.idle_connections == 1
        begun.close()
        assert pool.open_connections == 0
        adapter.close()


def test_a_request_in_flight_to_a_removed_instance_finishes(backend: Backend) -> None:
    released = threading.Event()

    def slowly(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nlong")
        released.wait(30)
        connection.sendall(b" one")
        return True

    backend.answers = [slowly]
    sessions = Sessions()
    response = sessions.adapter(backend.url).send(request_to(backend.url), stream=True)
    sessions.forget(backend.url)
    released.set()
    assert response.content == b"long one"
    adapter = sessions.current().get_adapter(backend.url)
    assert isinstance(adapter, Adapter)
    assert adapter.pools() == {}
    backend.wait_until_closed()
    sessions.close()


def test_an_adapter_that_cannot_forget_an_instance_is_dropped_for_it(backend: Backend) -> None:
    sessions = Sessions(requests.Session)
    before = sessions.adapter(backend.url)
    sessions.current().mount("http://", HTTPAdapter())
    sessions.forget("http://never.seen")
    assert sessions.adapter(backend.url) is before
    sessions.forget(backend.url)
    assert sessions.adapter(backend.url) is not before
    sessions.close()
