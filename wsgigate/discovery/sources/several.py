"""One source out of several that know the same: the next one answers while one does not."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from wsgigate.discovery.sources import Found, Source, SourceError

__all__ = ["Several"]


class Several:
    """A source that asks others in turn: the first, and the next ones as far as those before fail.

    It stays with the one that answers, as long as that does: registries that share a store know
    the same, and those that do not would have instances come and go with every change between
    them. An empty answer is a reason to ask the others as well: a registry that was restarted
    without its memory has nothing to say against one that knows instances. Nothing is certain
    then unless all of them answer that no instance is left.

    :param sources: They, the preferred one first; at least one.
    :raises ValueError: There is none.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("several sources are one at least")
        self._sources = tuple(sources)
        self._current = 0
        self.name = ", ".join(source.name for source in self._sources)

    def close(self) -> None:
        """Begin anew with the one that answered last: its next answer is given at once."""
        for source in self._sources:
            source.close()

    def find(self, stopping: threading.Event) -> Found:
        """Return what the first of them answers that has instances, or else that answers.

        :raises SourceError: None of them answers; says why of each.
        """
        count = len(self._sources)
        failures: list[str] = []
        empty: list[tuple[int, Found]] = []
        for place in [(self._current + each) % count for each in range(count)]:
            source = self._sources[place]
            if place != self._current:
                source.close()  # it may wait for a change of what it said long ago
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
"""Seconds until all of them are asked again while none has instances."""
