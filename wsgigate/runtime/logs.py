"""The log of the package: its level and handler, and bounds on the lines about one thing."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from wsgigate.runtime import fork
from wsgigate.runtime.clocks import real
from wsgigate.runtime.threads import TIMER

__all__ = [
    "LEVELS",
    "ChangeLog",
    "EventLog",
    "FailureLog",
    "JsonFormatter",
    "RepeatLog",
    "ThrottledLog",
    "adopt",
    "one_line",
    "set_up",
]


LEVELS = ("debug", "info", "warning", "error", "critical")
"""The names of the levels in the configuration file and on the command line."""

FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s"

_TIMES = "%Y-%m-%d %H:%M:%S %z"

_logger = logging.getLogger("wsgigate")


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object in ASCII, which no value in it can tear.

    A record's fields, such as ``request_id`` and ``trace_id``, are members of the object: those of
    the mapping in its attribute ``wsgigate``.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        fields = getattr(record, "wsgigate", None)
        if isinstance(fields, Mapping):
            # no field replaces a member that every line has
            line |= {str(name): each for name, each in fields.items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        # DEL is the only control character that JSON does not require to be escaped.
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")


def set_up(level: str | None = None, *, as_json: bool = False) -> None:
    """Set up logging for this process, unless the application has done so.

    A level that the package's logger already has (set by a server or in Python) stays. Where no
    handler would receive its records, they go to the standard error; Python alone would drop all
    below a warning. Handlers of the application stay as they are.

    :param level: One of :data:`LEVELS`. ``None``: ``info`` if this function adds the handler, else
        the application's own level.
    :param as_json: Whether the handler that this function adds writes JSON.
    """
    if level is not None and _logger.level == logging.NOTSET:
        _logger.setLevel(level.upper())
    if not _logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(FORMAT, _TIMES))
        _logger.addHandler(handler)
        if _logger.level == logging.NOTSET:
            _logger.setLevel(logging.INFO)


def adopt(handlers: Sequence[logging.Handler], level: str | int) -> None:
    """Log the package's records through a server's *handlers* at the server's *level*.

    Handlers set up by the application, and a level of the package's logger, stay as they are.
    """
    if not _logger.hasHandlers():
        _logger.handlers = list(handlers)
        _logger.propagate = False
    if _logger.level == logging.NOTSET:
        _logger.setLevel(level.upper() if isinstance(level, str) else level)


# Bounded logging of repeated messages, changes of state, and failures that last.

_LONGEST_TEXT = 300


class ThrottledLog:
    """Logs a repeated message at most once a minute, with a count.

    :param write: A logger's method, such as ``logger.warning``.
    :param message: The format passed to *write*, for the number of events since the last record and
        the arguments of :meth:`log`.
    :param clock: Returns seconds.
    :param silence: Seconds between two records.
    """

    def __init__(
        self,
        write: Callable[..., object],
        message: str,
        clock: Callable[[], float],
        *,
        silence: float = 60.0,
    ) -> None:
        self.total = 0
        """Number of events in all."""
        self.ongoing = False
        """Whether an event was counted since :meth:`resolved` was last called."""
        self._open = False  # whether a record was written since then
        self._write = write
        self._message = message
        self._clock = clock
        self._silence = silence
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        self._written_at = float("-inf")
        self._unwritten = 0

    def log(self, *arguments: object) -> None:
        """Count one event, and write a record unless the last one was just written."""
        count = self.due()
        if count:
            self._write(self._message, count, *arguments)

    def due(self) -> int:
        """Count one event; return the events since the last record if one is due, else 0."""
        with self._lock:
            self.total += 1
            self.ongoing = True
            self._unwritten += 1
            now = self._clock()
            if 0 <= now - self._written_at < self._silence:  # it may be a clock that is set back
                return 0
            count, self._written_at, self._unwritten = self._unwritten, now, 0
            self._open = True
        return count

    def resolved(self, write: Callable[..., object], message: str) -> None:
        """Note that the condition is over, and log that if its beginning was logged.

        :param write: A logger's method.
        :param message: The message passed to it.
        """
        with self._lock:
            self.ongoing = False
            was_logged, self._open = self._open, False
        if was_logged:
            write(message)


class _Subject(NamedTuple):
    """The token bucket of one subject, and the line that was held back.

    :ivar room: Lines that it may log at once, as of *at*.
    :ivar at: Time of the last update.
    :ivar held: Number of lines held back since the last one that was logged.
    :ivar last: The last line that was held back: its level, message and arguments.
    """

    room: float
    at: float
    held: int = 0
    last: tuple[int, str, tuple[object, ...]] | None = None


class ChangeLog:
    """Logs changes of state, with a bound on the lines of one flapping subject.

    A subject (an instance, a service) may log *burst* lines at once, and one more every *period* /
    *burst* seconds. What exceeds that is counted; :meth:`flush`, or the subject's next line, logs
    the last of these lines with the count, so the log always ends with the current state.

    :param logger: The logger that receives the lines.
    :param burst: Lines that one subject may log at once.
    :param period: Seconds after which a silent subject may log *burst* lines again.
    :param max_subjects: Maximum number of subjects remembered; the one silent for longest is
        forgotten.
    :param clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        burst: int = 10,
        period: float = 60.0,
        max_subjects: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.due = float("inf")
        """Time of *clock* at which :meth:`flush` has a line to log."""
        self._logger = logger
        self._burst = burst
        self._pause = period / burst
        self._max_subjects = max_subjects
        self._clock = clock
        self._lock = threading.Lock()
        self._subjects: OrderedDict[str, _Subject] = OrderedDict()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may have held."""
        self._lock = threading.Lock()

    def log(self, level: int, subject: str, message: str, *args: object) -> None:
        """Log a change of *subject* now, or later if it has logged too many lines.

        :param level: A level of ``logging``.
        :param subject: Names what changes; its lines are counted together.
        :param message: A format for *args*.
        """
        if not self._logger.isEnabledFor(level):
            return
        with self._lock:
            now = self._clock()
            state = self._subjects.pop(subject, None) or _Subject(self._burst, now)
            room = min(self._burst, state.room + max(0.0, now - state.at) / self._pause)
            if room < 1:
                self._subjects[subject] = _Subject(
                    room, now, state.held + 1, (level, message, args)
                )
                self.due = min(self.due, now + (1 - room) * self._pause)
                return
            self._subjects[subject] = _Subject(room - 1, now)
            if len(self._subjects) > self._max_subjects:
                self._subjects.popitem(last=False)
        if state.held:
            message, args = f"{message} (%d earlier changes were not logged)", (*args, state.held)
        self._logger.log(level, message, *args)

    def flush(self) -> None:
        """Log the last held-back change of each subject that may log again.

        Call it periodically; it costs nothing while no line is held back.
        """
        if self.due > self._clock():
            return
        ready = []
        with self._lock:
            now, self.due = self._clock(), float("inf")
            for subject, state in list(self._subjects.items()):
                room = min(self._burst, state.room + max(0.0, now - state.at) / self._pause)
                if state.last is None:
                    continue
                if room < 1:
                    self.due = min(self.due, now + (1 - room) * self._pause)
                    continue
                ready.append((state.last, state.held - 1))
                self._subjects[subject] = _Subject(room - 1, now)
        for (level, message, args), more in ready:
            if more:
                message, args = f"{message} (%d earlier changes were not logged)", (*args, more)
            self._logger.log(level, message, *args)


class FailureLog:
    """Logs one kind of lasting failure: when it begins, once a minute, and when it is over.

    :param logger: The logger that receives the records.
    :param over: Format of the record at the end, for *args* and the duration in seconds.
    :param level: Level of the failure. The end is logged as a warning, or at *level* if that is
        lower, so that a handler that shows the beginning also shows the end.
    :param silence: Seconds between two records while the failure lasts.
    :param clock: Returns monotonic seconds.
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
        """Time of *clock* at which the failure began; ``None`` without one."""
        self._logger = logger
        self._over = over
        self._args = args
        self._level = level
        self._silence = silence
        self._clock = clock
        self._logged = 0.0

    def failed(self, message: str, *args: object, traceback: Exception | None = None) -> None:
        """Record a failure, and log it if it is the first or *silence* has passed."""
        now = self._clock()
        if self.since is None:
            self.since = now
        elif now - self._logged < self._silence:
            return
        self._logged = now
        self._logger.log(self._level, message, *args, exc_info=traceback)

    def ended(self) -> None:
        """Record a success, and log the end of a failure; without one it costs nothing."""
        since = self.since
        if since is not None:
            self.since = None
            level = min(self._level, logging.WARNING)
            self._logger.log(level, self._over, *self._args, max(0.0, self._clock() - since))


class RepeatLog:
    """Logs each of a few messages at most once in a while, whatever its arguments.

    :param logger: The logger that receives the records.
    :param level: Their level.
    :param silence: Seconds between two records of one message.
    :param clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        level: int,
        *,
        silence: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._level = level
        self._silence = silence
        self._clock = clock
        self._logged: dict[str, float] = {}  # by format, of which a program has a few

    def log(self, message: str, *args: object, traceback: Exception | None = None) -> bool:
        """Log *message* unless it was just logged; return whether it was logged now."""
        now = self._clock()
        if now - self._logged.get(message, float("-inf")) < self._silence:
            return False
        self._logged[message] = now
        self._logger.log(self._level, message, *args, exc_info=traceback)
        return True


@dataclass
class _EventKind:
    """The events of one kind since its first one.

    :ivar first: When it began.
    :ivar last: When its last event was.
    :ivar written: When a record was last written.
    :ivar held: Events since then, which have no record of their own.
    :ivar event: The last event.
    """

    first: float
    last: float
    written: float
    event: Any
    held: int = 0
    total: int = 1


class EventLog:
    """Logs events by their kind: no kind is missed, and no flood of events fills a disk.

    The first event of a kind is written at once. While more of them come, the last one is written
    once every *silence* seconds, with the number of those that were held back; when none has come
    for that long, *over* is called with the number in all. A kind that had one event only ends
    without a record. Kinds are remembered as long as they last, and at most *most* at a time:
    further ones are one kind. What is held back at the end of the process is written then.

    :param write: Called with an event and how many events of its kind were held back before it.
    :param over: Called with the last event of a kind that has ended, the number of its events and
        the seconds from the first to the last.
    :param silence: Seconds between two records of a kind.
    :param most: Maximum number of kinds remembered.
    :param clock: Returns monotonic seconds.
    :param later: Calls a function after a number of seconds. Default: the timer of the process,
        except in a test, whose last records would turn up in a later one.
    """

    def __init__(
        self,
        write: Callable[[Any, int], object],
        over: Callable[[Any, int, float], object],
        *,
        silence: float = 60.0,
        most: int = 256,
        clock: Callable[[], float] = real,
        later: Callable[[float, Callable[[], object]], object] | None = None,
    ) -> None:
        self._write = write
        self._over = over
        self._silence = silence
        self._most = most
        self._clock = clock
        self._later = later
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Begin anew: the kinds of the parent process are its own."""
        self._lock = threading.Lock()
        self._kinds: dict[Hashable, _EventKind] = {}
        self._scheduled = False
        self._forget_exit: Callable[[], object] | None = None

    def add(self, kind: Hashable, event: object) -> bool:
        """Count an event, and write it unless one of its kind was just written.

        :returns: Whether it was written.
        """
        held = self.due(kind, event)
        if held is None:
            return False
        self._write(event, held)
        return True

    def due(self, kind: Hashable, event: object) -> int | None:
        """Count an event; return how many were held back before it if the caller is to write it.

        For events with a traceback, which must not be kept: *event* is what :meth:`flush` writes.

        :returns: ``None`` if one of its kind was just written.
        """
        with self._lock:
            now = self._clock()
            if kind not in self._kinds and len(self._kinds) >= self._most:
                self._forget(now)
                if len(self._kinds) >= self._most:
                    kind = None
            state = self._kinds.get(kind)
            if state is None:
                self._kinds[kind] = _EventKind(now, now, now, event)
                return 0
            state.last, state.event = now, event
            state.total += 1
            self._schedule()
            if now - state.written < self._silence:
                state.held += 1
                return None
            held, state.held, state.written = state.held, 0, now
            return held

    def _forget(self, now: float) -> None:
        """Forget the kinds that had one event only, which no timer ends."""
        for kind, state in list(self._kinds.items()):
            if state.total == 1 and now - state.last >= self._silence:
                del self._kinds[kind]

    def flush(self) -> None:
        """Write the records that are due: of kinds that go on, and of those that are over."""
        going: list[tuple[object, int]] = []
        ended: list[tuple[object, int, float]] = []
        with self._lock:
            self._scheduled = False
            now = self._clock()
            for kind, state in list(self._kinds.items()):
                if now - state.last >= self._silence:
                    del self._kinds[kind]
                    if state.total > 1:
                        ended.append((state.event, state.total, state.last - state.first))
                elif state.held and now - state.written >= self._silence:
                    going.append((state.event, state.held - 1))
                    state.held, state.written = 0, now
            if any(state.total > 1 for state in self._kinds.values()):
                self._schedule()
            elif self._forget_exit is not None:  # nothing is held back
                self._forget_exit()
                self._forget_exit = None
        for event, held in going:
            self._write(event, held)
        for event, total, lasted in ended:
            self._over(event, total, lasted)

    def close(self) -> None:
        """Write the last event of each kind that has held some back, and forget all kinds."""
        with self._lock:
            held = [state for state in self._kinds.values() if state.held]
            self._kinds = {}
        for state in held:
            self._write(state.event, state.held - 1)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            if self._later is not None:
                self._later(self._silence, self.flush)
            elif not fork.tested():
                TIMER.after(self._silence, self.flush)
                if self._forget_exit is None:
                    self._forget_exit = fork.at_exit(self.close)


def one_line(text: object) -> str:
    """Return *text*, which comes from outside, in a form that is safe in a log.

    No character in it begins a line or controls a terminal, and it has at most 300 characters.
    """
    shown = str(text)[: _LONGEST_TEXT + 1]
    if len(shown) > _LONGEST_TEXT:
        shown = shown[: _LONGEST_TEXT - 3] + "..."
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
