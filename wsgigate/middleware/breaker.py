"""A circuit breaker around a WSGI app."""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Collection, Iterable
from typing import Annotated
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.coordination.circuit import Circuit, Rejection
from wsgigate.http.fields import retry_after
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import BodyError, ExcInfo, Headers, Observed, observe
from wsgigate.rules.arguments import Range, checked
from wsgigate.rules.circuit import FAILURES, CircuitRules, Outcome, check_failures, outcome_of
from wsgigate.runtime.clocks import steady
from wsgigate.store import Store
from wsgigate.store.open import Namespaced, OpenedStore, resettable

__all__ = ["Breaker"]


@checked
class Breaker:
    """Circuit breaker: reject requests at once while the app keeps failing.

    *rules* decide when the circuit opens, *statuses* and *exceptions* what a failure is. A
    client error (4xx) is not a failure, and a response that the client aborts is not counted. After
    the open time a few requests of all workers together pass as probes. The attribute *enabled* can
    be changed at any time.

    :param app: The WSGI application to protect.
    :param rules: When the circuit opens and for how long.
    :param name: Name of the circuit in logs and in the store; breakers with the same name share one
        circuit.
    :param statuses: Statuses that count as failures, each 500 to 599.
    :param exceptions: Exceptions of the app that count as failures.
    :param store: The store that the workers share: a store, or its URL. Default: a directory of
        this machine that all workers of this app share and no other app does.
    :param enabled: Whether the breaker is active; false passes every request on.
    :param namespace: Separates apps that share a store: breakers with the same namespace and name
        share a circuit. Default: derived from the file and the name of the code of *app*.
    :param sync_interval: Seconds between two reads of the state that other workers have written.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :param clock: Returns a monotonic time in seconds.
    :param random: Returns random numbers in [0, 1).
    :ivar circuit: The circuit; ``circuit.status()`` returns its state, ``circuit.reset()`` closes
        it.
    :raises ValueError: An argument is invalid; the message names it.
    """

    enabled = True

    def __init__(
        self,
        app: WSGIApplication,
        rules: CircuitRules | None = None,
        *,
        name: str = "default",
        statuses: Annotated[Collection[Annotated[int, Range(500, 599)]], Range(1)] = FAILURES,
        exceptions: tuple[type[Exception], ...] = (Exception,),
        store: Store | str | None = None,
        namespace: str | None = None,
        enabled: bool = True,
        sync_interval: float = 0.5,
        refuse: Refuse = answer_with,
        clock: Callable[[], float] = steady,
        random: Callable[[], float] = _random.random,
    ) -> None:
        if not enabled:
            self.enabled = False
        self.app = app
        self._failures = check_failures(statuses)
        self._opened = OpenedStore(store, app, namespace=namespace)
        self.circuit = Circuit(
            name,
            rules,
            store=Namespaced(self._opened),
            sync_interval=sync_interval,
            clock=clock,
            random=random,
        )
        self._exceptions = exceptions
        self._refuse = refuse
        self._clock = clock
        self._timed = self.circuit.rules.slow_after is not None
        resettable(self)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self.enabled:
            return self.app(environ, start_response)
        permit = self.circuit.admit()
        if isinstance(permit, Rejection):
            return self._refused(permit.retry_after, environ, start_response)
        took: float | None = None if self._timed else 0.0
        start = start_response
        if took is None:

            def timed(
                status: str, headers: Headers, exc_info: ExcInfo | None = None
            ) -> Callable[[bytes], object]:
                nonlocal took
                if (
                    took is None
                ):  # the time that the client takes to read the response does not count
                    took = self._clock() - permit.began
                if exc_info:
                    return start_response(status, headers, exc_info)
                return start_response(status, headers)

            start = timed

        def done(response: Observed) -> None:
            # A WebSocket that an inner app has taken over may last for hours; that is not slow.
            permit.done(
                self._outcome(response, environ),
                took=0.0 if response.taken_over else took,
                why=_why(response),
            )

        return observe(self.app, environ, start, done)

    def reset(self) -> None:
        """Close the circuit and reset its counts."""
        self.circuit.reset()

    def counts_in_memory(self) -> bool:
        """Return whether the circuit is in the memory of this process only."""
        return self._opened.in_memory

    def close(self) -> None:
        """Close the store if the breaker has opened it."""
        self._opened.close()

    def _outcome(self, response: Observed, environ: WSGIEnvironment) -> Outcome:
        error = response.error
        if error is not None:
            if isinstance(error, BodyError) or not isinstance(error, Exception):
                return Outcome.IGNORED  # caused by the client, or this process is shutting down
            failed = isinstance(error, self._exceptions)
            return Outcome.FAILED if failed else Outcome.IGNORED
        if not response.status:
            return Outcome.IGNORED  # the response was closed before it started
        outcome = outcome_of(int(response.status[:3]), self._failures)
        if outcome is Outcome.OK and not response.complete and environ["REQUEST_METHOD"] != "HEAD":
            return Outcome.IGNORED  # the client has disconnected
        return outcome

    def _refused(
        self, wait: float, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        refused(environ, "Breaker", f"the circuit {self.circuit.name!r} is open")
        problem = Problem(
            503,
            "Service temporarily unavailable",
            extensions={"error": "Circuit breaker open"},
            headers=(("Retry-After", retry_after(wait)),),
        )
        return self._refuse(problem)(environ, start_response)


def _why(response: Observed) -> str:
    """Return the cause of a failure, as the circuit's status reports it."""
    if response.error is not None:
        return type(response.error).__name__
    return f"status {response.status[:3]}" if response.status[:1] == "5" else ""
