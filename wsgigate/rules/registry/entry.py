"""One entry of the registry: an instance as it registered itself, and the limits of each member."""

from __future__ import annotations

import ipaddress
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from wsgigate.rules.registry.checks import Check

if TYPE_CHECKING:
    from wsgigate.rules.registry.lease import LeaseRules

__all__ = ["Invalid", "Registered", "Status", "check_host", "check_id", "check_service"]


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
