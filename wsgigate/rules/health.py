"""The rules of active health checks: requests, schedule and verdicts.

Each check yields one :class:`CheckResult`; :func:`record` returns the new :class:`Health`. The
first check decides at once, so that a service is usable after one response; later the verdict
changes only after several equal results in a row, so that one lost packet does not change it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import unquote

from wsgigate.rules.arguments import OneOf, Pattern, Range, Seconds

__all__ = [
    "MOST_BODY",
    "CheckResult",
    "Health",
    "HealthCheck",
    "first_due",
    "judge",
    "next_due",
    "record",
]

JITTER = 0.2
"""Maximum random deviation from the interval, as a share of it."""

SPREAD = 1.0
"""Seconds over which the first checks of many instances are spread."""

DEFAULT_STATUSES = range(200, 300)
"""The status codes of a healthy response."""

MOST_BODY = 65_536
"""Bytes of a response that are read."""

_LONGEST = 86_400.0
_LONGEST_TEXT = 1_024
_MOST_IN_A_ROW = 1_000
_MOST_BYTES = 1_024
_BYTES = 256
_LATEST = 253_402_300_800.0  # the year 10000, which a date cannot represent
_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
"""The methods that a check may use; those with content are sent with none."""

_MOST_FIELDS = 64
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(
    r"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]{0,4094}[\x21-\x7e\x80-\xff])?)?"
)
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_OWN_FIELDS = frozenset(
    [
        *("host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"),
        *("expect", "keep-alive", "proxy-connection", "proxy-authorization"),
    ]
)
_WORDS = re.compile(r"[\x20-\x7e]{0,64}")


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The active health check of the instances of a service.

    :param path: The path to probe, with an optional query. It is relative to the instance: a path
        that could name another host or leave a prefix is rejected. ``None`` sends no request: an
        instance that accepts a connection is healthy.
    :param interval: The time from one check of an instance to the next, in seconds.
    :param timeout: The time limit for one check in all, in seconds.
    :param healthy_after: Consecutive passed checks before an unhealthy instance is used again.
    :param unhealthy_after: Consecutive failed checks before a healthy instance is removed from
        rotation.
    :param statuses: The status codes of a healthy response. Default: 200 to 299.
    :param contains: A text that a healthy response contains in its first 64 KiB. Default: any body.
    :param host: ``HOST[:PORT]`` to send in ``Host``. Default: the instance's host and port.
    :param fields: Further request fields by name, such as ``Authorization``; their values do not
        appear in logs and errors.
    :param method: The request method.
    :param port: The port to connect to. Default: the instance's port.
    :param scheme: The scheme to probe with, ``http`` or ``https``. Default: the instance's scheme.
    :raises ValueError: An argument is invalid; the message names it.
    """

    path: Annotated[str, Pattern(r"/.*", 'a path such as "/health"')] | None
    interval: Seconds = 10.0
    timeout: Seconds = 2.0
    healthy_after: Annotated[int, Range(1, 100)] = 2
    unhealthy_after: Annotated[int, Range(1, 100)] = 3
    statuses: Annotated[Collection[Annotated[int, Range(200, 599)]], Range(1)] = DEFAULT_STATUSES
    contains: str = ""
    host: Annotated[str, Pattern("", 'a name such as "shop.example"')] = ""
    fields: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    method: Annotated[str, Pattern("", 'a method such as "GET" or "HEAD"')] = "GET"
    port: Annotated[int | None, Range(1, 65535)] = None
    scheme: Annotated[str, OneOf(("http", "https"))] | None = None

    def __post_init__(self) -> None:
        if self.path is not None:
            _check_path(self.path)
        else:
            self._check_bare()
        self._check_request()
        for status in self.statuses:
            if type(status) is not int or not 200 <= status <= 599:
                raise ValueError(f"statuses are numbers from 200 to 599, got {status!r}")
        if len(self.contains) > _LONGEST_TEXT:
            raise ValueError(f"contains has at most {_LONGEST_TEXT} characters")
        for name in ("interval", "timeout"):
            seconds = getattr(self, name)
            if not 0 < seconds <= _LONGEST:
                raise ValueError(f"{name} is more than 0 s and at most a day, got {seconds!r}")
        for name in ("healthy_after", "unhealthy_after"):
            count = getattr(self, name)
            if type(count) is not int or not 1 <= count <= _MOST_IN_A_ROW:
                raise ValueError(f"{name} is 1 to {_MOST_IN_A_ROW} checks, got {count!r}")

    def _check_bare(self) -> None:
        """Reject the settings that need a request: without a path only a connection is made."""
        for name, is_given in (
            ("contains", bool(self.contains)),
            ("statuses", self.statuses is not DEFAULT_STATUSES),
            ("host", bool(self.host)),
            ("fields", bool(self.fields)),
            ("method", self.method != "GET"),
            ("scheme", self.scheme is not None),
        ):
            if is_given:
                raise ValueError(f"{name} is for a check that has a path: no other gets an answer")

    def _check_request(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: is one of {', '.join(METHODS)}, got {self.method!r}")
        if self.contains and self.method == "HEAD":
            raise ValueError("contains: is not for HEAD, whose answers have no content")
        if self.host and not _AUTHORITY.fullmatch(self.host):
            raise ValueError(
                f'host: is a name such as "shop.example" or "shop.example:8080", got {self.host!r}'
            )
        if self.port is not None and (type(self.port) is not int or not 0 < self.port < 65536):
            raise ValueError(f"port: is 1 to 65535, got {self.port!r}")
        if self.scheme not in (None, "http", "https"):
            raise ValueError(f'scheme: is "http" or "https", got {self.scheme!r}')
        if len(self.fields) > _MOST_FIELDS:
            raise ValueError(f"fields: has at most {_MOST_FIELDS} fields, got {len(self.fields)}")
        seen: set[str] = set()
        for name, value in self.fields.items():
            lower = name.lower() if isinstance(name, str) else ""
            if not isinstance(name, str) or not _TOKEN.fullmatch(name) or lower in seen:
                raise ValueError(f"fields: has names of request fields, each once, got {name!r}")
            if lower in _OWN_FIELDS:
                cure = "give host instead" if lower == "host" else "the check sends its own"
                raise ValueError(f"fields: must not have {name}: {cure}")
            if not isinstance(value, str) or not _VALUE.fullmatch(value):
                raise ValueError(f"fields: the value of {name} is one line of visible characters")
            seen.add(lower)


def _check_path(path: str) -> None:
    if not path.startswith("/"):
        raise ValueError(f"a health check's path starts with /, got {path!r}")
    if not _PATH.fullmatch(path):
        raise ValueError(f"a health check's path has a character that no path has, got {path!r}")
    plain = unquote(path.partition("?")[0], errors="replace")
    if "//" in plain or _CONTROL.search(plain):
        raise ValueError(f"a health check's path has no //, no \\ and no controls, got {path!r}")
    if not {".", ".."}.isdisjoint(plain.split("/")):
        raise ValueError(f"a health check's path has no dot segments, got {path!r}")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check.

    :param ok: Whether the response was that of a healthy instance.
    :param status: The status code of the response; ``None`` without one.
    :param response_time: The duration, as the instance reported it or as ``1.53ms``.
    :param error: The error in a few words, without host names.
    """

    ok: bool
    status: int | None = None
    response_time: str = "N/A"
    error: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """The health of one instance. Moments are seconds of the store's clock.

    :param healthy: The verdict.
    :param since: When the verdict last changed.
    :param streak: The number of checks in a row with the result of the last one.
    :param checked: When the last check ended.
    :param last: The result of the last check, which may differ from the verdict.
    """

    healthy: bool
    since: float
    streak: int
    checked: float
    last: CheckResult

    def to_bytes(self) -> bytes:
        """Return the record as the bytes that workers share.

        Nearly all records have the same length, so that a full store can replace each by the next.
        """
        last = [self.last.ok, self.last.status, self.last.response_time, self.last.error]
        members = [self.healthy, self.since, self.streak, self.checked, last]
        return json.dumps(members, separators=(",", ":")).encode("ascii").ljust(_BYTES)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Health:
        """Return the record that :meth:`to_bytes` wrote.

        :raises ValueError: *raw* is not such a record.
        """
        if len(raw) > _MOST_BYTES:
            raise ValueError("a health record is not that long")
        try:
            healthy, since, streak, checked, last = json.loads(raw)
            ok, status, response_time, error = last
        except (ValueError, TypeError, RecursionError) as problem:
            raise ValueError("not a health record") from problem
        if not (
            type(healthy) is bool
            and type(ok) is bool
            and _is_moment(since)
            and _is_moment(checked)
            and type(streak) is int
            and 1 <= streak <= _MOST_IN_A_ROW
            and (status is None or (type(status) is int and 100 <= status <= 999))
            and all(isinstance(t, str) and _WORDS.fullmatch(t) for t in (response_time, error))
        ):
            raise ValueError("not a health record")
        return cls(healthy, since, streak, checked, CheckResult(ok, status, response_time, error))


def _is_moment(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < _LATEST  # type: ignore[operator]


def record(health: Health | None, outcome: CheckResult, now: float, check: HealthCheck) -> Health:
    """Return the health of an instance after another check.

    :param health: Its health before; ``None`` before the first check.
    """
    if health is None:
        return Health(outcome.ok, now, 1, now, outcome)
    streak = min(health.streak + 1, _MOST_IN_A_ROW) if outcome.ok == health.last.ok else 1
    needed = check.healthy_after if outcome.ok else check.unhealthy_after
    if outcome.ok == health.healthy or streak < needed:
        return Health(health.healthy, health.since, streak, now, outcome)
    return Health(outcome.ok, now, streak, now, outcome)


def judge(check: HealthCheck, status: int, response_time: str, body: bytes) -> CheckResult:
    """Return the result of a check whose response has *status* and *body*.

    :param body: The part of the body that was read.
    """
    error = ""
    if status not in check.statuses:
        error = "Redirected" if 300 <= status < 400 else f"Status {status}"
    elif check.contains and check.contains.encode() not in body:
        error = "Unexpected content"
    return CheckResult(not error, status, response_time, error)


def next_due(now: float, interval: float, chance: float) -> float:
    """Return when the check after one at *now* is due: an interval later, 20 % more or less.

    :param chance: A number in [0, 1).
    """
    return now + interval * (1 - JITTER + 2 * JITTER * chance)


def first_due(now: float, interval: float, chance: float) -> float:
    """Return when the first check of an instance is due: soon, spread over :data:`SPREAD`.

    :param chance: A number in [0, 1).
    """
    return now + min(interval, SPREAD) * chance
