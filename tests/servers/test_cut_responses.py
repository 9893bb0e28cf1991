"""A response that ends early never looks complete to a client that must wait for its end.

A response to HTTP/1.0 without a length ends with the connection: a cut one must reset it.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.gate import Gate, Make
from tests.support.certificates import make_certificate
from tests.support.sockets import read_to_end
from tests.support.waiting import until
from wsgigate import Forwarder, Instance, Pool
from wsgigate.servers.gunicorn_worker import GateWorker
from wsgigate.testing.backend import Backend, cut

GET = b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"
UPLOAD = b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + bytes(80_000)
LARGE = 64 << 20


class Impatient(GateWorker):
    idle_timeout = 0.2


def streams(chunks: Callable[[dict[str, Any]], Iterable[bytes]]) -> Any:
    """Return an app whose response has no length."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return chunks(environ)

    return app


def fails(environ: dict[str, Any]) -> Iterator[bytes]:
    yield b"begun"
    raise KeyError("secret")


def exits(environ: dict[str, Any]) -> Iterator[bytes]:
    yield b"begun"
    raise SystemExit


def echoes(environ: dict[str, Any]) -> Iterator[bytes]:
    yield b"begun"
    yield environ["wsgi.input"].read()


def serve(gate: Gate, data: bytes, client: socket.socket | None = None) -> socket.socket:
    """Send a request and serve it to its end."""
    client = client or gate.connect()
    client.sendall(data)
    gate.step()
    gate.loop()
    return client


def begin(gate: Gate, data: bytes) -> tuple[socket.socket, threading.Thread]:
    """Send a request and have a thread serve it, which waits for the client."""
    client = gate.connect()
    client.sendall(data)
    thread = threading.Thread(target=gate.step)
    thread.start()
    until(lambda: gate.worker.waits or not thread.is_alive())
    return client, thread


@pytest.mark.parametrize("app", [fails, exits], ids=["fails", "exits"])
def test_an_app_that_fails_midway_resets_the_connection(app: Any, make: Make) -> None:
    client = serve(make(streams(app)), GET)
    with pytest.raises(ConnectionResetError):
        read_to_end(client)


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n",
    ],
    ids=["ends", "is malformed"],
)
def test_a_backend_that_breaks_midway_resets_the_connection(sent: bytes, make: Make) -> None:
    with Backend(cut(sent)) as backend:
        client = serve(make(Forwarder(Pool("orders", [Instance(backend.url)]))), GET)
        with pytest.raises(ConnectionResetError):
            read_to_end(client)


@pytest.mark.parametrize(
    ("app", "request_sent"),
    [(lambda environ: [bytes(LARGE), b"end"], GET), (echoes, UPLOAD)],
    ids=["does not read", "does not send"],
)
@pytest.mark.parametrize("ended", ["cut", "stopped", "late"])
def test_a_slow_client_that_is_cut_sees_a_reset(
    ended: str, app: Any, request_sent: bytes, make: Make
) -> None:
    gate = make(streams(app), kind=Impatient if ended == "late" else GateWorker)
    client, thread = begin(gate, request_sent)
    if ended == "cut":  # as when other requests wait for the thread
        [connection] = gate.worker.waits
        connection.cut()
    elif ended == "stopped":  # as at the end of the graceful timeout
        gate.worker.end()
    thread.join(20)
    assert not thread.is_alive()
    gate.loop()
    with pytest.raises(ConnectionResetError):
        read_to_end(client)
    assert gate.worker.connections() == 0


def test_a_connection_that_ends_by_no_error_of_its_request_is_reset(make: Make) -> None:
    """As when its worker is killed: the system closes its sockets."""
    closed = threading.Event()

    def closes(environ: dict[str, Any]) -> Iterator[bytes]:
        yield b"begun"
        environ["gunicorn.socket"].close()
        closed.set()

    client = serve(make(streams(closes)), GET)
    assert closed.is_set()
    with pytest.raises(ConnectionResetError):
        read_to_end(client)


def test_over_tls_a_cut_response_ends_without_a_close_notify(make: Make, tmp_path: Path) -> None:
    file = str(make_certificate(tmp_path))
    gate = make(streams(fails), certfile=file, keyfile=file)
    plain = gate.connect()
    tls = ssl.create_default_context(cafile=file)
    caught: list[BaseException] = []

    def ask() -> None:
        with tls.wrap_socket(
            plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False
        ) as client:
            client.sendall(GET)
            try:
                read_to_end(client)
            except OSError as error:
                caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not gate.log.lines:
        gate.step()
    thread.join()
    assert isinstance(caught[0], (ConnectionResetError, ssl.SSLEOFError))


@pytest.mark.parametrize("size", [3, 200_000, 4 << 20])
def test_a_complete_response_ends_without_a_reset(size: int, make: Make) -> None:
    gate = make(streams(lambda environ: iter([b"begun", bytes(size)])))
    client = gate.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    [connection] = gate.worker.idle
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_to_end(client)))
    reader.start()
    serve(gate, GET, client)
    while reader.is_alive():
        gate.step()
        gate.loop()
    reader.join(20)
    assert got[0].partition(b"\r\n\r\n")[2] == b"begun" + bytes(size)


def test_a_list_of_one_chunk_has_a_length_over_http_1_0_too(make: Make) -> None:
    client = serve(make(streams(lambda environ: [b"all"])), GET)
    head, _, body = read_to_end(client).partition(b"\r\n\r\n")
    assert (body, b"\r\nContent-Length: 3" in head) == (b"all", True)


def test_a_file_that_is_shorter_than_the_length_of_its_response_cuts_it(
    make: Make, tmp_path: Path
) -> None:
    """The next response on the connection would be read as the rest of this one."""
    (tmp_path / "file").write_bytes(b"0123456789")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "100")])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"]((tmp_path / "file").open("rb"))
        return wrapped

    gate = make(app)
    client = serve(gate, GET.replace(b"1.0", b"1.1"))
    assert len(gate.worker.idle) == 0
    head, _, body = read_to_end(client).partition(b"\r\n\r\n")
    assert (b"\r\nContent-Length: 100" in head, body) == (True, b"0123456789")
