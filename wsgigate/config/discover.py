"""Service discovery in the file: the ``discover`` key of a service, and the source it names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from wsgigate.config.tables import ListOf, UnionOf, is_list, setting, table
from wsgigate.config.types import Enumeration, HiddenText, ParsedText, Text, Url, import_object
from wsgigate.config.yaml import parse_yaml
from wsgigate.discovery import Instance
from wsgigate.discovery.sources import Failover, Source
from wsgigate.discovery.sources.file import WatchedFile
from wsgigate.http.forwarded import AddressList

__all__ = [
    "EXAMPLES",
    "FILES",
    "KINDS",
    "OPTIONS",
    "SOURCES",
    "Discover",
    "SourceAddress",
    "SourceText",
    "discovery",
    "is_own_registry",
    "parse_address",
    "parse_addresses",
    "server_name",
    "source_of",
]


# The text forms of ``discover``: the kind of source, and its address.

FILES = (".json", ".toml", ".yaml", ".yml")
"""The supported suffixes of instance files."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")

_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")

_PORT = re.compile(r"[0-9]{1,5}|[a-z0-9-]{1,63}")


class SourceAddress(NamedTuple):
    """The parsed text of ``discover``.

    :ivar kind: The kind of source.
    :ivar name: The name of the host, service or file.
    :ivar url: The URL of the server, or of the first of several.
    :ivar others: The URLs of the other servers of the same registry or Consul, in order.
    :ivar port: A port number, or a port name.
    :ivar namespace: The Kubernetes namespace of the service.
    """

    kind: str
    name: str = ""
    url: str = ""
    port: str = ""
    namespace: str = ""
    others: tuple[str, ...] = ()


def parse_addresses(use: str | Sequence[str]) -> SourceAddress:
    """Parse one text, or a list of texts that differ in the server only.

    :raises ValueError: A text has none of the forms, or the texts name different sources.
    """
    first, *rest = (parse_address(text) for text in ([use] if isinstance(use, str) else use))
    for address in rest:
        if (
            not (first.url and address.url)
            or address._replace(url=first.url, others=first.others) != first
        ):
            raise ValueError(
                "several sources must be registries, or Consuls, with the same service at "
                'different URLs, as in ["registry:http://10.0.0.4:3004", '
                '"registry:http://10.0.0.5:3004"]'
            )
    if not rest and not first.others:
        return first
    urls = [url for each in (first, *rest) for url in (each.url, *each.others)]
    others = [url for url in dict.fromkeys(urls) if url != first.url]
    return first._replace(others=tuple(others))


def parse_address(text: str) -> SourceAddress:
    """Parse *text*.

    :raises ValueError: *text* has none of the forms; the message says which are allowed.
    """
    name, colon, rest = text.partition(":")
    kind = KINDS.get(name)
    if kind is None or not (rest or kind.parse):
        raise ValueError(f"must be one of {EXAMPLES}, got {text!r}")
    if not colon and name != "registry":
        raise ValueError(f"must be one of {EXAMPLES}, got {text!r}")
    return SourceAddress(name, rest) if kind.parse is None else kind.parse(rest)


def _registry(rest: str) -> SourceAddress:
    if not rest:
        return SourceAddress("registry")
    base, name, others = _several(rest)
    if not base:
        raise ValueError(
            'registry: must be followed by a URL, as in "registry:http://10.0.0.4:3004"'
        )
    return SourceAddress("registry", name, base, others=others)


def _several(rest: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the URL of the first server, the service's name, and the URLs of the other servers."""
    found = [_based(part.strip()) for part in rest.split(",")]
    names = {name for _, name in found if name}
    if len(names) > 1:
        raise ValueError(f"all servers must have the same service name, got {sorted(names)}")
    if len(found) > 1 and not all(url for url, _ in found):
        raise ValueError(
            f"each of several servers must have a URL, as in http://10.0.0.4:3004, got {rest!r}"
        )
    return found[0][0], next(iter(names), ""), tuple(url for url, _ in found[1:])


def _based(rest: str) -> tuple[str, str]:
    """Return the URL of a server and the service's name after it; either may be empty."""
    if not rest.startswith(("http://", "https://")):
        return "", _named(rest)
    scheme, _, place = rest.partition("://")
    host, _, name = place.partition("/")
    return Instance(f"{scheme}://{host}").url, _named(name) if name else ""


def _named(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a service name")
    return text


def _dns(rest: str) -> SourceAddress:
    host, _, port = rest.rpartition(":")
    if not _HOST.fullmatch(host) or not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(
            f'dns: must be followed by a name and a port, as in "dns:a.internal:80", got {rest!r}'
        )
    return SourceAddress("dns", host, port=port)


def _srv(rest: str) -> SourceAddress:
    if not _HOST.fullmatch(rest):
        raise ValueError(
            f'srv: must be followed by a name, as in "srv:_http._tcp.a.internal", got {rest!r}'
        )
    return SourceAddress("srv", rest)


def _file(rest: str) -> SourceAddress:
    if Path(rest).suffix not in FILES:
        raise ValueError(f"the file name must end in one of {', '.join(FILES)}, got {rest!r}")
    return SourceAddress("file", rest)


def _consul(rest: str) -> SourceAddress:
    url, name, others = _several(rest)
    if not name:
        raise ValueError('consul: must end with the service, as in "consul:http://10.0.0.4:8500/a"')
    return SourceAddress("consul", name, url, others=others)


def _kubernetes(rest: str) -> SourceAddress:
    namespace, _, service = rest.partition("/")
    name, _, port = service.partition(":")
    if not (_NAME.fullmatch(namespace) and _NAME.fullmatch(name) and _PORT.fullmatch(port)):
        raise ValueError(
            "kubernetes: must be followed by a namespace, a service and a port, as in "
            f'"kubernetes:shop/orders:http", got {rest!r}'
        )
    return SourceAddress("kubernetes", name, port=port, namespace=namespace)


class SourceKind(NamedTuple):
    """One kind of source.

    :ivar example: A text of ``discover``, for error messages.
    :ivar make: The class, as ``package.module:Class``, or a function. The options of ``discover``
        that apply are those of its arguments; one named ``folder`` gets the folder that relative
        file names refer to.
    :ivar parse: Returns the address in the text after the colon, or raises ValueError. Default: the
        text is the name.
    :ivar fields: The fields of the address that are its positional arguments.
    """

    example: str
    make: str | Callable[..., Source]
    parse: Callable[[str], SourceAddress] | None = None
    fields: tuple[str, ...] = ("name",)


def _watched_file(name: str, *, folder: Path) -> Source:
    parse = parse_yaml if name.endswith((".yaml", ".yml")) else None
    made = WatchedFile(folder / name, parse=parse)
    made.name = f"file:{name}"
    return made


def _dns_addresses(
    name: str, port: str, *, scheme: str = "http", nameservers: Sequence[str] = ()
) -> Source:
    dns = _dns_module()
    resolver = _resolver(dns, nameservers)
    return dns.DnsAddresses(name, int(port), scheme=scheme, resolver=resolver)  # type: ignore[no-any-return]


def _dns_service(name: str, *, scheme: str = "http", nameservers: Sequence[str] = ()) -> Source:
    dns = _dns_module()
    return dns.DnsService(name, scheme=scheme, resolver=_resolver(dns, nameservers))  # type: ignore[no-any-return]


def _dns_module() -> Any:
    if find_spec("dns") is None:
        raise ValueError('DNS requires dnspython: pip install "wsgigate[dns]"')
    return import_module("wsgigate.discovery.sources.dns")


def _resolver(dns: Any, nameservers: Sequence[str]) -> Any:
    try:
        return dns.Resolver(nameservers)
    except ValueError as error:
        raise ValueError(f"nameservers: {error}") from None


_PACKAGE = "wsgigate.discovery.sources"

KINDS: dict[str, SourceKind] = {
    "registry": SourceKind(
        "registry:http://10.0.0.4:3004",
        f"{_PACKAGE}.registry:RemoteRegistry",
        _registry,
        ("url", "name"),
    ),
    "dns": SourceKind("dns:orders.internal:8000", _dns_addresses, _dns, ("name", "port")),
    "srv": SourceKind("srv:_http._tcp.orders.internal", _dns_service, _srv),
    "file": SourceKind("file:orders.json", _watched_file, _file),
    "consul": SourceKind("consul:orders", f"{_PACKAGE}.consul:Consul", _consul, ("name", "url")),
    "kubernetes": SourceKind(
        "kubernetes:shop/orders:http",
        f"{_PACKAGE}.kubernetes:Kubernetes",
        _kubernetes,
        ("namespace", "name", "port"),
    ),
}
"""The kinds of sources, by the word before the colon; each class is imported when it is used."""

_FORMS = [f'"{text}"' for text in ("registry", *(kind.example for kind in KINDS.values()))]

EXAMPLES = f"{', '.join(_FORMS[:-1])} or {_FORMS[-1]}"

OPTIONS = ("scheme", "tags", "nameservers", "server", "token", "ca")
"""The keys of ``discover`` that are arguments of sources."""


class SourceText(ParsedText[str]):
    """The address of a source."""

    def __init__(self) -> None:
        super().__init__(
            lambda text: text if parse_address(text) else "",
            f"one of {EXAMPLES}",
            pattern=f"^(?:registry$|(?:{'|'.join(KINDS)}):)",
            reason=True,
        )


SOURCES: UnionOf[tuple[str, ...], str] = UnionOf(
    is_list, ListOf(SourceText(), least=1), SourceText()
)
"""The address of a source, or of several servers with the same instances."""


class _Networks(ParsedText[str]):
    def __init__(self) -> None:
        super().__init__(
            lambda text: AddressList([text]).entries[0],
            'an address or network such as "10.0.0.0/8"',
            reason=True,
        )


@table
class Discover:
    """Service discovery: the source that finds the instances of a service."""

    use: tuple[str, ...] | str = setting(
        "The source; of registries and Consuls several URLs, tried in order.", SOURCES
    )
    allowed_networks: tuple[str, ...] | None = setting(
        "The networks that instances may be in. Default: loopback and private networks.",
        ListOf(_Networks(), least=1),
        default=None,
    )
    scheme: str | None = setting(
        "The scheme of the instances, for sources that provide none.",
        Enumeration("http", "https"),
        default=None,
    )
    tags: tuple[str, ...] | None = setting(
        "The tags that an instance must have, all of them.", default=None
    )
    nameservers: tuple[str, ...] | None = setting(
        "The DNS servers to query. Default: the system's nameservers.",
        ListOf(Text('an address such as "10.0.0.53" or "127.0.0.1:8600"'), least=1),
        default=None,
    )
    server: str | None = setting(
        "The URL of the Kubernetes API. Default: that of the gateway's cluster.",
        Url(),
        default=None,
    )
    token: str | None = setting("The token for the source's server.", HiddenText(), default=None)
    ca: str | None = setting("A file of CA certificates for the source's server.", default=None)


def discovery(value: Discover | tuple[str, ...] | str) -> Discover:
    """Return *value* as a table: a text or list is short for its ``use``."""
    return value if isinstance(value, Discover) else Discover(use=value)


def source_of(
    options: Discover, service: str, folder: Path, own: Callable[[str, tuple[str, ...]], Source]
) -> Source:
    """Return the source that *options* describe; one with several servers tries them in order.

    :param service: The service's name. Default name in a registry.
    :param folder: The folder that relative file names refer to.
    :param own: Returns the source of this gateway's own registry, for a name and tags.
    :raises ValueError: An option does not apply to the source, or is invalid.
    """
    address = parse_addresses(options.use)
    if address.others:
        each = [
            replace(options, use=_text(address._replace(url=url, others=())))
            for url in (address.url, *address.others)
        ]
        return Failover([source_of(one, service, folder, own) for one in each])
    kind = KINDS[address.kind]
    make = import_object(kind.make) if isinstance(kind.make, str) else kind.make
    takes = inspect.signature(make).parameters
    values = {option: getattr(options, option) for option in OPTIONS}
    arguments = {option: value for option, value in values.items() if value is not None}
    for option in arguments:
        if option not in takes:
            raise ValueError(f"{option}: does not apply to {address.kind}")
    if "ca" in arguments:
        arguments["ca"] = str(folder / arguments["ca"])
        if not Path(arguments["ca"]).is_file():
            raise ValueError(f"ca: file {arguments['ca']} does not exist")
    if "folder" in takes:
        arguments["folder"] = folder
    if address.kind == "registry":
        address = address._replace(name=address.name or service)
        if not address.url:
            return own(address.name, arguments.get("tags", ()))
    place = [text for text in (getattr(address, field) for field in kind.fields) if text]
    made: Source = make(*place, **arguments)
    return made


def _text(address: SourceAddress) -> str:
    return f"{address.kind}:{address.url}{'/' if address.name else ''}{address.name}"


def is_own_registry(options: Discover) -> bool:
    """Return whether the source is the gateway's own registry."""
    address = parse_addresses(options.use)
    return address.kind == "registry" and not address.url


def server_name(options: Discover) -> str | None:
    """Return the name that the instances' certificates are issued for, if not their address."""
    address = parse_addresses(options.use)
    return address.name if address.kind == "dns" and options.scheme == "https" else None
