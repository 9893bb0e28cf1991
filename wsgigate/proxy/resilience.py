"""What the forwarders of a service share besides its pool: when it is left alone or asked again."""

from __future__ import annotations

import random as _random
import threading
import time
from collections.abc import Callable, Collection

from wsgigate.coordination.circuit import Circuit, Permit, Rejection
from wsgigate.http.fields import retry_after
from wsgigate.http.problem import Problem, Refusal
from wsgigate.proxy.hedging import Hedge
from wsgigate.proxy.pool import Compartment
from wsgigate.rules.arguments import checked
from wsgigate.rules.circuit import FAILURES, check_failures
from wsgigate.rules.retry import Attempt, Decision, HedgeRules, RetryBudget, RetryRules, decide
from wsgigate.runtime import fork
from wsgigate.runtime.threads import TIMER, Timer

__all__ = ["Resilience"]


@checked
class Resilience:
    """What is done when a service fails; one for all the forwarders of a service.

    :param circuit: Opens when too many requests fail, and then refuses them; ``None`` for none.
    :param failures: The statuses that are failures, each 500 to 599.
    :param retry: When a request is made once more; ``None`` for never.
    :param budget: How many retries there may be: by default a fifth of the requests.
    :param bulkhead: Limits its requests that are under way in this worker: a
        :class:`~wsgigate.Bulkhead`, or a compartment of :class:`~wsgigate.ThreadShares`. Default:
        no limit.
    :param hedge: When a request that only reads is made once more beside itself, within the same
        *budget*; ``None`` for never.
    :param timer: Has those tries made.
    :param clock: Tells the time in seconds, from any moment on; the circuit's own.
    :param sleep: Waits so many seconds.
    :param random: Gives numbers in [0, 1).
    :raises ValueError: A setting is out of its range; says which.
    """

    def __init__(
        self,
        *,
        circuit: Circuit | None = None,
        failures: Collection[int] = FAILURES,
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
        """Have a lock that no thread of the parent holds."""
        self._lock = threading.Lock()

    @property
    def active(self) -> bool:
        """Whether anything depends on how requests end."""
        told = (self.circuit, self.retry, self.per_try, self.hedge)
        return any(each is not None for each in told)

    def count(self, now: float) -> None:
        """Take note of a request, of which there may be a share of retries."""
        with self._lock:
            self._budget.request(now)

    def decide(self, attempt: Attempt, now: float) -> Decision:
        """Return whether a request is made once more, of which *attempt* has failed."""
        if self.retry is None:
            return Decision(False, why="there are no retries")
        return decide(attempt, self.retry, self._random(), lambda: self.take(now))

    def take(self, now: float) -> bool:
        """Take one try more out of what there is for all requests; return whether there was one."""
        with self._lock:
            return self._budget.take(now)

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
