"""What the forwarders of one service share besides its pool: when it is left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from wsgigate.circuits import Circuit, Permit, Rejection
from wsgigate.fields import retry_after
from wsgigate.problem import Problem, Refusal
from wsgigate.rules.outcomes import FAILURES, check_failures

__all__ = ["Resilience"]


class Resilience:
    """What is done when a service fails; one for all the forwarders of a service.

    :param circuit: Opens when too many requests fail, and then refuses them; ``None`` for none.
    :param failures: The statuses that are failures, each 500 to 599.
    :param clock: Tells the time in seconds, from any moment on; the circuit's own.
    :raises ValueError: A setting is out of its range; says which.
    """

    def __init__(
        self,
        *,
        circuit: Circuit | None = None,
        failures: Collection[int] = FAILURES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.circuit = circuit
        self.failures = check_failures(failures)
        self.clock = clock
        self.timed = circuit is not None and circuit.rules.slow_after is not None

    @property
    def active(self) -> bool:
        """Whether anything depends on how requests end."""
        return self.circuit is not None

    def admit(self, now: float) -> Permit | None:
        """Return leave to ask the service, ``None`` where nobody needs any.

        :raises Refusal: The circuit is open; carries the answer.
        """
        circuit = self.circuit
        if circuit is None:
            return None
        permit = circuit.admit(now)
        if type(permit) is Permit:
            return permit
        raise _open(circuit, permit)


def _open(circuit: Circuit, rejection: Permit | Rejection) -> Refusal:
    wait = rejection.retry_after if isinstance(rejection, Rejection) else 0.0
    problem = Problem(
        503,
        "Service temporarily unavailable",
        extensions={"error": "Circuit breaker open"},
        headers=(("Retry-After", retry_after(wait)),),
    )
    return Refusal(problem, f"the circuit {circuit.name!r} is open")
