"""One of several instances, for those who ask the registry for a single one."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate

from wsgigate.rules.registry import Registered

__all__ = ["Choice"]

MOST = 1_000
"""Of how many services it is known whose turn it is."""


class Choice:
    """Chooses instances in turns, by chance in proportion to their weights, or always the first.

    The turns are those of this process. Each begins somewhere else, so that workers do not march in
    step; requests at the very same moment may get the same one.

    :param random: Gives numbers in [0, 1).
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._turns: dict[str, int] = {}

    def of(self, service: str, strategy: str, usable: Sequence[Registered]) -> Registered:
        """Return one of *usable*, which are at least one and have weights above 0.

        :param strategy: ``round-robin``, ``random`` or ``first``.
        """
        if strategy == "first":
            return usable[0]
        if strategy == "random":
            weights = list(accumulate(entry.weight for entry in usable))
            return usable[bisect(weights, self._random() * weights[-1])]
        if len(self._turns) >= MOST and service not in self._turns:
            self._turns.clear()
        turn = self._turns.get(service)
        if turn is None:
            turn = int(self._random() * len(usable))
        self._turns[service] = turn = turn + 1
        return usable[turn % len(usable)]
