"""The clients: they send requests at an even pace, whatever the responses, and record each one.

Like users, they do not wait for each other's requests: each request has a
time at which it is due, and is sent then by a client that has nothing to do. How long it took is
counted from when it was due, so a gateway that delays all clients cannot hide it. Nothing is ever
sent twice by a client.
"""

from __future__ import annotations

import http.client
import itertools
import time
from threading import Event, Thread
from typing import NamedTuple

__all__ = ["POST_EVERY", "Clients", "Request"]

POST_EVERY = 5
"""Every so manieth request is a POST, the others are GETs."""


class Request(NamedTuple):
    """A request as its client saw it.

    :ivar due: When it was to be sent, by the clock of :func:`time.monotonic`.
    :ivar took: Seconds from then until it had the whole answer, or none.
    :ivar status: The answer's status, 0 for none.
    :ivar instance: The instance that answered; empty if only the gateway did.
    :ivar error: Why there is no answer, in words.
    """

    id: str
    method: str
    due: float
    took: float
    status: int
    instance: str
    error: str = ""

    @property
    def end(self) -> float:
        return self.due + self.took

    @property
    def failed(self) -> bool:
        return not 200 <= self.status < 400


class Clients:
    """A number of clients, each with one connection that it keeps.

    :param port: Where the gateway listens.
    :param rate: Requests per second of all together.
    :param count: How many there are; more than requests can be under way.
    :param timeout: Seconds after which a client gives up.
    """

    def __init__(self, port: int, rate: float, *, count: int = 48, timeout: float = 5.0) -> None:
        self._port = port
        self._rate = rate
        self._timeout = timeout
        self._numbers = itertools.count(1)
        self._stop = Event()
        self._began = 0.0
        self._done: list[list[Request]] = [[] for _ in range(count)]
        self._threads = [Thread(target=self._run, args=[done]) for done in self._done]

    def start(self) -> None:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Request]:
        """End the load; return all requests, in the order in which they were due."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        return sorted(itertools.chain(*self._done), key=lambda request: request.due)

    def _run(self, done: list[Request]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout)
        while True:
            number = next(self._numbers)
            due = self._began + number / self._rate
            if self._stop.wait(max(0.0, due - time.monotonic())):
                connection.close()
                return
            done.append(ask(connection, number, due))


def ask(connection: http.client.HTTPConnection, number: int, due: float) -> Request:
    """Send one request, once, and return its outcome."""
    id = f"{number:07}"
    method = "GET" if number % POST_EVERY else "POST"
    status, instance, error = 0, "", ""
    try:
        if method == "GET":
            connection.request("GET", f"/items/{id}")
        else:
            connection.request("POST", "/items", body=id.encode())
        answer = connection.getresponse()
        answer.read()
        status, instance = answer.status, answer.headers.get("X-Instance", "")
    except (OSError, http.client.HTTPException) as fault:
        error = f"{type(fault).__name__}: {fault}"
        connection.close()
    return Request(id, method, due, time.monotonic() - due, status, instance, error)
