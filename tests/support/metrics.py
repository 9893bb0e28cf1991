"""What the instruments of this process have counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from wsgigate.telemetry.metrics import PROCESS

__all__ = ["Measured", "measuring"]


class Measured:
    """Reads the instruments of this process; each value is the sum over the series that match."""

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the values of a counter or gauge that are not 0, by the values of its labels.

        Of a histogram it returns the number of observations.
        """
        totals = PROCESS.totals().get(name)
        if totals is None:
            return {}
        first = 1 if totals.family.kind == "histogram" else 0
        sums = {labels: sum(cells[first:]) for labels, cells in totals.series.items()}
        return {labels: value for labels, value in sums.items() if value}

    def value(self, name: str, **labels: str) -> float:
        """Return the sum over the series of *name* with these labels."""
        totals = PROCESS.totals().get(name)
        if totals is None:
            return 0.0
        names = totals.family.labels
        wanted = {names.index(label): value for label, value in labels.items()}
        return sum(
            value
            for found, value in self.series(name).items()
            if all(found[at] == each for at, each in wanted.items())
        )


@contextmanager
def measuring() -> Iterator[Measured]:
    """Record from here on, beginning at 0."""
    PROCESS.stop()
    PROCESS.record()
    try:
        yield Measured()
    finally:
        PROCESS.stop()
