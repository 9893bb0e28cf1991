"""The one thread of a process that keeps an instance registered, for as long as it leads.

Everything it is told goes through a queue that may be written to in the midst of a signal handler,
and everything it does it does by itself: nobody waits for a registry but who asks to.
"""

from __future__ import annotations

import logging
import os
import queue
import random as _random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeAlias

from wsgigate.rules.registration import (
    Answer,
    Phase,
    RegistrationRules,
    Standing,
    Step,
    Wanted,
    after,
    next_step,
)
from wsgigate.runtime.throttled_log import ThrottledLog

__all__ = ["Client", "Keeper", "Lead"]


LOG = logging.getLogger("wsgigate.registration")

LOOK, LOOK_AT_MOST = 0.25, 2.0
"""Seconds between two looks whether it is time to begin, at first and later."""

ROUND = 1.5
"""Seconds after which a process asks again whether it leads."""


class Client(Protocol):
    """Says to registries how an instance stands."""

    @property
    def registries(self) -> tuple[str, ...]:
        """Where they are."""

    @property
    def name(self) -> str:
        """What the instance is called in the log."""

    def ask(self, step: Step, wanted: Wanted, place: int) -> Answer:
        """Do *step* at the registry *place*; never raises for what the registry does."""


class Lead(Protocol):
    """Decides which of several processes speaks for the instance."""

    def take(self) -> bool:
        """Return whether this process does, from now until it asks again."""

    def release(self) -> None:
        """Let another do so."""


class _Always:
    def take(self) -> bool:
        return True

    def release(self) -> None:
        pass


_Told: TypeAlias = "Wanted | Callable[[], object] | None"


class Keeper:
    """Keep an instance registered from a thread of its own.

    :param connect: Makes the client, in the thread; a ValueError of it is told to the log.
    :param ready: Says whether to begin; asked again and again until it does.
    :param lead: Decides whether it is for this process to speak.
    :param wanted: What the instance is to be at first.
    :param standing: What is known of it at first.
    :param clock: Seconds of a clock that never steps back.
    :param random: Gives numbers in [0, 1).
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        *,
        ready: Callable[[], bool] = lambda: True,
        lead: Lead | None = None,
        wanted: Wanted = Wanted.UP,
        standing: Standing | None = None,
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
        self._queue: queue.SimpleQueue[_Told] = queue.SimpleQueue()  # gevent's, where it patched
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()
        self._pid = 0
        self.begun = False
        """Whether it was time to begin."""
        self.standing = Standing()
        """How the instance stands, if it is this process that speaks for it."""
        self._failures = ThrottledLog(
            LOG.warning,
            "%s failed attempts at a registry since the last such message; the last: %s",
            clock,
        )

    def start(self) -> None:
        """Begin, in the background."""
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="wsgigate-registration", daemon=True)
        self._thread.start()

    def want(self, wanted: Wanted) -> None:
        """Have the instance be *wanted* as soon as that can be."""
        self._queue.put(wanted)

    def call(self, function: Callable[[], object]) -> None:
        """Have *function* called in the thread, between two steps."""
        self._queue.put(function)

    def retire(self) -> None:
        """Leave the instance to others from now on; may be called in a signal handler."""
        self._queue.put(None)

    def settled(self, timeout: float) -> bool:
        """Wait until a registry knows that the instance drains, or can not be told.

        :param timeout: Seconds to wait at most.
        :returns: Whether it did not take longer.
        """
        return self._settled.wait(timeout)

    @property
    def drains(self) -> bool:
        """Whether a registry knows that the instance drains: only then waiting is of any use."""
        return self.standing.phase is Phase.DRAINING

    def end(self, *, leave: bool, timeout: float) -> None:
        """End the thread.

        :param leave: Whether the instance is to be deregistered before.
        :param timeout: Seconds to wait for it; what a registry does not answer in time is left.
        """
        thread, self._thread = self._thread, None
        if thread is None or self._pid != os.getpid():
            return
        self._queue.put(Wanted.GONE if leave else None)
        thread.join(timeout)

    def _run(self) -> None:
        try:
            client = self._connected()
            if client is not None and self._wait_until_ready():
                self._keep(client)
        except Exception:  # a fault of ours is not to be one of the service
            LOG.exception("nothing is registered any more")
        finally:
            self._settled.set()
            self._lead.release()

    def _connected(self) -> Client | None:
        try:
            return self._connect()
        except ValueError as error:
            LOG.error("nothing is registered: %s", error)
            return None

    def _wait_until_ready(self) -> bool:
        wait = LOOK
        while not self._ready():
            try:
                told = self._queue.get(timeout=wait)
            except queue.Empty:
                wait = min(wait * 1.25, LOOK_AT_MOST)
                continue
            if told is None or told is Wanted.GONE:
                return False
            self._take(told)
        self.begun = True
        return True

    def _keep(self, client: Client) -> None:
        rules = RegistrationRules(registries=len(client.registries))
        leading, due, lead_at = False, 0.0, float("-inf")
        while True:
            now = self._clock()
            if now >= lead_at:
                was, leading, lead_at = leading, self._lead.take(), now + ROUND
                if leading and not was:  # nobody knows what another process has left
                    self.standing, self._known, due = self._known or Standing(), None, now
            if leading and now >= due:
                due = now + self._step(client, rules)
            self._note_settled(leading, rules)
            if self._wanted is Wanted.GONE and self._is_over(leading, rules):
                return
            try:
                ahead = min(due, lead_at) if leading else lead_at
                told = self._queue.get(timeout=max(0.0, ahead - self._clock()))
            except queue.Empty:
                continue
            if told is None:
                return
            if self._take(told):
                due = now
                self.standing = replace(self.standing, failures=0)

    def _take(self, told: Wanted | Callable[[], object]) -> bool:
        """Do as told; return whether something else is wanted now."""
        if not isinstance(told, Wanted):
            told()
            return False
        changed, self._wanted = told is not self._wanted, told
        return changed

    def _step(self, client: Client, rules: RegistrationRules) -> float:
        """Do what is to be done; return in how many seconds the next step is."""
        old, wanted = self.standing, self._wanted
        step = next_step(old, wanted)
        if step is Step.NOTHING:
            return ROUND
        answer = client.ask(step, wanted, old.place)
        self.standing, wait = after(old, step, wanted, answer, self._random(), rules)
        registry = client.registries[old.place]
        if self.standing.failures:
            self._failures.log(f"{registry}: {client.name}: {step}: {answer.why}")
        elif self.standing.phase is not old.phase:
            LOG.info("%s is %s at %s", client.name, self.standing.phase, registry)
        return wait

    def _note_settled(self, leading: bool, rules: RegistrationRules) -> None:
        """Let those go on who wait until the registry knows, or can not be told."""
        standing = self.standing
        if self._wanted in (Wanted.DRAINING, Wanted.GONE) and (
            not leading
            or standing.phase in (Phase.DRAINING, Phase.GONE)
            or standing.failures >= rules.registries
            or next_step(standing, self._wanted) is Step.NOTHING
        ):
            self._settled.set()

    def _is_over(self, leading: bool, rules: RegistrationRules) -> bool:
        """Return whether nothing more is to be tried: each registry is asked once to let go."""
        return (
            not leading
            or next_step(self.standing, Wanted.GONE) is Step.NOTHING
            or self.standing.failures >= rules.registries
        )
