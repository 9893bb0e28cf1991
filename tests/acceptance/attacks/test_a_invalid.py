"""A26: invalid requests by class, each of which some server has taken for a valid one.

Under GateWorker nothing of them may reach a backend, and of one whose fault is in its body never
all. waitress and werkzeug's server let some pass, in a reading of their own; then what arrives is
well-formed, framed in one way.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wsgigate.testing.backend import Backend, Received

HOST = b"Host: a.test\r\n"
HIDDEN = b"GET /pub/hidden HTTP/1.1\r\nHost: a.test\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
CONTROLS = [bytes([code]) for code in (*range(9), *range(11, 32), 127) if code != 13]
NOT_ASCII = ["é".encode(), "é".encode("latin-1"), b"\xff", "ﬀ".encode(), "²".encode()]


def line(text: bytes) -> bytes:
    """Return a request of that request line."""
    return text + b"\r\n" + HOST + b"\r\n"


def head(*fields: bytes) -> bytes:
    """Return a request without a body, of these lines besides Host."""
    return line(b"GET /pub HTTP/1.1")[:-2] + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def post(*fields: bytes, body: bytes = HIDDEN, version: bytes = b"1.1") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST /pub HTTP/" + version + b"\r\n" + HOST + lines + b"\r\n" + body


def chunks(body: bytes) -> bytes:
    return post(CHUNKED, body=body)


LENGTHS = (
    b"",
    b" ",
    b"-1",
    b"+5",
    b"5,5",
    b"5, 6",
    b"5 5",
    b"0x5",
    b"5_0",
    b"5.0",
    b"1e1",
    b"five",
)
CODINGS = (
    *(b"", b"chunke", b"xchunked", b"chunkedx", b'"chunked"', b"'chunked'", b"chunked;q=1"),
    *(
        b"chunked, chunked",
        b"chunked, identity",
        b"chunked, gzip",
        b"gzip",
        b"deflate",
        b"identity",
    ),
    *(
        b",chunked",
        b"chunked,",
        b"gzip, chunked",
        b"identity, chunked",
        b"\x0bchunked",
        b"chun ked",
    ),
)

IN_HEAD: dict[str, list[bytes]] = {
    "request line of the wrong parts": [
        *(line(text) for text in (b"GET", b"GET /pub", b"/pub HTTP/1.1", b"GET  HTTP/1.1")),
        *(line(b"GET /pub HTTP/1.1" + end) for end in (b" x", b" HTTP/1.1", b"\tx")),
        *(
            line(text)
            for text in (b"GET  /pub HTTP/1.1", b"GET /pub  HTTP/1.1", b" GET /pub HTTP/1.1")
        ),
        *(
            line(text)
            for text in (b"GET\t/pub HTTP/1.1", b"GET\x0b/pub HTTP/1.1", b"GET /a b HTTP/1.1")
        ),
        b"\r\n\r\n\r\n" + head(),
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + head(),
        b"\r\n\r\nPROXY UNKNOWN\r\n" + head(),
    ],
    "method": [
        line(method + b" /pub HTTP/1.1")
        for method in (
            b"G",
            b"GE(T",
            b"G\xc3\x8bT",
            b"GET:",
            b"[GET]",
            b'"GET"',
            b"G\0ET",
            b"{}",
            b"@",
        )
    ],
    "version": [
        line(b"GET /pub " + version)
        for version in (
            *(
                b"HTTP/0.9",
                b"HTTP/1",
                b"HTTP/1.",
                b"HTTP/1.10",
                b"HTTP/01.1",
                b"HTTP/1.1.1",
                b"HTTP/2",
            ),
            *(
                b"HTTP/2.0",
                b"HTTP/3.0",
                b"HTTP/9.9",
                b"HTTP/-1.1",
                b"HTTP 1.1",
                b"HTTPS/1.1",
                b"http/1.1",
            ),
            *(
                b"HTTP/1.2",
                b"HTTP/1,1",
                b"HTTP/\xc2\xb9.1",
                b"HTTP/1.\xc2\xb9",
                b"HTTP/x.y",
                b"FTP/1.1",
            ),
        )
    ],
    "target": [
        *(line(b"GET " + target + b" HTTP/1.1") for target in (b"*", b"pub", b"../pub", b"@pub")),
        *(
            line(b"GET " + target + b" HTTP/1.1")
            for target in (b"a.test:80", b"a.test", b"?x", b";/pub")
        ),
        *(
            line(b"GET " + target + b" HTTP/1.1")
            for target in (b"file:///pub", b"http://b.test/pub")
        ),
        *(line(b"GET /pub" + byte + b" HTTP/1.1") for byte in (b"\0", b"\x7f", b"#x", b"\\..\\x")),
        *(line(b"CONNECT " + target + b" HTTP/1.1") for target in (b"/pub", b"a.test:80", b"*")),
    ],
    "ends of lines": [
        head().replace(b"\r\n", b"\n"),
        head().replace(b"\r\n", b"\r"),
        head(b"X: a\nY: b"),
        head(b"X: a\rY: b"),
        head(b"X: a\r\r"),
        head(b"X: a").replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
        head(b"X: a").replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\r\n"),
        head(b"X: a\n\n") + HIDDEN,
        head(b"X: a\n\r\n") + HIDDEN,
    ],
    "name of a field": [
        *(
            head(name + b": v")
            for name in (b"", b" X", b"\tX", b"X ", b"X\t", b"X Y", b"X\x0b", b"(X)")
        ),
        *(
            head(name + b": v")
            for name in (b'"X"', b"X,Y", b"X;", b"X@", b"X[", b"X/Y", b"{X}", b"X=")
        ),
        *(head(b"X" + byte + b": v") for byte in CONTROLS + NOT_ASCII),
        head(b"X"),
        head(b"X v"),
        head(b":"),
        head(b"X_User_Id: admin"),
        head(b"Content_Length: 5"),
        head(b"Transfer_Encoding: chunked"),
    ],
    "value of a field": [head(b"X: a" + byte + b"b") for byte in CONTROLS if byte != b"\t"],
    "folded fields": [
        head(b"X: a\r\n b"),
        head(b"X: a\r\n\tb"),
        head(b"X:\r\n a"),
        b"GET /pub HTTP/1.1\r\n " + HOST + b"\r\n",
        post(b"Transfer-Encoding:\r\n chunked", b"Content-Length: 5"),
        post(b"Content-Length:\r\n 5"),
    ],
    "host": [
        line(b"GET /pub HTTP/1.1").replace(HOST, b""),
        head(b"Host: b.test"),
        head(b"Host: a.test"),
        *(
            line(b"GET /pub HTTP/1.1").replace(b"a.test", host)
            for host in (
                b"",
                b"a@b",
                b"a/b",
                b"a b",
                b"a,b",
                b"a:x",
                b"a:99999",
                b"[::1",
                b"a?b",
                b"\xc3\xa9",
            )
        ),
    ],
    "length": [
        *(post(b"Content-Length: " + value) for value in LENGTHS),
        *(post(b"Content-Length: " + digit) for digit in NOT_ASCII),
        post(b"Content-Length: 5", b"Content-Length: 5"),
        post(b"Content-Length: 5", b"Content-Length: 6"),
        post(b"Content-Length: 0", b"Content-Length: 43"),
        post(b"Content-Length: " + b"9" * 30),
        post(b"Content-Length : 5"),
        post(b" Content-Length: 5"),
    ],
    "coding": [
        # One that ends in chunked is framed by that: what follows it is a request by itself.
        *(
            post(
                b"Transfer-Encoding: " + value,
                body=b"0\r\n\r\n" + (b"" if value.endswith(b", chunked") else HIDDEN),
            )
            for value in CODINGS
        ),
        post(CHUNKED, CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
        post(CHUNKED, b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + HIDDEN),
        post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + HIDDEN),
        post(CHUNKED, body=b"0\r\n\r\n" + HIDDEN, version=b"1.0"),
    ],
    "both framings": [
        post(*fields, body=b"0\r\n\r\n" + HIDDEN, version=version)
        for version in (b"1.1", b"1.0")
        for length in (b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: x")
        for fields in ((length, CHUNKED), (CHUNKED, length))
    ],
    "limits": [
        line(b"GET /pub/" + b"x" * 8300 + b" HTTP/1.1"),
        head(b"X: " + b"y" * 8300),
        head(b"X" * 8300 + b": y"),
        head(*(b"X-%d: y" % number for number in range(101))),
    ],
    "expectation": [post(b"Expect: " + what, b"Content-Length: 3") for what in (b"200-ok", b"100")],
}

IN_BODY: dict[str, list[bytes]] = {
    "size of a chunk": [
        chunks(size + b"\r\nhello\r\n0\r\n\r\n")
        for size in (
            *(
                b"",
                b"x",
                b"zz",
                b"-5",
                b"+5",
                b"0x5",
                b"5_0",
                b"5.0",
                b" 5",
                b"\t5",
                b"5 5",
                b"5,5",
            ),
            *(b"\xc2\xb5", b"5\x0b", b"5\0", b"f" * 17, b"5\n", b"5\r", b"#", b"5g"),
        )
    ],
    "extension of a chunk": [
        chunks(b"5" + extension + b"\r\nhello\r\n0\r\n\r\n")
        for extension in (b";a\rb", b";a\nb", b";\r\r", b";a=\nGET /pub/hidden HTTP/1.1", b" ;\n")
    ],
    "end of a chunk": [
        chunks(b"5\r\nhello" + end + b"0\r\n\r\n")
        for end in (b"", b"\r", b"X\r\n", b"XX", b" \r\n")
    ],
    "end of the body": [
        chunks(b"5\r\nhello\r\n" + end)
        for end in (
            b"",
            b"0",
            b"0\r\n",
            b"0\r\nX",
            b"0\r\n\rX",
            b"0\r\nX: y\r\n",
            b"-0\r\n\r\n",
            b"5\r\nhe",
        )
    ],
    "trailers": [
        chunks(b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n\r\n")
        for trailer in (
            *(b"Content-Length: 5", CHUNKED, b"Host: b.test", b"Authorization: x", b"X y: z", b"X"),
            *(b": v", b"X: a\0b", b"X\xc3\xa9: v", b" X: y", b"X: a\r\n b"),
        )
    ],
    "body cut": [post(b"Content-Length: 100"), post(b"Content-Length: 44", body=HIDDEN)],
}

CLASSES = {**IN_HEAD, **IN_BODY}


def send(port: int, data: bytes) -> bytes:
    """Send *data* and nothing more; return all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        answer = b""
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while block := sock.recv(65536):
                answer += block
        except ConnectionError:
            pass
    return answer


@pytest.mark.parametrize("kind", CLASSES)
def test_no_invalid_request_reaches_a_backend(kind: str, gate: Any) -> None:
    """A26"""
    for data in CLASSES[kind]:
        seen = len(gate.backend.requests)
        answer = send(gate.port, data)
        arrived = gate.backend.requests[seen:]
        if kind in IN_HEAD:
            assert arrived == [], data
        assert not any(request.complete for request in arrived), data
        assert len(arrived) <= 1, data
        statuses = re.findall(rb"HTTP/1\.\d (\d)\d\d ", answer)
        assert statuses in ([b"4"], [b"5"]) or (not answer and b"\n" not in data), (data, answer)


@pytest.fixture(scope="module")
def behind() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


SOURCE = """
from wsgigate import Dispatcher, Forwarder, Guard, Instance, Pool, Route

app = Guard(Dispatcher([Route("/pub", Forwarder(Pool("svc", [Instance("{url}")])))]))
"""
SERVERS = {
    "waitress": ("-m", "waitress", "--listen=127.0.0.1:{port}", "served:app"),
    "werkzeug": (
        "-c",
        "from werkzeug.serving import run_simple; from served import app; "
        "run_simple('127.0.0.1', {port}, app, threaded=True)",
    ),
}


@pytest.fixture(scope="module", params=SERVERS)
def other(request: pytest.FixtureRequest, run_for_all: Callable[..., Any], behind: Backend) -> Any:
    return run_for_all(SOURCE.format(url=behind.url), *SERVERS[request.param])


@pytest.mark.parametrize("kind", CLASSES)
def test_what_other_servers_let_pass_arrives_well_formed(
    kind: str, other: Any, behind: Backend
) -> None:
    """A26"""
    for data in CLASSES[kind]:
        seen = len(behind.requests)
        answer = send(other.port, data)
        arrived = behind.requests[seen:]
        for request in arrived:
            well_formed(request)
        assert arrived or not re.match(rb"HTTP/\S+ 2", answer), (data, answer)


FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e\x80-\xff]*")


def well_formed(request: Received) -> None:
    first, *fields = request.head[:-4].split(b"\r\n")
    assert re.fullmatch(rb"[A-Z]+ /[\x21-\x7e]* HTTP/1\.1", first), request.head
    assert all(map(FIELD.fullmatch, fields)), request.head
    assert len(request.values("Content-Length") + request.values("Transfer-Encoding")) <= 1
    assert request.value("Host")
