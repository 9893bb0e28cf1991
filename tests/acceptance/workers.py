"""Single workers of a gateway, asked one by one."""

from __future__ import annotations

from typing import Any, TypeVar

import requests

from tests.support.waiting import until

__all__ = ["WHO", "Worker", "both_workers"]

WHO = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
"""A module whose app returns the process id of the worker; gateways serve it at ``/who``."""


class Worker:
    """One worker, asked over a connection that is kept: it is always the same one.

    :ivar pid: Its process id.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        self.pid = self.get("/who").text

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(f"{self.url}{path}", timeout=20, **options)

    def operate(self, path: str, token: str, /, **body: object) -> requests.Response:
        """Call an endpoint of the gateway that needs the admin token."""
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self.url}/_gateway/{path}"
        return self.session.post(url, json=body, headers=headers, timeout=20)

    def close(self) -> None:
        self.session.close()


W = TypeVar("W", bound=Worker)


def both_workers(url: str, kind: type[W]) -> tuple[W, W]:
    """Return the two workers of the gateway at *url*."""
    found: dict[str, W] = {}

    def both() -> bool:
        worker = kind(url)
        if found.setdefault(worker.pid, worker) is not worker:
            worker.close()
        return len(found) == 2

    until(both)
    one, other = found.values()
    return one, other
