"""The threads of a worker shared by several services: quick bursts pass, what hangs is bounded."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.support.waiting import until
from wsgigate.proxy.bulkhead import ThreadShareRules
from wsgigate.testing.backend import Backend, Received, reply

GATEWAY = """
[gateway]
name = "thread-shares"
threads = {threads}
[store]
url = "memory:"
"""

SERVICE = """
[services.s{number}]
instances = ["{url}"]
[[routes]]
path = "/s{number}"
service = "s{number}"
"""


class Hanging:
    """Answers when it is let; counts those that wait for that at a time."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.waiting = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self, connection: socket.socket, _request: Received) -> None:
        with self._lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        assert self.opened.wait(60)
        with self._lock:
            self.waiting -= 1
        connection.sendall(reply(b"late"))


def ask(url: str) -> int:
    return requests.get(url, timeout=60).status_code


def together(threads: ThreadPoolExecutor, url: str, times: int) -> list[Future[int]]:
    return [threads.submit(ask, url) for _ in range(times)]


@pytest.mark.parametrize("server", ["gunicorn", "granian"])
@pytest.mark.parametrize("threads", [16, 4])
@pytest.mark.parametrize("services", [2, 3, 8])
def test_bursts_pass_and_one_that_hangs_leaves_threads_to_the_others(
    server: str, threads: int, services: int, serve: Callable[..., Any]
) -> None:
    hanging = Hanging()
    with Backend(hanging) as hangs, Backend(reply(b"quick")) as quick:
        text = GATEWAY.format(threads=threads) + SERVICE.format(number=0, url=hangs.url)
        for number in range(1, services):
            text += SERVICE.format(number=number, url=quick.url)
        gateway = serve(text, workers=1, server=server)
        with ThreadPoolExecutor(60) as clients:
            burst = together(clients, f"{gateway.url}/s1", 60)
            assert Counter(each.result() for each in burst) == {200: 60}

            stuck = together(clients, f"{gateway.url}/s0", 2 * threads)
            most = ThreadShareRules(threads=threads, services=services).most
            until(lambda: hanging.waiting == most)
            for _ in range(3):
                others = [
                    each
                    for number in range(1, services)
                    for each in together(clients, f"{gateway.url}/s{number}", 3)
                ]
                assert {each.result(20) for each in others} == {200}
            refused = [each for each in stuck if each.done()]
            assert {each.result() for each in refused} <= {503}
            assert hanging.most == most
            hanging.opened.set()
            answered = Counter(each.result(60) for each in stuck)
            assert answered[200] >= most
            assert set(answered) <= {200, 503}
        assert "Traceback" not in gateway.log
