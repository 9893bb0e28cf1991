"""How instances are asked whether they are well: what a checker wants of whoever asks them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias

from wsgigate.discovery import Instance
from wsgigate.rules.health import HealthCheck, Outcome

__all__ = ["Asker", "InThreads", "Probe"]

Probe: TypeAlias = Callable[[Instance, HealthCheck], Outcome]
"""Asks one instance once whether it is well, within the check's timeout. Runs in any thread."""

Found: TypeAlias = Callable[[Outcome | Exception], None]
"""Takes what a check found, or what kept it from finding anything. Runs in any thread."""


class Asker(Protocol):
    """Asks instances, many at a time."""

    def ask(self, service: str, instance: Instance, check: HealthCheck, found: Found) -> None:
        """Start a check, and call *found* when it has ended."""

    def stop(self) -> None:
        """Abandon the checks under way."""


class InThreads:
    """Ask by a function of one's own, each check in a thread that ends with it.

    :param probe: Asks one instance once.
    :param spawn: Runs a function in the background.
    """

    def __init__(
        self, probe: Probe, *, spawn: Callable[[Callable[[], None]], None] | None = None
    ) -> None:
        self._probe = probe
        self._spawn = spawn or _spawn_thread

    def ask(self, service: str, instance: Instance, check: HealthCheck, found: Found) -> None:
        """Start a check in a thread.

        :raises RuntimeError: There is no thread to be had.
        """
        self._spawn(partial(self._run, instance, check, found))

    def stop(self) -> None:
        """Leave the threads to end by themselves."""

    def _run(self, instance: Instance, check: HealthCheck, found: Found) -> None:
        outcome: Outcome | Exception
        try:
            outcome = self._probe(instance, check)
        except Exception as error:
            outcome = error
        found(outcome)


def _spawn_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="wsgigate-health-check", daemon=True).start()
