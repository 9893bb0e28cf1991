"""DNS sources: the addresses of a name, or the targets of a service record (RFC 2782).

They use dnspython instead of the system's resolver, which reports neither the TTL of an answer nor
whether a name does not exist or could not be resolved.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

import dns.exception
import dns.nameserver
import dns.resolver

from wsgigate.discovery import LAST_TIER, Instance
from wsgigate.discovery.sources import MOST, Found, SourceError, distinct, instance_of

__all__ = ["DnsAddresses", "DnsService", "Resolver"]

_LEAST = 1.0
_MOST_WAIT = 3600.0
_NEGATIVE = 5.0
"""Seconds for which a negative answer is used."""
_TRY = 1.0


class _RecordSet(NamedTuple):
    """The records of a name and type, and their TTL in seconds."""

    records: tuple[Any, ...]
    ttl: float


class Resolver:
    """A DNS resolver that keeps the last good answer to each question.

    A failure of a name server therefore removes no instances: neither the IPv6 addresses when only
    those for IPv4 can be resolved, nor one target of many.

    :param nameservers: Their addresses, such as ``10.0.0.53`` or ``127.0.0.1:8600``. Default: those
        of ``/etc/resolv.conf``.
    :param patience: Seconds that the answer to one question may take.
    :ivar trouble: Why an answer of this round is an earlier one; empty if none is.
    :raises ValueError: A name server is not an IP address with an optional port.
    """

    def __init__(self, nameservers: Sequence[str] = (), *, patience: float = 3.0) -> None:
        self._patience = patience
        self._servers = [_server(text) for text in nameservers]
        self._dnspython: dns.resolver.Resolver | None = None
        self._known: dict[tuple[str, str], _RecordSet] = {}
        self._queried: set[tuple[str, str]] = set()
        self.trouble = ""

    def close(self) -> None:
        """Forget all answers; the next query reads the system's settings again."""
        self._dnspython = None
        self._known = {}

    def begin(self) -> None:
        """Begin a round of questions: answers not used in the last round are forgotten."""
        self._known = {key: known for key, known in self._known.items() if key in self._queried}
        self._queried = set()
        self.trouble = ""

    def query(self, name: str, kind: str) -> _RecordSet:
        """Return the records of *name*, an empty answer if it has none.

        :raises SourceError: The query failed, and there is no earlier answer.
        """
        key = name, kind
        self._queried.add(key)
        try:
            self._known[key] = answer = self._query(name, kind)
        except dns.exception.DNSException as error:
            self._dnspython = None  # the system's settings may have changed
            known = self._known.get(key)
            if known is None:
                raise SourceError(_why(error)) from error
            self.trouble = _why(error)
            return known._replace(ttl=_NEGATIVE)
        return answer

    def _query(self, name: str, kind: str) -> _RecordSet:
        try:
            answer = self._resolver().resolve(name, kind, search=True, lifetime=self._patience)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return _RecordSet((), _NEGATIVE)
        return _RecordSet(tuple(answer), float(answer.chaining_result.minimum_ttl))

    def _resolver(self) -> dns.resolver.Resolver:
        if self._dnspython is None:
            made = dns.resolver.Resolver(configure=not self._servers)
            if self._servers:
                made.nameservers = [dns.nameserver.Do53Nameserver(*each) for each in self._servers]
            made.timeout = _TRY
            made.use_edns(0, 0, 1232)
            self._dnspython = made
        return self._dnspython


class DnsAddresses:
    """A source with one instance for each address of a name: its A and AAAA records.

    The gateway connects to the addresses and sends the name in ``Host``.

    :param host: The name.
    :param port: The port of all instances.
    :param scheme: ``http`` or ``https``; certificates must then be verified against the name.
    :param resolver: The resolver. Default: one with the system's name servers.
    """

    def __init__(
        self, host: str, port: int, *, scheme: str = "http", resolver: Resolver | None = None
    ) -> None:
        self.name = f"dns:{host}:{port}"
        self._host = host
        self._port = port
        self._scheme = scheme
        self._resolver = resolver or Resolver()

    def close(self) -> None:
        """Forget the last answers."""
        self._resolver.close()

    def find(self, stopping: threading.Event) -> Found:
        """Return an instance for each address, valid until the shortest TTL expires."""
        self._resolver.begin()
        answers = _addresses(self._resolver, self._host)
        made = _instances(answers, self._scheme, self._port, name=self._host)
        return Found(distinct(made), _again(answers), trouble=self._resolver.trouble)


class DnsService:
    """A source of the targets of a name's SRV records: hosts, ports and weights.

    The best priority is the first tier; the tiers behind it get requests as far as the instances
    before them fail. A weight of 0, which means a very small one in SRV, counts as 1. The target
    ``.`` means that the service is not available, and is used at once. Targets are resolved to
    addresses, and their name is sent in ``Host``; over https the instance keeps the target's name,
    against which its certificate is verified.

    :param name: The name, such as ``_http._tcp.billing.internal``.
    :param scheme: ``http`` or ``https``.
    :param resolver: The resolver. Default: one with the system's name servers.
    """

    def __init__(
        self, name: str, *, scheme: str = "http", resolver: Resolver | None = None
    ) -> None:
        self.name = f"srv:{name}"
        self._service = name
        self._scheme = scheme
        self._resolver = resolver or Resolver()

    def close(self) -> None:
        """Forget the last answers."""
        self._resolver.close()

    def find(self, stopping: threading.Event) -> Found:
        """Return the targets, valid until the shortest TTL of the records expires."""
        self._resolver.begin()
        answer = self._resolver.query(self._service, "SRV")
        records = answer.records
        if len(records) > MOST:
            raise SourceError(f"there are {len(records)} records, more than {MOST}")
        targets = [record for record in records if record.target.to_text() != "."]
        answers = [answer]
        made: list[Instance] = []
        for tier, priority in enumerate(sorted({record.priority for record in targets})):
            for record in targets:
                if stopping.is_set():
                    raise SourceError("it was stopped")
                if record.priority == priority:
                    made += self._at(record, min(tier, LAST_TIER), answers)
        unavailable = bool(records) and not targets  # RFC 2782: decidedly not available
        return Found(distinct(made), _again(answers), unavailable, self._resolver.trouble)

    def _at(self, record: Any, tier: int, answers: list[_RecordSet]) -> Iterable[Instance]:
        target, weight = record.target.to_text(), max(1, record.weight)
        if self._scheme == "https":
            host = target.rstrip(".")
            return [instance_of(self._scheme, host, record.port, weight, tier)]
        found = _addresses(self._resolver, target)
        answers += found
        return _instances(found, self._scheme, record.port, weight, tier, target)


def _server(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or (text.count(":") > 1 and not text.startswith("[")):
        host, port = text, "53"
    try:
        address = str(ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        address = ""
    if not address or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f'a name server must be an address such as "10.0.0.53:53", got {text!r}')
    return address, int(port)


def _addresses(resolver: Resolver, host: str) -> list[_RecordSet]:
    """Return the A and AAAA answers for *host*; raise an error only if neither has an address."""
    answers, errors = [], []
    for kind in ("A", "AAAA"):
        try:
            answers.append(resolver.query(host, kind))
        except SourceError as error:
            errors.append(error)
    if errors and not any(answer.records for answer in answers):
        raise errors[0]
    return answers


def _instances(
    answers: Sequence[_RecordSet],
    scheme: str,
    port: int,
    weight: int = 1,
    tier: int = 0,
    name: str = "",
) -> list[Instance]:
    return [
        instance_of(scheme, record.address, port, weight, tier, name)
        for answer in answers
        for record in answer.records
    ]


def _again(answers: Sequence[_RecordSet]) -> float:
    ttls = [answer.ttl for answer in answers if answer.records] or [_NEGATIVE]
    return min(max(min(ttls), _LEAST), _MOST_WAIT)


_WHY: tuple[tuple[type[Exception], str], ...] = (
    (dns.resolver.LifetimeTimeout, "no name server answered in time"),
    (dns.resolver.NoNameservers, "no name server has an answer"),
    (dns.resolver.NoResolverConfiguration, "the system has no name server configured"),
)


def _why(error: Exception) -> str:
    return next((why for kind, why in _WHY if isinstance(error, kind)), "the query failed")
