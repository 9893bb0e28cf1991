"""Stop calling an app that keeps failing; try it again later, a few calls at a time."""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Collection, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.coordination.circuit import Circuit, Rejection
from wsgigate.http.fields import retry_after
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.refusals import refused
from wsgigate.http.wsgi import BodyError, ExcInfo, Headers, Observed, observe
from wsgigate.rules.arguments import checked
from wsgigate.rules.circuit import FAILURES, CircuitRules, Outcome, check_failures, outcome_of
from wsgigate.runtime.clocks import steady
from wsgigate.store import Store
from wsgigate.store.open import Namespaced, OpenedStore
from wsgigate.store.under_test import resettable

__all__ = ["Breaker"]


@checked
class Breaker:
    """Refuse requests at once while the app behind keeps failing, and spare it the load.

    What counts is in *rules*, and what a failure is in *statuses* and *exceptions*. A client's own
    mistake (4xx) is none, and a client that leaves before the end tells nothing. After the open
    time a few requests of all workers together are let pass as probes.

    :param app: The WSGI application to stand in front of.
    :param rules: When it opens and for how long.
    :param name: Names the circuit to people and in the store; one per app.
    :param statuses: The statuses that are failures, each 500 to 599.
    :param exceptions: The exceptions that are failures when the app raises them.
    :param store: Where the workers meet: a store, or the URL of one. Unless said, a folder of this
        machine that all workers of this app share and no other app does.
    :param enabled: Whether the breaker does anything; the attribute can be set at any time.
    :param namespace: Whose circuit it is, where the store is shared: all with the same namespace
        and name share it. Default: that of *app*, known by the file and the name of its code.
    :param sync_interval: Seconds after which what other workers found is read again.
    :param refuse: Turns the problem into the app that answers it.
    :param clock: Tells the time in seconds, from any moment on.
    :param random: Gives numbers in [0, 1).
    :ivar circuit: The circuit; ``circuit.status()`` tells how it stands, ``circuit.reset()`` closes
        it.
    :raises ValueError: One of the settings is wrong; says which and how.
    """

    enabled = True

    def __init__(
        self,
        app: WSGIApplication,
        rules: CircuitRules | None = None,
        *,
        name: str = "default",
        statuses: Collection[int] = FAILURES,
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
                if took is None:  # what the client takes to read it is not the app's fault
                    took = self._clock() - permit.began
                if exc_info:
                    return start_response(status, headers, exc_info)
                return start_response(status, headers)

            start = timed

        def done(response: Observed) -> None:
            # a WebSocket that an app inside has taken over may last for hours, which is not slow
            permit.done(
                self._outcome(response, environ),
                took=0.0 if response.taken_over else took,
                why=_why(response),
            )

        return observe(self.app, environ, start, done)

    def reset(self) -> None:
        """Close the circuit, and forget what was counted."""
        self.circuit.reset()

    def counts_in_memory(self) -> bool:
        """Return whether the circuit is in the memory of this process alone."""
        return self._opened.in_memory

    def close(self) -> None:
        """Close the store, if it is the breaker's own and not one it was given."""
        self._opened.close()

    def _outcome(self, response: Observed, environ: WSGIEnvironment) -> Outcome:
        error = response.error
        if error is not None:
            if isinstance(error, BodyError) or not isinstance(error, Exception):
                return Outcome.IGNORED  # the client's doing, or this process is told to end
            failed = isinstance(error, self._exceptions)
            return Outcome.FAILED if failed else Outcome.IGNORED
        if not response.status:
            return Outcome.IGNORED  # it was let go before it began
        outcome = outcome_of(int(response.status[:3]), self._failures)
        if outcome is Outcome.OK and not response.complete and environ["REQUEST_METHOD"] != "HEAD":
            return Outcome.IGNORED  # the client has left
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
    """Return what a response that failed looked like, for those who ask why the circuit opened."""
    if response.error is not None:
        return type(response.error).__name__
    return f"status {response.status[:3]}" if response.status[:1] == "5" else ""
