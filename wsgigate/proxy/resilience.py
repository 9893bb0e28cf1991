"""The resilience of a service, shared by its forwarders: circuit breaker, retries, bulkhead."""

from __future__ import annotations

import random as _random
import threading
import time
from collections.abc import Callable, Collection
from typing import Annotated

from wsgigate.coordination.circuit import Circuit, Permit, Rejection
from wsgigate.http.fields import retry_after
from wsgigate.http.problem import Problem, Refusal
from wsgigate.proxy.hedging import Hedge
from wsgigate.proxy.pool import Compartment
from wsgigate.rules.arguments import Range, checked
from wsgigate.rules.circuit import FAILURES, check_failures
from wsgigate.rules.retry import Attempt, Decision, HedgeRules, RetryBudget, RetryRules, decide
from wsgigate.runtime import fork
from wsgigate.runtime.threads import TIMER, Timer

__all__ = ["Resilience"]


@checked
class Resilience:
    """How a service's failures are handled; shared by all forwarders of the service.

    :param circuit: The circuit breaker. Default: none.
    :param failures: The statuses that count as failures, each 500 to 599.
    :param retry: When a request is retried. Default: never.
    :param budget: The maximum number of retries. Default: a fifth of the requests.
    :param bulkhead: Limits the service's requests in flight in this worker: a
        :class:`~wsgigate.Bulkhead`, or a compartment of :class:`~wsgigate.ThreadShares`. Default:
        no limit.
    :param hedge: When a read-only request is sent to a second instance while the first has not
        responded, within the same *budget*. Default: never.
    :param timer: Starts the hedged attempts.
    :param clock: Monotonic clock, in seconds; the same as the circuit's.
    :param sleep: Waits a number of seconds.
    :param random: Returns a number in [0, 1).
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        circuit: Circuit | None = None,
        failures: Annotated[Collection[Annotated[int, Range(500, 599)]], Range(1)] = FAILURES,
        retry: RetryRules | None = None,
        budget: RetryBudget | None = None,
        bulkhead: Compartment | None = None,
        hedge: HedgeRules | None = None,
        timer: Timer = TIMER,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.circuit = circuit
        self.failures = check_failures(failures)
        self.retry = retry if retry is not None and retry.attempts > 1 else None
        self.per_try = None if retry is None else retry.per_try_timeout
        self.bulkhead = bulkhead
        self.hedge = None if hedge is None else Hedge(hedge, timer=timer, clock=clock)
        self.clock = clock
        self.sleep = sleep
        self._random = random
        self._budget = RetryBudget() if budget is None else budget
        self._lock = threading.Lock()
        self.timed = circuit is not None and circuit.rules.slow_after is not None
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may hold."""
        self._lock = threading.Lock()

    @property
    def active(self) -> bool:
        """Whether a circuit breaker, retries, a timeout per attempt or hedging are set."""
        settings = (self.circuit, self.retry, self.per_try, self.hedge)
        return any(each is not None for each in settings)

    def count(self, now: float) -> None:
        """Count a request, which adds to the retry budget."""
        with self._lock:
            self._budget.request(now)

    def decide(self, attempt: Attempt, now: float) -> Decision:
        """Return whether to retry after the failed *attempt*, and when."""
        if self.retry is None:
            return Decision(False, why="retries are disabled")
        return decide(attempt, self.retry, self._random(), lambda: self.take(now))

    def take(self, now: float) -> bool:
        """Take one attempt out of the retry budget; return ``False`` if it is used up."""
        with self._lock:
            return self._budget.withdraw(now)

    def admit(self, now: float) -> Permit | None:
        """Return a permit of the circuit; ``None`` without a circuit.

        :raises Refusal: The circuit is open; carries the client's response.
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
