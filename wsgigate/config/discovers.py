"""Where the instances of a service are known, in the file: text or a table, and what it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wsgigate.addresses import AddressList
from wsgigate.config.kinds import Choice, Secret, Text
from wsgigate.config.source_text import EXAMPLES, FORMS, Address, read_address, read_addresses
from wsgigate.config.tables import Either, ListOf, setting, table
from wsgigate.config.texts import Checked, Url
from wsgigate.config.yaml import parse_yaml
from wsgigate.discovery.sources import Source
from wsgigate.discovery.sources.consul import Consul
from wsgigate.discovery.sources.file import WatchedFile
from wsgigate.discovery.sources.kubernetes import Kubernetes
from wsgigate.discovery.sources.registry import RemoteRegistry
from wsgigate.discovery.sources.several import Several

__all__ = [
    "OPTIONS",
    "Discover",
    "Discovered",
    "discovery",
    "is_own",
    "server_name",
    "source_of",
]

_PARSERS: dict[str, Callable[[str], object] | None] = {
    ".json": None,
    ".toml": None,
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
}
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "scheme": ("dns", "srv", "consul", "kubernetes"),
    "tags": ("registry", "consul"),
    "nameservers": ("dns", "srv"),
    "server": ("kubernetes",),
    "token": ("registry", "consul", "kubernetes"),
    "ca": ("registry", "consul", "kubernetes"),
}
"""Which kinds of sources take an option."""


class Discovered(Checked[str]):
    """The address of a source."""

    def __init__(self) -> None:
        super().__init__(
            lambda text: text if read_address(text) else "",
            f"one of {EXAMPLES}",
            pattern=f"^(?:registry$|(?:{'|'.join(FORMS)}):)",
            reason=True,
        )


SOURCES: Either[tuple[str, ...], str] = Either(
    lambda value: isinstance(value, list), ListOf(Discovered(), least=1), Discovered()
)
"""The address of a source, or of several that know the same."""


class _Networks(Checked[str]):
    def __init__(self) -> None:
        super().__init__(
            lambda text: AddressList([text]).entries[0],
            'an address or network such as "10.0.0.0/8"',
            reason=True,
        )


@table
class Discover:
    """Where the instances of a service are known."""

    use: tuple[str, ...] | str = setting(
        SOURCES, "The source; of registries and Consuls several URLs, asked in turn."
    )
    allowed_networks: tuple[str, ...] | None = setting(
        ListOf(_Networks(), least=1),
        "Where instances may be; loopback and private networks unless said.",
        default=None,
    )
    scheme: str | None = setting(
        Choice("http", "https"),
        "How instances are talked to, of sources that do not say.",
        default=None,
    )
    tags: tuple[str, ...] | None = setting(
        ListOf(Text()), "What an instance must be tagged with, all of it.", default=None
    )
    nameservers: tuple[str, ...] | None = setting(
        ListOf(Text('an address such as "10.0.0.53" or "127.0.0.1:8600"'), least=1),
        "Whom to ask by DNS; the system's unless said.",
        default=None,
    )
    server: str | None = setting(
        Url(), "Where the API of Kubernetes is; the cluster's own unless said.", default=None
    )
    token: str | None = setting(Secret(), "What the source's server asks for.", default=None)
    ca: str | None = setting(Text(), "A file of authorities for the source's server.", default=None)


def discovery(value: Discover | tuple[str, ...] | str) -> Discover:
    """Return the table that *value* is short for."""
    return value if isinstance(value, Discover) else Discover(use=value)


def source_of(
    options: Discover, service: str, folder: Path, own: Callable[[str, tuple[str, ...]], Source]
) -> Source:
    """Return the source that *options* describe, of several servers one that asks them in turn.

    :param service: The service's name, which a registry knows it by unless said.
    :param folder: Where relative file names start.
    :param own: Makes the source of this gateway's own registry, of a name and tags.
    :raises ValueError: An option is not for that source, or its value is not of its form.
    """
    address = read_addresses(options.use)
    if address.others:
        each = [
            replace(options, use=_text(address._replace(url=url, others=())))
            for url in (address.url, *address.others)
        ]
        return Several([source_of(one, service, folder, own) for one in each])
    kind = address.kind
    for option, kinds in OPTIONS.items():
        if getattr(options, option) is not None and kind not in kinds:
            raise ValueError(f"{option}: is not for {kind}")
    scheme, tags = options.scheme or "http", options.tags or ()
    ca = None if options.ca is None else str(folder / options.ca)
    if ca is not None and not Path(ca).is_file():
        raise ValueError(f"ca: there is no {ca}")
    if kind == "registry" and not address.url:
        return own(address.name or service, tags)
    if kind == "file":
        made = WatchedFile(folder / address.name, parse=_PARSERS[Path(address.name).suffix])
        made.name = f"file:{address.name}"
        return made
    if kind in ("dns", "srv"):
        return _by_dns(address, scheme, options.nameservers or ())
    known: dict[str, Any] = {"token": options.token, "ca": ca}
    if kind == "registry":
        return RemoteRegistry(address.url, address.name or service, tags=tags, **known)
    if kind == "consul":
        known |= {"url": address.url} if address.url else {}
        return Consul(address.name, tags=tags, scheme=scheme, **known)
    return Kubernetes(
        address.namespace,
        address.name,
        address.port,
        server=options.server,
        scheme=scheme,
        **known,
    )


def _text(address: Address) -> str:
    return f"{address.kind}:{address.url}{'/' if address.name else ''}{address.name}"


def is_own(options: Discover) -> bool:
    """Return whether the instances are those of the gateway's own registry."""
    address = read_addresses(options.use)
    return address.kind == "registry" and not address.url


def server_name(options: Discover) -> str | None:
    """Return the name that certificates of the instances are for, if it is not their own."""
    address = read_addresses(options.use)
    return address.name if address.kind == "dns" and options.scheme == "https" else None


def _by_dns(address: Address, scheme: str, nameservers: tuple[str, ...]) -> Source:
    if find_spec("dns") is None:
        raise ValueError('DNS needs dnspython: pip install "wsgigate[dns]"')
    from wsgigate.discovery.sources.dns import DnsAddresses, DnsService, Resolver

    try:
        resolver = Resolver(nameservers)
    except ValueError as error:
        raise ValueError(f"nameservers: {error}") from None
    if address.kind == "srv":
        return DnsService(address.name, scheme=scheme, resolver=resolver)
    return DnsAddresses(address.name, int(address.port), scheme=scheme, resolver=resolver)
