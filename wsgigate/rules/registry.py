"""One entry of the registry: an instance as it registered itself, and the limits of each member."""

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
from typing import Any, NamedTuple

from wsgigate.rules.health import HealthCheck
from wsgigate.rules.registry_checks import Check

__all__ = [
    "Evictions",
    "Invalid",
    "LONG_ABSENCE",
    "LeaseRules",
    "METADATA_BYTES",
    "Registered",
    "Status",
    "check_host",
    "check_id",
    "check_service",
    "evictions",
    "evictions_among",
    "is_preserving",
    "parse",
    "parse_status",
    "round_time",
    "short_absence",
    "silent_since",
    "was_away",
]


# From the document that a registration sends to an entry, or to what is wrong with it.

METADATA_BYTES = 4096
"""How long the metadata may be, as JSON."""

_METADATA_MEMBERS = 64

_METADATA_DEPTH = 4

_MOST_WEIGHT = 65_535

_MOST_TAGS = 256

_LONGEST_TAG = 4096

TAGS_BYTES = 16 * 1024
"""How long all tags of an instance may be together, as JSON."""

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

    Its members are ``serviceName``, ``instanceId``, ``host``, ``port`` and, if need be, ``scheme``,
    ``weight``, ``status``, ``version``, ``zone``, ``tags``, ``healthCheckPath`` and ``metadata``. A
    ``version``, ``zone`` or ``healthCheckPath`` may be among the metadata instead.

    :param service: The name of the service where the document need not say it.
    :raises Invalid: A member is missing, unknown, or beyond its limits; names it.
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

    :raises Invalid: There is none of that name.
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
        # a whole routing rule may stand in one, as Traefik reads it there
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
        HealthCheck(value)
    except ValueError as error:
        raise Invalid(name, str(error)) from None
    return value


def _metadata(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid("metadata", "an object")
    try:
        _check_tree(value, _METADATA_DEPTH)
        encoded = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (RecursionError, TypeError, ValueError) as error:
        if isinstance(error, Invalid):
            raise
        raise Invalid("metadata", "has a value that is no JSON") from None
    if len(encoded) > METADATA_BYTES:
        raise Invalid("metadata", f"at most {METADATA_BYTES} bytes of JSON")
    return value


def _check_tree(value: object, depth: int) -> None:
    """Refuse what is nested deeper than *depth*, control characters, and names that mean more."""
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


# Leases: how long an instance is believed without being heard of, and who is let go.
#
# When many fall silent at once, it is more likely the network, or the registry, than all of them:
# then only a few are let go each minute, and of each service the last one last. Eureka calls that
# self-preservation.

MINUTE = 60.0
"""In which time no more than a share is removed; less where leases are shorter."""


class Evictions(NamedTuple):
    """What was removed in the present minute of self-preservation.

    :ivar since: When the minute began.
    :ivar gone: How many were removed in it.
    """

    since: float = 0.0
    gone: int = 0


@dataclass(frozen=True)
class LeaseRules:
    """How long an instance is believed. All in seconds but *preserve*.

    :param heartbeat: How often an instance is to be heard of.
    :param unhealthy_after: After how long a silence it is no longer taken to be healthy.
    :param remove_after: After how long a silence it is removed.
    :param preserve: The share of all instances that may be silent; when more are, no more than this
        share is removed in a minute, and one at least. 1 removes all of them at once.
    :raises ValueError: One of them is out of its range; says which.
    """

    heartbeat: float = 10.0
    unhealthy_after: float = 30.0
    remove_after: float = 90.0
    preserve: float = 0.15

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
        """Return how many were removed in the present minute: of leases shorter than that, in the
        time that they last."""
        return state.gone if 0 <= now - state.since < min(MINUTE, self.remove_after) else 0


LONG_ABSENCE = 10.0
"""Seconds without a round after which the registry was away whatever else is known."""

_ROUNDS = 3


def round_time(rules: LeaseRules) -> float:
    """Return the seconds between two rounds of the worker that looks after leases."""
    return min(1.0, rules.heartbeat / 2)


def short_absence(rules: LeaseRules) -> float:
    """Return the seconds without a round after which the registry may have been away."""
    return min(LONG_ABSENCE, _ROUNDS * round_time(rules))


def was_away(gap: float, rules: LeaseRules, *, steady: bool) -> bool:
    """Return whether nobody could be heard of for *gap* seconds, which are no silence then.

    A worker that goes on looking after leases may take some seconds for a round: that is no
    absence, as heartbeats are taken meanwhile. After any other gap (the registry was restarted, its
    store failed, another worker took over) some of them may have been lost, so it does not count,
    however short it is.

    :param gap: Seconds of the store's clock from the beginning of the last round to this one.
    :param steady: Whether the same worker did both, without a pause in between.
    """
    return gap > (LONG_ABSENCE if steady else short_absence(rules))


def silent_since(last_heartbeat: float, away: Iterable[tuple[float, float]]) -> float:
    """Return since when a silence counts: the time in which nobody listened does not.

    :param away: From when to when the registry itself was away, each after the other.
    """
    return last_heartbeat + sum(
        max(0.0, until - max(since, last_heartbeat)) for since, until in away
    )


def is_preserving(silent: int, count: int, rules: LeaseRules) -> bool:
    """Tell whether too many are silent for it to be their own doing.

    :param silent: How many of *count* have not been heard of for ``unhealthy_after``.
    """
    return silent > _allowed(count, rules)


def _allowed(count: int, rules: LeaseRules) -> int:
    return max(1, int(rules.preserve * count))


def evictions(
    entries: Sequence[Registered], now: float, rules: LeaseRules, state: Evictions
) -> tuple[tuple[Registered, ...], Evictions]:
    """Return whose lease is over and who is to go now, and the new state.

    :param entries: All entries of all services.
    :param state: What was returned the last time.
    """
    return evictions_among(entries, Counter(each.service for each in entries), now, rules, state)


def evictions_among(
    entries: Iterable[Registered],
    sizes: Mapping[str, int],
    now: float,
    rules: LeaseRules,
    state: Evictions,
) -> tuple[tuple[Registered, ...], Evictions]:
    """Return what :func:`evictions` does.

    :param entries: At least the entries that are silent.
    :param sizes: How many instances each service has.
    """
    count = sum(sizes.values())
    ages = [(now - entry.silent_since, entry) for entry in entries]
    over = sorted(
        ((age, entry) for age, entry in ages if age > entry.remove_after(rules)),
        key=lambda each: (-each[0], each[1].service, each[1].instance_id),
    )
    if not over:
        return (), state
    silent = sum(age > entry.unhealthy_after(rules) for age, entry in ages)
    # those that went within this minute were silent as well, and were there when it began
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
    """Return *over* in an order that takes the same share of every service, the last one last."""
    turns: Counter[str] = Counter()
    ranked = []
    for position, entry in enumerate(over):
        turns[entry.service] += 1
        ranked.append((turns[entry.service] / sizes[entry.service], position, entry))
    return [entry for _, _, entry in sorted(ranked, key=lambda each: each[:2])]


class Status(StrEnum):
    """What an instance says of itself."""

    UP = "UP"
    """It takes requests."""
    STARTING = "STARTING"
    """It is not ready yet."""
    DRAINING = "DRAINING"
    """It ends the requests it has, and takes no more."""
    DOWN = "DOWN"
    """It takes none, and does not say when it will."""


class Invalid(ValueError):
    """A member of an entry is not what it may be.

    :ivar field: The member, by its name in the registry's documents.
    :ivar why: What it may be, in words that can be shown to whoever sent it.
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


MOST_BYTES = 40 * 1024
"""How long an entry may be in the store; its members are limited to much less together."""

_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}")

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")

_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # of whatever base inet_aton(3) reads

_HEARTBEAT = struct.Struct(">d")


def check_service(name: object) -> str:
    """Return *name* if it is a service's: letters, digits, ``.``, ``_`` and ``-``, at most 63.

    :raises Invalid: It is not.
    """
    if not isinstance(name, str) or not _SERVICE.fullmatch(name):
        raise Invalid("serviceName", "1 to 63 letters, digits, '.', '_' or '-', no sign first")
    return name


def check_id(text: object) -> str:
    """Return *text* if it is an instance's id: as a service's name, and ``:`` and ``@``, to 128.

    :raises Invalid: It is not.
    """
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise Invalid(
            "instanceId", "1 to 128 letters, digits, '_', '.', ':', '@' or '-', no sign first"
        )
    return text


def check_host(text: object) -> str:
    """Return *text* as a host is compared: an address in its usual form, or a name in lower case.

    What systems read as an address in one way and people in another (``127.1``, ``0x7f.1``,
    ``2130706433``) is neither.

    :raises Invalid: It is no host.
    """
    wrong = Invalid("host", "an IP address or a host name, nothing before or behind it")
    if not isinstance(text, str) or not text.isascii() or not 0 < len(text) <= 253 or "%" in text:
        raise wrong
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        labels = text.lower().removesuffix(".").split(".")
        if not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
            raise wrong from None
        return ".".join(labels)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(address if mapped is None else mapped)


@dataclass(frozen=True, slots=True)
class Registered:
    """One instance as the registry knows it. Moments are seconds of the store's clock.

    :param service: The service it is one of.
    :param instance_id: What tells it from its siblings.
    :param host: Its address or its host's name.
    :param port: 1 to 65535.
    :param scheme: ``http`` or ``https``.
    :param weight: Its share of the traffic relative to its siblings; 0 drains it.
    :param status: What it says of itself.
    :param version: The version it runs.
    :param zone: Where it runs.
    :param tags: What else it may be asked for by.
    :param metadata: Whatever its users want to know: JSON.
    :param health_check_path: What it may be asked for to see whether it is well.
    :param lease: For how many seconds it may be silent, where that is more than the rules have: who
        is heard of every 30 seconds is not unhealthy after 30.
    :param registered_at: When it registered.
    :param last_heartbeat: When it was last heard of.
    :param silent_since: Since when its silence counts: its last heartbeat, or later, as the time in
        which the registry itself was away does not count. Not kept in the store.
    :param checks: Checks that the registry carries out itself. What they say of the instance is
        beside what it says of itself, see :attr:`state`.
    :ivar written: All but the moments as the store had it, empty when it does not come from there.
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
    checks: tuple[Check, ...] = ()
    written: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def url(self) -> str:
        """Where it is: ``http://10.0.0.5:8000``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def state(self) -> Status:
        """What it is for others: what it says of itself, unless its checks know better."""
        if not self.checks or self.status is not Status.UP or all(c.passes for c in self.checks):
            return self.status
        failed = any(check.carried_out and not check.passes for check in self.checks)
        return Status.DOWN if failed else Status.STARTING

    def healthy(self, now: float, rules: LeaseRules) -> bool:
        """Tell whether it is UP, and was heard of lately."""
        if self.status is not Status.UP or (self.checks and self.state is not Status.UP):
            return False
        silent = now - max(self.last_heartbeat, self.silent_since)
        return silent <= rules.unhealthy_after or silent <= self.unhealthy_after(rules)

    def unhealthy_after(self, rules: LeaseRules) -> float:
        """Return after how many seconds of silence it is no longer taken to be healthy."""
        if self.checks and self.lease is None:  # it is heard of whenever one was carried out
            return max(rules.unhealthy_after, *(3 * c.interval + c.timeout for c in self.checks))
        return max(rules.unhealthy_after, self.lease or 0.0)

    @property
    def reports(self) -> bool:
        """Whether it is to send heartbeats itself, rather than be heard of by its checks."""
        return not self.checks or self.lease is not None

    def remove_after(self, rules: LeaseRules) -> float:
        """Return after how many seconds of silence it is removed: as long afterwards as others."""
        return self.unhealthy_after(rules) + rules.remove_after - rules.unhealthy_after

    def heard(self, now: float, silent_since: float | None = None) -> Registered:
        """Return it with a heartbeat at *now*.

        :param silent_since: Since when its silence counts, if not since then.
        """
        heard = Registered(  # replace() takes twice as long, and this is done for each heartbeat
            *(self.service, self.instance_id, self.host, self.port, self.scheme, self.weight),
            *(self.status, self.version, self.zone, self.tags, self.metadata),
            *(self.health_check_path, self.lease, self.registered_at),
            *(now, now if silent_since is None else silent_since, self.checks),
        )
        object.__setattr__(heard, "written", self.written)
        return heard

    def to_bytes(self) -> bytes:
        """Return what is kept in the store: the moment of its last heartbeat, and all else."""
        return _HEARTBEAT.pack(self.last_heartbeat) + self.body()

    def body(self) -> bytes:
        """Return all but the moment of its last heartbeat."""
        members: list[Any] = [
            *(self.service, self.instance_id, self.host, self.port, self.scheme, self.weight),
            *(self.status.value, self.version, self.zone, list(self.tags), dict(self.metadata)),
            *(self.health_check_path, self.lease, self.registered_at),
        ]
        if self.checks:
            members.append([check.members() for check in self.checks])
        return json.dumps(members, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Registered:
        """Return the entry that :meth:`to_bytes` wrote.

        :raises ValueError: *raw* is no entry.
        """
        return cls.from_body(raw[_HEARTBEAT.size :]).heard(cls.heartbeat_in(raw))

    @classmethod
    def from_body(cls, body: bytes) -> Registered:
        """Return the entry that :meth:`body` wrote, of which nobody has heard yet.

        :raises ValueError: *body* is none.
        """
        if not 0 < len(body) <= MOST_BYTES - _HEARTBEAT.size:
            raise ValueError("not an entry of the registry")
        try:
            service, id_, host, port, scheme, weight, status, *rest = json.loads(body)
            version, zone, tags, metadata, path, lease, since, *more = rest
            if not (isinstance(metadata, dict) and type(port) is type(weight) is int):
                raise ValueError(port)
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
                checks=tuple(map(Check.of, more[0])) if more else (),
            )
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError("not an entry of the registry") from error
        object.__setattr__(entry, "written", body)
        return entry

    @staticmethod
    def renewed(raw: bytes, now: float) -> bytes:
        """Return *raw*, an entry as it is stored, with a heartbeat at *now*; all else stays."""
        return _HEARTBEAT.pack(now) + raw[_HEARTBEAT.size :]

    @staticmethod
    def heartbeat_in(raw: bytes) -> float:
        """Return the moment of the last heartbeat of *raw*, an entry as it is stored.

        Of what is none, it is before all others.
        """
        if len(raw) < _HEARTBEAT.size:
            return float("-inf")
        moment: float = _HEARTBEAT.unpack_from(raw)[0]
        return moment
