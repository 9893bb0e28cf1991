"""The same message many times is told once in a while, with how often it was so."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from wsgigate.runtime import fork

__all__ = ["ChangeLog", "Repeated", "Trouble", "counted_again", "observing", "one_line", "outage"]


_LONGEST_TEXT = 300


class Repeated:
    """Counts what happens again and again, and tells of it now and then.

    :param tell: A logger's method.
    :param message: What it is given first: a format, for the count since the last time, and for
        what :meth:`again` is given.
    :param clock: Tells seconds; it never steps back.
    :param silence: For how many seconds nothing is told again.
    """

    def __init__(
        self,
        tell: Callable[..., object],
        message: str,
        clock: Callable[[], float],
        *,
        silence: float = 60.0,
    ) -> None:
        self.total = 0
        """How often it happened in all."""
        self.lasts = False
        """Whether it has happened since :meth:`over` was last called."""
        self._open = False  # whether it was told of since then
        self._tell = tell
        self._message = message
        self._clock = clock
        self._silence = silence
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        self._told = float("-inf")
        self._untold = 0

    def again(self, *arguments: object) -> None:
        """Count one more, and tell of it if the last time is long enough ago."""
        with self._lock:
            self.total += 1
            self.lasts = True
            self._untold += 1
            now = self._clock()
            if now - self._told < self._silence:
                return
            count, self._told, self._untold = self._untold, now, 0
            self._open = True
        self._tell(self._message, count, *arguments)

    def over(self, tell: Callable[..., object], message: str) -> None:
        """Take note that it happens no more, and tell of that where the log has it.

        :param tell: A logger's method.
        :param message: What it is given.
        """
        with self._lock:
            self.lasts = False
            told, self._open = self._open, False
        if told:
            tell(message)


class _Said(NamedTuple):
    """What is known of one subject: its room for lines, and what was held back.

    :ivar room: Lines it may have at once.
    :ivar at: When that was so.
    :ivar held: How many lines were held back since its last one.
    :ivar last: The last of those, with its level and arguments.
    """

    room: float
    at: float
    held: int = 0
    last: tuple[int, str, tuple[object, ...]] | None = None


class ChangeLog:
    """Logs what changes, and bounds what one flapping subject can write.

    A subject (an instance, a service) has *burst* lines at once, and one more every *period* /
    *burst* seconds. What exceeds that is counted; :meth:`flush`, or the subject's next line, logs
    the last of it with the count, so that the log always ends with the state that holds.

    :param logger: Where it is logged.
    :param burst: Lines of one subject at once.
    :param period: Seconds in which a subject has that many lines again.
    :param most: Subjects remembered; the one that was silent for longest is forgotten.
    :param clock: Seconds of a clock that never steps back.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        burst: int = 10,
        period: float = 60.0,
        most: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.due = float("inf")
        """When :meth:`flush` has something to log, by *clock*."""
        self._logger = logger
        self._burst = burst
        self._pause = period / burst
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._subjects: OrderedDict[str, _Said] = OrderedDict()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Make good what a thread of the parent may have held."""
        self._lock = threading.Lock()

    def log(self, level: int, subject: str, message: str, *args: object) -> None:
        """Log a change of *subject*, now or, if it had too many lines, later.

        :param level: A level of ``logging``.
        :param subject: What changes; its lines are counted together.
        :param message: A format for *args*.
        """
        if not self._logger.isEnabledFor(level):
            return
        with self._lock:
            now = self._clock()
            said = self._subjects.pop(subject, None) or _Said(self._burst, now)
            room = min(self._burst, said.room + max(0.0, now - said.at) / self._pause)
            if room < 1:
                self._subjects[subject] = _Said(room, now, said.held + 1, (level, message, args))
                self.due = min(self.due, now + (1 - room) * self._pause)
                return
            self._subjects[subject] = _Said(room - 1, now)
            if len(self._subjects) > self._most:
                self._subjects.popitem(last=False)
        if said.held:
            message, args = f"{message} (%d earlier changes were not logged)", (*args, said.held)
        self._logger.log(level, message, *args)

    def flush(self) -> None:
        """Log the last change of each subject that has room for it by now.

        To be called now and then; it costs nothing while no line is held back.
        """
        if self.due > self._clock():
            return
        ready = []
        with self._lock:
            now, self.due = self._clock(), float("inf")
            for subject, said in list(self._subjects.items()):
                room = min(self._burst, said.room + max(0.0, now - said.at) / self._pause)
                if said.last is None:
                    continue
                if room < 1:
                    self.due = min(self.due, now + (1 - room) * self._pause)
                    continue
                ready.append((said.last, said.held - 1))
                self._subjects[subject] = _Said(room - 1, now)
        for (level, message, args), more in ready:
            if more:
                message, args = f"{message} (%d earlier changes were not logged)", (*args, more)
            self._logger.log(level, message, *args)


class Trouble:
    """One kind of failure that lasts: logged when it begins, every minute, and when it is over.

    :param logger: Where it is logged.
    :param over: Logged at its end: a format for *args* and the seconds it lasted.
    :param level: The level at which it begins; its end is a warning then, so that whoever saw the
        one sees the other, or of the same level where that is lower.
    :param silence: Seconds between two lines while it lasts.
    :param clock: Seconds of a clock that never steps back.
    """

    def __init__(
        self,
        logger: logging.Logger,
        over: str,
        *args: object,
        level: int = logging.ERROR,
        silence: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.since: float | None = None
        """Since when it lasts, by *clock*; ``None`` while all is well."""
        self._logger = logger
        self._over = over
        self._args = args
        self._level = level
        self._silence = silence
        self._clock = clock
        self._logged = 0.0

    def failed(self, message: str, *args: object, traceback: Exception | None = None) -> None:
        """Take note that it fails, and why."""
        now = self._clock()
        if self.since is None:
            self.since = now
        elif now - self._logged < self._silence:
            return
        self._logged = now
        self._logger.log(self._level, message, *args, exc_info=traceback)

    def ended(self) -> None:
        """Take note that it works; costs nothing while it did before."""
        since = self.since
        if since is not None:
            self.since = None
            level = min(self._level, logging.WARNING)
            self._logger.log(level, self._over, *self._args, max(0.0, self._clock() - since))


def one_line(text: object) -> str:
    """Return *text*, which another party has made, as it may stand in a log: no character in it
    begins a line or drives a terminal, and it is not long."""
    shown = str(text)[: _LONGEST_TEXT + 1]
    if len(shown) > _LONGEST_TEXT:
        shown = shown[: _LONGEST_TEXT - 3] + "..."
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def counted_again(name: str) -> str:
    """Return the message that the limit *name* is counted again."""
    return f"the limit {name!r} is counted again"


def outage(name: str, *, passes: bool) -> str:
    """Return the message that the limit *name* cannot be counted."""
    became = "passed" if passes else "were refused"
    return (
        f"the limit {name!r} cannot be counted, %s requests {became} since the last such message: "
        "%s"
    )


def observing(name: str) -> str:
    """Return the message that the limit *name* would have refused."""
    return (
        f"the limit {name!r}, which only observes, would have refused %s requests since the last "
        "such message; the last: %s"
    )
