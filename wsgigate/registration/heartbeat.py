"""The thread of a process that keeps an instance registered while the process leads.

Commands reach the thread through a queue whose ``put`` is safe in a signal handler, and all
requests to a registry are sent by the thread. Other code waits for a registry only in
:meth:`Heartbeat.settled` and :meth:`Heartbeat.end`.
"""

from __future__ import annotations

import logging
import queue
import random as _random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeAlias

from wsgigate.rules.registration import (
    Phase,
    RegistrationRules,
    RegistrationState,
    RegistryResponse,
    Step,
    Wanted,
    after,
    next_step,
)
from wsgigate.runtime import fork
from wsgigate.runtime.logs import ThrottledLog

__all__ = ["Client", "Heartbeat", "Lead"]


LOG = logging.getLogger("wsgigate.registration")

LOOK, LOOK_AT_MOST = 0.25, 2.0
"""Seconds between two checks whether the process is ready, at first and at most."""

ROUND = 1.5
"""Seconds after which a process tries to take or renew its lease."""


class Client(Protocol):
    """Sends requests to registries."""

    @property
    def registries(self) -> tuple[str, ...]:
        """The URLs of the registries."""

    @property
    def name(self) -> str:
        """The name of the instance in the log."""

    def send(self, step: Step, wanted: Wanted, place: int) -> RegistryResponse:
        """Send the request for *step* to the registry at index *place*; never raises."""


class Lead(Protocol):
    """Elects the process that sends for the instance."""

    def take(self) -> bool:
        """Return whether this process leads, until the next call."""

    def release(self) -> None:
        """Release the leadership."""


class _Always:
    def take(self) -> bool:
        return True

    def release(self) -> None:
        pass


_Command: TypeAlias = "Wanted | Callable[[], object] | None"
"""A new wanted status, a function to call, or ``None`` to stop without deregistering."""


class Heartbeat:
    """Keeps an instance registered, from a background thread.

    :param connect: Returns the client, in the thread; a ValueError that it raises is logged.
    :param ready: Returns whether to start; called repeatedly until it returns ``True``.
    :param lead: Elects the process that sends. Default: this one.
    :param wanted: The initial wanted status.
    :param standing: The initial state of the registration.
    :param clock: Returns monotonic seconds.
    :param random: Returns numbers in [0, 1).
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        *,
        ready: Callable[[], bool] = lambda: True,
        lead: Lead | None = None,
        wanted: Wanted = Wanted.UP,
        standing: RegistrationState | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._connect = connect
        self._ready = ready
        self._lead: Lead = lead or _Always()
        self._wanted = wanted
        self._known = standing
        self._clock = clock
        self._random = random
        # SimpleQueue.put is reentrant, so that a signal handler may call it; gevent may patch it
        self._queue: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()
        self._pid = 0
        self.begun = False
        """Whether the process was ready, and the thread has started to register."""
        self.standing = RegistrationState()
        """The state of the registration, if this process leads."""
        self._failures = ThrottledLog(
            LOG.warning,
            "%s failed attempts at a registry since the last such message; the last: %s",
            clock,
        )

    def start(self) -> None:
        """Start the thread."""
        self._pid = fork.pid
        self._thread = threading.Thread(target=self._run, name="wsgigate-registration", daemon=True)
        self._thread.start()

    def want(self, wanted: Wanted) -> None:
        """Change the wanted status; safe in a signal handler."""
        self._queue.put(wanted)

    def call(self, function: Callable[[], object]) -> None:
        """Call *function* in the thread, between two steps; safe in a signal handler."""
        self._queue.put(function)

    def retire(self) -> None:
        """Stop the thread and leave the instance registered; safe in a signal handler."""
        self._queue.put(None)

    def settled(self, timeout: float) -> bool:
        """Wait until a registry has the status DRAINING, or cannot be reached.

        :param timeout: The most seconds to wait.
        :returns: ``False`` after a timeout.
        """
        return self._settled.wait(timeout)

    @property
    def drains(self) -> bool:
        """Whether a registry has the status DRAINING: only then does a pause have an effect."""
        return self.standing.phase is Phase.DRAINING

    def end(self, *, leave: bool, timeout: float) -> None:
        """Stop the thread.

        :param leave: Whether to deregister the instance first.
        :param timeout: The most seconds to wait; a request without a response is abandoned.
        """
        thread, self._thread = self._thread, None
        if thread is None or self._pid != fork.pid:
            return
        self._queue.put(Wanted.GONE if leave else None)
        thread.join(timeout)

    def _run(self) -> None:
        try:
            client = self._connected()
            if client is not None and self._wait_until_ready():
                self._keep(client)
        except Exception:  # an error here must not become an error of the service
            LOG.exception("Registration stopped: heartbeats are no longer sent")
        finally:
            self._settled.set()
            self._lead.release()

    def _connected(self) -> Client | None:
        try:
            return self._connect()
        except ValueError as error:
            LOG.error("Registration not started: %s", error)
            return None

    def _wait_until_ready(self) -> bool:
        wait = LOOK
        while not self._ready():
            try:
                command = self._queue.get(timeout=wait)
            except queue.Empty:
                wait = min(wait * 1.25, LOOK_AT_MOST)
                continue
            if command is None or command is Wanted.GONE:
                return False
            self._execute(command)
        self.begun = True
        return True

    def _keep(self, client: Client) -> None:
        rules = RegistrationRules(registries=len(client.registries))
        leading, due, lead_at = False, 0.0, float("-inf")
        while True:
            now = self._clock()
            if now >= lead_at:
                was, leading, lead_at = leading, self._lead.take(), now + ROUND
                if leading and not was:  # what another process has registered is unknown
                    self.standing, self._known, due = self._known or RegistrationState(), None, now
            if leading and now >= due:
                due = now + self._step(client, rules)
            self._note_settled(leading, rules)
            if self._wanted is Wanted.GONE and self._is_over(leading, rules):
                return
            try:
                ahead = min(due, lead_at) if leading else lead_at
                command = self._queue.get(timeout=max(0.0, ahead - self._clock()))
            except queue.Empty:
                continue
            if command is None:
                return
            if self._execute(command):
                due = now
                self.standing = replace(self.standing, failures=0)

    def _execute(self, command: Wanted | Callable[[], object]) -> bool:
        """Execute *command*; return whether the wanted status has changed."""
        if not isinstance(command, Wanted):
            command()
            return False
        changed, self._wanted = command is not self._wanted, command
        return changed

    def _step(self, client: Client, rules: RegistrationRules) -> float:
        """Execute the next step; return the seconds until the one after it."""
        old, wanted = self.standing, self._wanted
        step = next_step(old, wanted)
        if step is Step.NOTHING:
            return ROUND
        answer = client.send(step, wanted, old.place)
        self.standing, wait = after(old, step, wanted, answer, self._random(), rules)
        registry = client.registries[old.place]
        if self.standing.failures:
            self._failures.log(f"{registry}: {client.name}: {step}: {answer.why}")
        elif self.standing.phase is not old.phase:
            LOG.info("%s is %s at %s", client.name, self.standing.phase, registry)
        return wait

    def _note_settled(self, leading: bool, rules: RegistrationRules) -> None:
        """Wake :meth:`settled`, if the status is known to a registry or none can be reached."""
        standing = self.standing
        if self._wanted in (Wanted.DRAINING, Wanted.GONE) and (
            not leading
            or standing.phase in (Phase.DRAINING, Phase.GONE)
            or standing.failures >= rules.registries
            or next_step(standing, self._wanted) is Step.NOTHING
        ):
            self._settled.set()

    def _is_over(self, leading: bool, rules: RegistrationRules) -> bool:
        """Return whether deregistration has ended: each registry is tried once."""
        return (
            not leading
            or next_step(self.standing, Wanted.GONE) is Step.NOTHING
            or self.standing.failures >= rules.registries
        )
