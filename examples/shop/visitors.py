"""The shop's own visitors: a few requests a second, so that the dashboard has something to show.

They come from loopback addresses of their own, and change these, so that they use up neither the
quota of the person at the keyboard nor theirs. What they do is what visitors do: they look at
products, search, mistype an address or a password, log in and order.
"""

from __future__ import annotations

import json
import secrets
from http.client import HTTPConnection, HTTPException
from itertools import count
from threading import Event, Thread
from typing import Any

__all__ = ["Visitors"]

EVERY = 0.25
"""Seconds between two requests."""

ADDRESSES = [f"127.0.0.{number}" for number in range(64, 164)]
"""Their addresses: 4 requests a second from 100 addresses are 36 in 15 minutes from each."""

PATHS = (
    "/api/products",
    "/api/products/7",
    "/api/products/search?q=coffee",
    "/api/products?category=kitchen",
    "/api/products/categories",
    "/api/products/2",
    "/api/products/99",  # 404: sold out
    "/api/products/search?q=lamp",
    "/api/prodcts",  # 404: mistyped
    "/api/products?category=office",
)


class Visitors:
    """Sends the requests in a thread until *stop* is set.

    :param port: The port of the gateway.
    """

    def __init__(self, port: int, stop: Event) -> None:
        self._port = port
        self._stop = stop
        self._who = {
            "name": "Visitor",
            "email": f"visitor-{secrets.token_hex(4)}@example.com",
            "password": secrets.token_urlsafe(16),
        }
        self._token = ""
        Thread(target=self._run, name="visitors", daemon=True).start()

    def _run(self) -> None:
        for number in count():
            if self._stop.wait(EVERY):
                return
            try:
                self._visit(number)
            except (OSError, HTTPException, ValueError, KeyError):
                self._stop.wait(1.0)  # the gateway is restarting, or the shop closes

    def _visit(self, number: int) -> None:
        step = number % 40
        if number == 0:
            self._send(number, "POST", "/auth/register", self._who)
        elif step == 11:
            login = self._send(number, "POST", "/auth/login", self._who)
            self._token = json.loads(login)["token"]
        elif step == 23:  # 401: a mistyped password
            self._send(number, "POST", "/auth/login", {**self._who, "password": "mistyped"})
        elif step in (15, 31) and self._token:
            order = {"items": [{"productId": 1 + number % 8, "quantity": 1}]}
            self._send(number, "POST", "/api/orders", order)
        elif step in (17, 33) and self._token:
            self._send(number, "GET", "/api/orders")
        elif step == 27:  # 401: without a token
            self._send(number, "GET", "/api/orders", token="")
        else:
            self._send(number, "GET", PATHS[number % len(PATHS)])

    def _send(
        self, number: int, method: str, path: str, body: Any = None, *, token: str | None = None
    ) -> bytes:
        token = self._token if token is None else token
        source = (ADDRESSES[number % len(ADDRESSES)], 0)
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5, source_address=source)
        headers = {"User-Agent": "shop-visitors"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            return connection.getresponse().read()
        finally:
            connection.close()
