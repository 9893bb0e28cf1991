"""One case: its name, the rule it is about, and how it is tried."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias
from wsgiref.types import WSGIApplication

from wsgigate.testing.backend import Backend
from wsgigate.testing.proxy_safety.exchange import Exchange

__all__ = ["Case", "Cases", "Make"]

Make: TypeAlias = Callable[..., WSGIApplication]
"""``make(url, **options)``: a proxy in front of the backend at *url*."""

LONGEST = 10.0
"""Seconds after which a case that has not ended never will."""


@dataclass(frozen=True)
class Case:
    """Something that a proxy must do right.

    :ivar id: Names it, ``early-hints``.
    :ivar rule: The number of the forwarding rule that it is about, 1 to 10.
    :ivar says: What is right, in a sentence.
    """

    id: str
    rule: int
    says: str
    script: Callable[[Exchange], None]

    def __str__(self) -> str:
        return self.id

    def check(self, make: Make) -> None:
        """Try it.

        :raises AssertionError: The proxy does it wrong; says what happened.
        :raises NotImplementedError: The proxy does not do such a thing at all.
        """
        outcome: list[BaseException | None] = []

        def run(exchange: Exchange) -> None:
            try:
                self.script(exchange)
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)

        with Backend() as backend:
            exchange = Exchange(backend, make)
            # A thread of its own: a proxy that waits for ever must not take the test with it.
            thread = threading.Thread(target=run, args=(exchange,), daemon=True)
            thread.start()
            thread.join(LONGEST)
            error = outcome[0] if outcome else AssertionError(f"no end after {LONGEST:.0f} s")
        if error is None:
            return
        if isinstance(error, AssertionError | NotImplementedError):
            raise error
        raise AssertionError(f"{type(error).__name__}: {error}") from error


class Cases(list[Case]):
    """A list that a decorator fills: ``@cases(3, "early-hints")`` on a script with a docstring."""

    def __call__(self, rule: int, id: str) -> Callable[[Callable[[Exchange], None]], Any]:
        def add(script: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
            says = " ".join((script.__doc__ or "").split())
            self.append(Case(id, rule, says, script))
            return script

        return add
