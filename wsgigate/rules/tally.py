"""How the calls of one worker go, and when that is reason enough to open their circuit."""

from __future__ import annotations

from wsgigate.rules.circuit import Outcome
from wsgigate.rules.circuit_rules import CircuitRules
from wsgigate.rules.window import Window

__all__ = ["Tally"]


class Tally:
    """What one worker has seen of a service.

    :param rules: What is too much.
    :ivar failures: Calls that have failed since the last one that was answered.
    :ivar successes: Calls that were answered, all in all.
    :ivar last_failure: When the last one failed, ``None`` before there was one.
    """

    __slots__ = (
        "_in_a_row",
        "_rules",
        "_unreachable",
        "_window",
        "failures",
        "last_failure",
        "successes",
    )

    def __init__(self, rules: CircuitRules) -> None:
        self._rules = rules
        self._window = Window(rules.window)
        self.failures = self.successes = 0
        self.last_failure: float | None = None
        self.clear()

    def clear(self) -> None:
        """Begin anew to look for a reason to open, as the circuit has changed."""
        self._in_a_row = self._unreachable = 0
        self._window.clear()

    def add(self, outcome: Outcome, now: float, *, slow: bool = False) -> str:
        """Take note of a call that ended at *now*; return why the circuit is to open.

        :param slow: Whether it took longer than it may.
        :returns: The reason in words; empty when the circuit is to stay as it is.
        """
        rules = self._rules
        if outcome is Outcome.OK:
            self.successes += 1
            self.failures = 0
            self._in_a_row = self._unreachable = 0
            self._window.add(now, False, slow)
            return self._why_slow() if slow else ""
        if outcome is Outcome.REFUSED or outcome is Outcome.IGNORED:
            return ""
        self.failures += 1
        self.last_failure = now
        self._in_a_row += 1
        self._unreachable = self._unreachable + 1 if outcome is Outcome.UNREACHABLE else 0
        window = self._window
        window.add(now, True, slow)
        if rules.connect_failures is not None and self._unreachable >= rules.connect_failures:
            return f"{_times(self._unreachable, 'connection failure')} in a row"
        if rules.consecutive_failures is not None and self._in_a_row >= rules.consecutive_failures:
            return f"{_times(self._in_a_row, 'failure')} in a row"
        if self._share(window.failed, rules.failure_rate):
            return f"{window.failed} of {window.calls} calls failed within {rules.window:g} s"
        return self._why_slow() if slow else ""

    def _why_slow(self) -> str:
        rules, window = self._rules, self._window
        if not self._share(window.slow, rules.slow_rate):
            return ""
        return (
            f"{window.slow} of {window.calls} calls took longer than {rules.slow_after:g} s "
            f"within {rules.window:g} s"
        )

    def forget(self) -> None:
        """Forget the failures, as the operator knows better."""
        self.clear()
        self.failures = 0
        self.last_failure = None

    def _share(self, some: int, share: float | None) -> bool:
        calls = self._window.calls
        return share is not None and calls >= self._rules.minimum_calls and some >= share * calls


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
