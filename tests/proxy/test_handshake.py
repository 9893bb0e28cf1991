"""The opening handshake of WebSockets, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.http.problem import Refusal
from wsgigate.http.wsgi import Headers
from wsgigate.proxy.websocket import BadHandshake, check_request, check_response, is_upgrade
from wsgigate.testing.fakes import new_environ

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3, and the answer to it below
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

ASKING = {
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "keep-alive, Upgrade",
    "HTTP_SEC_WEBSOCKET_KEY": KEY,
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}


def asking(**changes: Any) -> dict[str, Any]:
    return {**new_environ(), **ASKING, **changes}


@pytest.mark.parametrize(
    ("changes", "asks"),
    [
        ({}, True),
        ({"HTTP_UPGRADE": "WebSocket"}, True),
        ({"HTTP_UPGRADE": "h2c"}, False),
        ({"HTTP_UPGRADE": ""}, False),
        ({"HTTP_CONNECTION": "keep-alive"}, False),
        ({"HTTP_CONNECTION": ",".join(f"a{n}" for n in range(200))}, False),
    ],
)
def test_a_websocket_request_has_upgrade_and_connection(
    changes: dict[str, Any], asks: bool
) -> None:
    assert is_upgrade(asking(**changes)) is asks


def test_a_valid_handshake_is_accepted_with_its_key() -> None:
    assert check_request(asking()) == KEY


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"REQUEST_METHOD": "POST"}, 400),
        ({"SERVER_PROTOCOL": "HTTP/1.0"}, 400),
        ({"HTTP_UPGRADE": "websocket, h2c"}, 400),
        ({"CONTENT_LENGTH": "3"}, 400),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, 400),
        ({"HTTP_SEC_WEBSOCKET_VERSION": "8"}, 426),
        ({"HTTP_SEC_WEBSOCKET_KEY": ""}, 400),
        ({"HTTP_SEC_WEBSOCKET_KEY": "c2hvcnQ="}, 400),
        ({"HTTP_SEC_WEBSOCKET_KEY": f"{KEY},{KEY}"}, 400),
        ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZ\xff=="}, 400),
    ],
)
def test_a_malformed_handshake_is_rejected(changes: dict[str, Any], status: int) -> None:
    with pytest.raises(Refusal) as refused:
        check_request(asking(**changes))
    assert refused.value.problem.status == status


def answer(
    *fields: str,
    upgrade: str = "Upgrade: websocket",
    connection: str = "Connection: Upgrade",
    accept: str = f"Sec-WebSocket-Accept: {ACCEPT}",
) -> Headers:
    split = [field.partition(":") for field in (upgrade, connection, accept, *fields)]
    return [(name, value) for name, _, value in split]


def test_the_client_gets_end_to_end_fields_and_the_upgrade() -> None:
    fields = answer(
        "Sec-WebSocket-Protocol: chat",
        "Set-Cookie: a=1",
        "Set-Cookie: b=2",
        "Content-Length: 5",
        "X-Hop: 1",
        "Proxy-Authenticate: Basic",
        "Proxy-Connection: keep-alive",
        connection="Connection: X-Hop, upgrade, Sec-WebSocket-Accept",
    )
    assert check_response(fields, KEY, "other, chat", "") == [
        ("Sec-WebSocket-Accept", ACCEPT),
        ("Sec-WebSocket-Protocol", "chat"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        answer(upgrade="Upgrade: h2c"),
        answer("Upgrade: websocket"),
        answer(connection="Connection: close"),
        answer(connection=f"Connection: upgrade{', a' * 100}"),
        answer(accept="Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        answer(f"Sec-WebSocket-Accept: {ACCEPT}"),
        answer("Sec-WebSocket-Protocol: secret"),
        answer("Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat"),
        answer("Sec-WebSocket-Extensions: permessage-deflate"),
        answer(" folded: 1"),
        answer("Bad Name: 1"),
        answer("X: a\nSet-Cookie: b=1"),
        answer("X: a\rb"),
    ],
)
def test_an_invalid_handshake_response_is_rejected(fields: Headers) -> None:
    with pytest.raises(BadHandshake):
        check_response(fields, KEY, "chat", "")
