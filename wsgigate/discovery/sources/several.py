"""Failover between several sources of the same instances."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from wsgigate.discovery.sources import Found, Source, SourceError

__all__ = ["Several"]


class Several:
    """A source that queries other sources in order: the next one if the ones before it fail.

    It stays with a source as long as that answers: registries that share a store return the same
    instances, and with registries that do not, instances would come and go with every change of
    the source. After an empty answer, the other sources are queried as well: a registry that was
    restarted without its data must not override one that has instances. An empty list is certain
    only if all sources return one that is.

    :param sources: The sources, the preferred one first; at least one.
    :raises ValueError: *sources* is empty.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("sources must not be empty")
        self._sources = tuple(sources)
        self._current = 0
        self.name = ", ".join(source.name for source in self._sources)

    def close(self) -> None:
        """Close all sources; the next :meth:`find` starts with the one that answered last."""
        for source in self._sources:
            source.close()

    def find(self, stopping: threading.Event) -> Found:
        """Return the first answer with instances, or else the first answer.

        :raises SourceError: All sources fail; the message has the reason of each.
        """
        count = len(self._sources)
        failures: list[str] = []
        empty: list[tuple[int, Found]] = []
        for place in [(self._current + each) % count for each in range(count)]:
            source = self._sources[place]
            if place != self._current:
                source.close()  # otherwise it might wait for a change of an old answer
            try:
                found = source.find(stopping)
            except SourceError as error:
                if stopping.is_set():
                    raise
                source.close()
                failures.append(f"{source.name}: {error}")
                continue
            if found.instances:
                self._current = place
                return found
            empty.append((place, found))
            if stopping.is_set():
                break
        if not empty:
            raise SourceError("; ".join(failures))
        self._current, found = empty[0]
        certain = not failures and all(each.certain for _, each in empty)
        return found._replace(certain=certain, again_in=max(found.again_in, _PAUSE))


_PAUSE = 1.0
"""Seconds until the next query while no source has instances."""
