"""The shape of the file's services. No behaviour.

A key that may be left out and whose default is a constructor's is None here.
"""

from __future__ import annotations

from wsgigate.config.balances import POLICY, Balance, ServiceSticky
from wsgigate.config.breakers import ServiceBreaker
from wsgigate.config.discovers import SOURCES, Discover
from wsgigate.config.healths import HEALTH, ServiceHealth, TcpHealth
from wsgigate.config.hedges import ServiceHedge
from wsgigate.config.kinds import Duration, Flag, Integer, Size, Text
from wsgigate.config.outliers import ServiceOutlier
from wsgigate.config.retries import ServiceRetry
from wsgigate.config.shaping import FallbackTable
from wsgigate.config.tables import Either, ListOf, Table, setting, table
from wsgigate.config.texts import Url

__all__ = [
    "Balance",
    "ServerTls",
    "Service",
    "ServiceSticky",
    "Tls",
    "Weighted",
]


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


@table
class Weighted:
    """One instance and its share of the requests."""

    url: str = setting(Url(), "Its address.")
    weight: int = setting(
        Integer(0, 65535), "Its share relative to the others; 0 drains it.", default=1
    )
    tier: int = setting(
        Integer(0, 15),
        "Whose turn it is: 0 first, the next ones as far as those before fail.",
        default=0,
    )
    zone: str = setting(
        Text("a zone without spaces", pattern=r"[\x21-\x7e]{0,128}"),
        "The availability zone it runs in.",
        default="",
    )


@table
class Tls:
    """How the certificates of https:// instances are verified."""

    verify: bool = setting(Flag(), "Whether they are verified at all.", default=True)
    ca: str | None = setting(
        Text(),
        "A file or folder with the authorities to believe instead of the usual.",
        default=None,
    )
    server_name: str | None = setting(
        Text("a host's name", pattern=r"[A-Za-z0-9._-]+"),
        "The name that certificates are for, where an instance's address is not.",
        default=None,
    )


@table
class ServerTls:
    """The gateway's own certificate."""

    cert: str = setting(Text(), "A PEM file with the certificate and those that vouch for it.")
    key: str | None = setting(
        Text(), "A PEM file with its key, unless the same file holds it.", default=None
    )


@table
class Service:
    """A backend application: its instances, and how they are talked to."""

    instances: tuple[Weighted | str, ...] = setting(
        ListOf(Either(_is_table, Table(Weighted, name="Instance"), Url()), least=1),
        'Where it runs: "http://10.0.0.5:8000", or { url = "...", weight = 2, tier = 1 }.',
        default=(),
    )
    discover: Discover | tuple[str, ...] | str | None = setting(
        Either(_is_table, Table(Discover), SOURCES),
        'Who knows where it runs, instead: "registry", "dns:orders.internal:8000" and others.',
        default=None,
    )
    routes: tuple[str, ...] = setting(
        ListOf(Text()), "The paths it has, for people to read in /services.", default=()
    )
    health: ServiceHealth | TcpHealth | None = setting(
        HEALTH, "How its health is checked.", default=None
    )
    balance: Balance | str | None = setting(
        Either(_is_table, Table(Balance), POLICY),
        "Who of them takes the next request; two-choices unless said.",
        default=None,
    )
    prefer_zone: bool | None = setting(
        Flag(),
        "Whether instances in the gateway's own zone come first, where gateway.zone is set; true "
        "unless said.",
        default=None,
    )
    sticky: ServiceSticky | None = setting(
        Table(ServiceSticky),
        "How clients stay with an instance, by a signed cookie; they do not unless said.",
        default=None,
    )
    max_in_flight: int | None = setting(
        Integer(0),
        "How many of its requests a worker serves at a time; requests above that get a 503 at "
        "once. 0: no limit. Default: no limit for a single service; several share the threads, "
        "and only a slow one is limited.",
        default=None,
    )
    instance_max_in_flight: int | None = setting(
        Integer(1), "How many requests a worker gives to one instance at a time.", default=None
    )
    breaker: ServiceBreaker | None = setting(
        Table(ServiceBreaker),
        "When it is left alone for a while; {} for the defaults, none unless said.",
        default=None,
    )
    outlier: ServiceOutlier | None = setting(
        Table(ServiceOutlier),
        "When an instance is left out for a while; {} for the defaults, never unless said.",
        default=None,
    )
    retry: ServiceRetry | None = setting(
        Table(ServiceRetry),
        "When a request is made once more; {} for the defaults, never unless said.",
        default=None,
    )
    hedge: ServiceHedge | None = setting(
        Table(ServiceHedge),
        "When a request that only reads is made at a second instance before the first has answered;"
        " {} for the defaults, never unless said.",
        default=None,
    )
    fallback: FallbackTable | None = setting(
        Table(FallbackTable, name="Fallback"),
        "What is answered when it fails, on routes that do not say.",
        default=None,
    )
    timeout: float | None = setting(
        Duration(), "How long until the answer begins; caps the next two.", default=None
    )
    connect_timeout: float | None = setting(
        Duration(), "How long connecting may take.", default=None
    )
    read_timeout: float | None = setting(
        Duration(), "How long an instance may be silent.", default=None
    )
    min_response_rate: int | None = setting(
        Size(),
        "Bytes a second that an instance must send of a response's body, on average over the time "
        "that the gateway waits for it, after 30 s; 0 for any; 100B unless said. Not for streams "
        "of events.",
        default=None,
    )
    response_timeout: float | None = setting(
        Duration(),
        "How long the gateway waits in all for a response's body; any time unless said. Not for "
        "streams of events.",
        default=None,
    )
    tls: Tls | None = setting(Table(Tls), "How certificates are verified.", default=None)
    host: str | None = setting(
        Text('a name such as "shop.example" or "shop.example:8080"'),
        "The Host that its instances are asked by; with discover by dns or srv the name that was "
        "looked up, else the instance's own, unless given.",
        default=None,
    )
    preserve_host: bool | None = setting(
        Flag(), "Send the client's Host instead of the instance's own.", default=None
    )
