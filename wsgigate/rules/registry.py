"""The registry's rules: its entries and their limits, leases, and self-preservation.

Theory of operation
-------------------

Leases

- An entry (:class:`Registered`) has a lease: heartbeats renew it. After ``unhealthy_after`` seconds
  of silence the entry is listed as unhealthy, after ``remove_after`` seconds it may be removed.
  An instance that registers with a longer ``lease`` has both moved by the difference.
- Moments are seconds of the store's clock, never of an instance or a worker, as their clocks may
  differ.
- Silence counts only while the registry could have received a heartbeat. After a restart, an outage
  of the store or a change of the leading worker, heartbeats may have been lost: :func:`was_away`
  detects the gap between two rounds, and :func:`silent_since` subtracts it. Without that, a
  registry that was down for longer than ``remove_after`` would remove every instance when it comes
  back.
- The heartbeat is stored in front of the JSON, in 8 bytes: a renewal replaces these and parses
  nothing.

Self-preservation

- When many instances fall silent at once, a fault of the network or of the registry is more likely
  than that all of them failed. So while more than the share ``preserve`` of all instances is
  silent, at most that share (and at least one) is removed per minute; Eureka calls that
  self-preservation. Each service loses the same share of its instances, its last one last.
- Instances that were removed within the present minute count as silent and as present
  (:class:`Evictions`). Otherwise each removal would lower the share of silent ones until
  self-preservation ends, and the rest would be removed at once.

Checks

- An instance with checks that the registry carries out itself sends no heartbeats: each
  check renews its lease. Their verdict is stored beside the instance's status, and
  :attr:`Registered.state` combines both.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from wsgigate.rules.arguments import Fraction, Seconds
from wsgigate.rules.health import HealthCheck
from wsgigate.rules.registry_checks import RegisteredCheck

__all__ = [
    "BODY",
    "LONG_ABSENCE",
    "METADATA_BYTES",
    "Evictions",
    "Invalid",
    "LeaseRules",
    "Registered",
    "Status",
    "check_host",
    "check_id",
    "check_service",
    "evictions",
    "is_preserving",
    "parse",
    "parse_status",
    "round_time",
    "short_absence",
    "silent_since",
    "was_away",
]


# json.dumps() with these separators makes an encoder for each call
_encode = json.JSONEncoder(separators=(",", ":")).encode

_CACHED = 4096
"""The number of hosts and paths whose check is remembered."""


# Parsing of registration documents.

METADATA_BYTES = 4096
"""The most bytes of the metadata, as JSON."""

_METADATA_MEMBERS = 64

_METADATA_DEPTH = 4

_MOST_WEIGHT = 65_535

_MOST_TAGS = 256

_LONGEST_TAG = 4096

TAGS_BYTES = 16 * 1024
"""The most bytes of all tags of an instance together, as JSON."""

_MEMBERS = frozenset(
    [
        *("serviceName", "instanceId", "host", "port", "scheme", "weight", "status", "version"),
        *("zone", "tags", "metadata", "healthCheckPath"),
    ]
)

_REQUIRED = ("serviceName", "instanceId", "host", "port")

_NAME = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")

_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_WORD = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,62}[\x21-\x7e])?")


def parse(document: Mapping[str, Any], service: str | None = None) -> Registered:
    """Return the entry that *document* describes.

    Its members are ``serviceName``, ``instanceId``, ``host`` and ``port``; optional are ``scheme``,
    ``weight``, ``status``, ``version``, ``zone``, ``tags``, ``healthCheckPath`` and ``metadata``. A
    ``version``, ``zone`` or ``healthCheckPath`` may be a member of the metadata instead.

    :param service: The name of the service; the document's ``serviceName`` is then optional.
    :raises Invalid: A member is missing, unknown, or out of its limits; the error names it.
    """
    for name in document:
        if name not in _MEMBERS:
            raise Invalid(str(name)[:64], "there is no such member")
    given = document if service is None else {"serviceName": service, **document}
    for name in _REQUIRED:
        if given.get(name) in (None, "", 0):
            raise Invalid(name, "serviceName, instanceId, host, and port are required!")
    if service is not None and given["serviceName"] != service:
        raise Invalid("serviceName", "is another service's")
    metadata = _metadata(document.get("metadata"))

    def member(name: str, read: Callable[[str, Any], Any], default: Any = None) -> Any:
        value = document.get(name)
        return default if value is None else read(name, value)

    def either(name: str, read: Callable[[str, Any], str]) -> str | None:
        value = document.get(name)
        if value is not None:
            return read(name, value)
        value = metadata.get(name)
        return read(f"metadata.{name}", value) if isinstance(value, str) and value else None

    return Registered(
        check_service(given["serviceName"]),
        check_id(given["instanceId"]),
        check_host(given["host"]),
        _integer("port", given["port"], 1, 65_535),
        scheme=member("scheme", _scheme, "http"),
        weight=member("weight", lambda name, value: _integer(name, value, 0, _MOST_WEIGHT), 1),
        status=member("status", lambda name, value: parse_status(value), Status.UP),
        version=either("version", _word),
        zone=either("zone", _word),
        tags=member("tags", _tags, ()),
        metadata=metadata,
        health_check_path=either("healthCheckPath", _path),
    )


def parse_status(value: object) -> Status:
    """Return the status that *value* names.

    :raises Invalid: There is no such status.
    """
    try:
        return Status(value)  # type: ignore[arg-type]
    except ValueError:
        raise Invalid("status", f"one of {', '.join(Status)}") from None


def _integer(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise Invalid(name, f"a whole number from {least} to {most}")
    return value


def _scheme(name: str, value: object) -> str:
    if value != "http" and value != "https":
        raise Invalid(name, '"http" or "https"')
    return str(value)


def _word(name: str, value: object) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise Invalid(name, "1 to 64 printable ASCII characters, no space first or last")
    return value


def _tags(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MOST_TAGS:
        raise Invalid(name, f"a list of at most {_MOST_TAGS} tags")
    for tag in value:
        # long, because Traefik reads whole routing rules from tags
        if not isinstance(tag, str) or not 0 < len(tag) <= _LONGEST_TAG or _NO_TEXT.search(tag):
            raise Invalid(
                name, f"each tag a text of 1 to {_LONGEST_TAG} characters, no control characters"
            )
    if len(json.dumps(value)) > TAGS_BYTES:
        raise Invalid(name, f"at most {TAGS_BYTES} bytes of JSON for all tags together")
    return tuple(dict.fromkeys(value))


def _path(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise Invalid(name, "a path of at most 256 characters")
    try:
        _check_path(value)
    except ValueError as error:
        raise Invalid(name, str(error)) from None
    return value


@lru_cache(_CACHED)
def _check_path(path: str) -> None:
    HealthCheck(path)


def _metadata(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid("metadata", "an object")
    try:
        _check_tree(value, _METADATA_DEPTH)
        encoded = _encode(value)
    except (RecursionError, TypeError, ValueError) as error:
        if isinstance(error, Invalid):
            raise
        raise Invalid("metadata", "has a value that is no JSON") from None
    if len(encoded) > METADATA_BYTES:
        raise Invalid("metadata", f"at most {METADATA_BYTES} bytes of JSON")
    return value


def _check_tree(value: object, depth: int) -> None:
    """Reject nesting deeper than *depth*, control characters, and names that begin with ``__``."""
    if isinstance(value, dict):
        if depth == 0:
            raise Invalid("metadata", f"at most {_METADATA_DEPTH} levels deep")
        if len(value) > _METADATA_MEMBERS:
            raise Invalid("metadata", f"at most {_METADATA_MEMBERS} members")
        for name, item in value.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name[:2] == "__":
                raise Invalid(
                    "metadata",
                    "names of 1 to 128 printable ASCII characters, not beginning with __",
                )
            _check_tree(item, depth - 1)
    elif isinstance(value, list):
        if depth == 0:
            raise Invalid("metadata", f"at most {_METADATA_DEPTH} levels deep")
        for item in value:
            _check_tree(item, depth - 1)
    elif isinstance(value, str):
        if not value.isprintable():
            raise Invalid("metadata", "texts without control characters")
    elif isinstance(value, float) and not math.isfinite(value):
        raise Invalid("metadata", "numbers that are finite")


# Leases and self-preservation.

MINUTE = 60.0
"""Seconds in which at most the share ``preserve`` is removed; ``remove_after`` where shorter."""


class Evictions(NamedTuple):
    """The removals within the present minute of self-preservation.

    :ivar since: When the minute began.
    :ivar gone: The number of instances removed in it.
    """

    since: float = 0.0
    gone: int = 0


@dataclass(frozen=True)
class LeaseRules:
    """The times of a lease, and the limit of self-preservation.

    :param heartbeat: The interval of heartbeats, in seconds.
    :param unhealthy_after: The time without heartbeats after which an instance is unhealthy, in
        seconds.
    :param remove_after: The time without heartbeats after which an instance is removed, in seconds.
    :param preserve: Self-preservation: while a larger fraction of all instances sends no
        heartbeats, at most this fraction, and at least one, is removed per minute. 1 removes all of
        them at once.
    :raises ValueError: An argument is invalid; the message names it.
    """

    heartbeat: Seconds = 10.0
    unhealthy_after: Seconds = 30.0
    remove_after: Seconds = 90.0
    preserve: Fraction = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat <= 3600:
            raise ValueError(f"heartbeat is more than 0 and at most 3600 s, got {self.heartbeat}")
        if not self.heartbeat < self.unhealthy_after <= 86_400:
            raise ValueError(
                f"unhealthy_after is more than a heartbeat and at most a day, "
                f"got {self.unhealthy_after}"
            )
        if not self.unhealthy_after <= self.remove_after <= 86_400:
            raise ValueError(
                "remove_after is at least unhealthy_after and at most a day, "
                f"got {self.remove_after}"
            )
        if not 0 <= self.preserve <= 1:
            raise ValueError(f"preserve is a share from 0 to 1, got {self.preserve}")

    def recent(self, state: Evictions, now: float) -> int:
        """Return how many were removed in the present minute, or within ``remove_after`` seconds
        where that is shorter."""
        return state.gone if 0 <= now - state.since < min(MINUTE, self.remove_after) else 0


LONG_ABSENCE = 10.0
"""Seconds without a round after which the registry counts as absent in any case."""

_ROUNDS = 3


def round_time(rules: LeaseRules) -> float:
    """Return the seconds between two rounds of the worker that expires leases."""
    return min(1.0, rules.heartbeat / 2)


def short_absence(rules: LeaseRules) -> float:
    """Return the seconds without a round after which the registry may have been absent."""
    return min(LONG_ABSENCE, _ROUNDS * round_time(rules))


def was_away(gap: float, rules: LeaseRules, *, steady: bool) -> bool:
    """Return whether heartbeats may have been lost for *gap* seconds, which then are no silence.

    A round of the worker that expires leases may take some seconds: that is no absence, as other
    threads accept heartbeats during it. After any other gap (the registry was restarted, its store
    failed, another worker took over) some heartbeats may have been lost, so a shorter gap counts.

    :param gap: Seconds of the store's clock from the beginning of the last round to this one.
    :param steady: Whether the same worker did both rounds, without a pause in between.
    """
    return gap > (LONG_ABSENCE if steady else short_absence(rules))


def silent_since(last_heartbeat: float, away: Iterable[tuple[float, float]]) -> float:
    """Return since when silence counts: *last_heartbeat*, later by the registry's absences.

    :param away: The periods in which the registry was absent, in order: their begin and end.
    """
    return last_heartbeat + sum(
        max(0.0, until - max(since, last_heartbeat)) for since, until in away
    )


def is_preserving(silent: int, count: int, rules: LeaseRules) -> bool:
    """Return whether so many instances are silent that self-preservation limits removals.

    :param silent: How many of *count* instances sent no heartbeat for ``unhealthy_after``.
    """
    return silent > _allowed(count, rules)


def _allowed(count: int, rules: LeaseRules) -> int:
    return max(1, int(rules.preserve * count))


def evictions(
    entries: Sequence[Registered],
    now: float,
    rules: LeaseRules,
    state: Evictions,
    sizes: Mapping[str, int] | None = None,
) -> tuple[tuple[Registered, ...], Evictions]:
    """Return the expired entries to remove now, and the new state.

    :param entries: At least the entries that are silent.
    :param state: The state that the last call returned.
    :param sizes: The number of instances of each service. Default: that of *entries*.
    """
    if sizes is None:
        sizes = Counter(entry.service for entry in entries)
    count = sum(sizes.values())
    ages = [(now - entry.silent_since, entry) for entry in entries]
    over = sorted(
        ((age, entry) for age, entry in ages if age > entry.remove_after(rules)),
        key=lambda each: (-each[0], each[1].service, each[1].instance_id),
    )
    if not over:
        return (), state
    silent = sum(age > entry.unhealthy_after(rules) for age, entry in ages)
    # Those removed in this minute count as silent, and as present when it began.
    gone = rules.recent(state, now)
    if not is_preserving(silent + gone, count + gone, rules):
        chosen = [entry for _, entry in over]
    else:
        room = _allowed(count + gone, rules) - gone
        chosen = _spread([entry for _, entry in over], sizes)[: max(0, room)]
    if not chosen:
        return (), state
    return tuple(chosen), Evictions(state.since if gone else now, gone + len(chosen))


def _spread(over: Sequence[Registered], sizes: Mapping[str, int]) -> list[Registered]:
    """Return *over* in an order that removes the same share of each service, its last one last."""
    turns: Counter[str] = Counter()
    ranked = []
    for position, entry in enumerate(over):
        turns[entry.service] += 1
        ranked.append((turns[entry.service] / sizes[entry.service], position, entry))
    return [entry for _, _, entry in sorted(ranked, key=lambda each: each[:2])]


class Status(StrEnum):
    """The status that an instance reports."""

    UP = "UP"
    """It accepts requests."""
    STARTING = "STARTING"
    """It is not ready yet."""
    DRAINING = "DRAINING"
    """It finishes its requests, and accepts no new ones."""
    DOWN = "DOWN"
    """It accepts no requests."""


class Invalid(ValueError):
    """A member of a registration document is invalid.

    :ivar field: The member, by its name in the registry's documents.
    :ivar why: The allowed values, in words that can be shown to the client.
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


MOST_BYTES = 40 * 1024
"""The most bytes of an entry in the store; the limits of its members add up to much less."""

_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}")

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")

_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # in any base that inet_aton(3) reads

_HEARTBEAT = struct.Struct(">d")

BODY = slice(_HEARTBEAT.size, None)
"""The part of a stored entry that heartbeats do not change: :meth:`Registered.body`."""


def check_service(name: object) -> str:
    """Return the service name *name*: at most 63 letters, digits, ``.``, ``_`` and ``-``.

    :raises Invalid: It is not a service name.
    """
    if not isinstance(name, str) or not _SERVICE.fullmatch(name):
        raise Invalid("serviceName", "1 to 63 letters, digits, '.', '_' or '-', no sign first")
    return name


def check_id(text: object) -> str:
    """Return the instance id *text*: characters of a service name, ``:`` and ``@``, at most 128.

    :raises Invalid: It is not an instance id.
    """
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise Invalid(
            "instanceId", "1 to 128 letters, digits, '_', '.', ':', '@' or '-', no sign first"
        )
    return text


def check_host(text: object) -> str:
    """Return the host *text* in canonical form: an IP address, or a name in lower case.

    Unusual spellings of an address (``127.1``, ``0x7f.1``, ``2130706433``) are rejected: systems
    read them as addresses that people do not expect.

    :raises Invalid: It is not a host.
    """
    if not isinstance(text, str) or (host := _canonical_host(text)) is None:
        raise Invalid("host", "an IP address or a host name, nothing before or behind it")
    return host


@lru_cache(_CACHED)
def _canonical_host(text: str) -> str | None:
    if not text.isascii() or not 0 < len(text) <= 253 or "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        labels = text.lower().removesuffix(".").split(".")
        if not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
            return None
        return ".".join(labels)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(address if mapped is None else mapped)


@dataclass(frozen=True, slots=True)
class Registered:
    """One registered instance. Moments are seconds of the store's clock.

    :param service: The name of its service.
    :param instance_id: Its id, unique within the service.
    :param host: Its IP address or host name.
    :param port: 1 to 65535.
    :param scheme: ``http`` or ``https``.
    :param weight: Its share of the traffic relative to other instances; 0 drains it.
    :param status: The status it reports.
    :param version: The version it runs.
    :param zone: The zone it runs in.
    :param tags: Tags that clients can filter by.
    :param metadata: Further data for clients, as JSON.
    :param health_check_path: The path of its health check.
    :param lease: Seconds for which it may be silent, where that is more than ``unhealthy_after``:
        an instance with a heartbeat every 30 s must not be unhealthy after 30 s.
    :param registered_at: When it registered.
    :param last_heartbeat: When its last heartbeat arrived.
    :param silent_since: Since when its silence counts: its last heartbeat, or later, as absences of
        the registry do not count. Not kept in the store.
    :param checks: Checks that the registry carries out itself; :attr:`state` combines their results
        with *status*.
    :ivar written: The bytes of :meth:`body` as the store has them; empty for a new entry.
    """

    service: str
    instance_id: str
    host: str
    port: int
    scheme: str = "http"
    weight: int = 1
    status: Status = Status.UP
    version: str | None = None
    zone: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    health_check_path: str | None = None
    lease: float | None = None
    registered_at: float = 0.0
    last_heartbeat: float = 0.0
    silent_since: float = field(default=0.0, compare=False)
    checks: tuple[RegisteredCheck, ...] = ()
    written: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def url(self) -> str:
        """Its base URL, such as ``http://10.0.0.5:8000``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def state(self) -> Status:
        """Its effective status: the reported one; while that is UP, its checks can lower it."""
        if not self.checks or self.status is not Status.UP or all(c.passes for c in self.checks):
            return self.status
        failed = any(check.carried_out and not check.passes for check in self.checks)
        return Status.DOWN if failed else Status.STARTING

    def healthy(self, now: float, rules: LeaseRules) -> bool:
        """Return whether it is UP, and its lease is current."""
        if self.status is not Status.UP or (self.checks and self.state is not Status.UP):
            return False
        silent = now - max(self.last_heartbeat, self.silent_since)
        return silent <= rules.unhealthy_after or silent <= self.unhealthy_after(rules)

    def unhealthy_after(self, rules: LeaseRules) -> float:
        """Return the seconds of silence after which it counts as unhealthy."""
        if self.checks and self.lease is None:  # each check that is carried out renews it
            return max(rules.unhealthy_after, *(3 * c.interval + c.timeout for c in self.checks))
        return max(rules.unhealthy_after, self.lease or 0.0)

    @property
    def reports(self) -> bool:
        """Whether it must send heartbeats; False where only the registry's checks renew it."""
        return not self.checks or self.lease is not None

    def remove_after(self, rules: LeaseRules) -> float:
        """Return the seconds of silence after which it is removed.

        The time from unhealthy to removed is the same as for all other instances.
        """
        return self.unhealthy_after(rules) + rules.remove_after - rules.unhealthy_after

    def heard(self, now: float, silent_since: float | None = None) -> Registered:
        """Return the entry with a heartbeat at *now*.

        :param silent_since: Since when its silence counts. Default: *now*.
        """
        heard = Registered(  # dataclasses.replace() takes twice as long; each heartbeat runs this
            *(self.service, self.instance_id, self.host, self.port, self.scheme, self.weight),
            *(self.status, self.version, self.zone, self.tags, self.metadata),
            *(self.health_check_path, self.lease, self.registered_at),
            *(now, now if silent_since is None else silent_since, self.checks),
        )
        object.__setattr__(heard, "written", self.written)
        return heard

    def to_bytes(self) -> bytes:
        """Return the entry as the store keeps it: its last heartbeat, then :meth:`body`."""
        return _HEARTBEAT.pack(self.last_heartbeat) + self.body()

    def body(self) -> bytes:
        """Return the entry as JSON, without its last heartbeat."""
        members: list[Any] = [
            *(self.service, self.instance_id, self.host, self.port, self.scheme, self.weight),
            *(self.status.value, self.version, self.zone, list(self.tags), dict(self.metadata)),
            *(self.health_check_path, self.lease, self.registered_at),
        ]
        if self.checks:
            members.append([check.members() for check in self.checks])
        return _encode(members).encode("ascii")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Registered | None:
        """Return the entry that :meth:`to_bytes` wrote; ``None`` if *raw* is not an entry."""
        entry = cls.from_body(raw[BODY])
        return None if entry is None else entry.heard(cls.heartbeat_in(raw))

    @classmethod
    def from_body(cls, body: bytes) -> Registered | None:
        """Return the entry that :meth:`body` wrote, without a heartbeat.

        It is ``None`` if *body* is not an entry: another version of the package wrote it, or it is
        damaged.
        """
        if not 0 < len(body) <= MOST_BYTES - _HEARTBEAT.size:
            return None
        try:
            service, id_, host, port, scheme, weight, status, *rest = json.loads(body)
            version, zone, tags, metadata, path, lease, since, *more = rest
            if not (isinstance(metadata, dict) and type(port) is type(weight) is int):
                return None
            entry = cls(
                service=check_service(service),
                instance_id=check_id(id_),
                host=check_host(host),
                port=port,
                scheme=scheme,
                weight=weight,
                status=Status(status),
                version=version,
                zone=zone,
                tags=tuple(tags),
                metadata=metadata,
                health_check_path=path,
                lease=None if lease is None else float(lease),
                registered_at=float(since),
                checks=tuple(map(RegisteredCheck.of, more[0])) if more else (),
            )
        except (ValueError, TypeError, RecursionError):
            return None
        object.__setattr__(entry, "written", body)
        return entry

    @staticmethod
    def renewed(raw: bytes, now: float) -> bytes:
        """Return the stored entry *raw* with a heartbeat at *now*."""
        return _HEARTBEAT.pack(now) + raw[BODY]

    @staticmethod
    def heartbeat_in(raw: bytes) -> float:
        """Return the moment of the last heartbeat of the stored entry *raw*.

        It is minus infinity where *raw* is not an entry.
        """
        if len(raw) < _HEARTBEAT.size:
            return float("-inf")
        moment: float = _HEARTBEAT.unpack_from(raw)[0]
        return moment
