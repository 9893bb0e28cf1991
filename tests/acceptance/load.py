"""Clients that ask without a pause."""

from __future__ import annotations

import threading
from collections import Counter

import requests

__all__ = ["Load"]


class Load:
    """Clients that ask a URL without a pause: POSTs, which nobody repeats.

    :ivar answers: How often each status came, with its text or the name of its error.
    """

    def __init__(self, url: str, clients: int = 1) -> None:
        self.url = url
        self.answers: Counter[tuple[int, str]] = Counter()
        self.threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self._ended = threading.Event()
        for thread in self.threads:
            thread.start()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._ended.wait(0.005):
                answer = session.post(self.url, data="x", timeout=20)
                problem = "problem" in answer.headers.get("Content-Type", "")
                told = answer.json()["error"] if problem else answer.text
                self.answers[answer.status_code, told] += 1

    def has_reached(self, *ports: int) -> bool:
        """Return whether instances have answered that return the numbers of their ports."""
        return all(self.answers[200, str(port)] for port in ports)

    def end(self) -> Counter[tuple[int, str]]:
        """Stop asking, and return what the answers were."""
        self._ended.set()
        for thread in self.threads:
            thread.join(30)
        return self.answers
