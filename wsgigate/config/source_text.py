"""What the text of ``discover`` may be: the kind of source, and where it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from wsgigate.discovery import Instance

__all__ = ["EXAMPLES", "FILES", "FORMS", "Address", "read_address", "read_addresses"]

FILES = (".json", ".toml", ".yaml", ".yml")
"""How the names of files end whose lists can be read."""

EXAMPLES = (
    '"registry", "registry:http://10.0.0.4:3004", "dns:orders.internal:8000", '
    '"srv:_http._tcp.orders.internal", "file:orders.json", "consul:orders" or '
    '"kubernetes:shop/orders:http"'
)
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_PORT = re.compile(r"[0-9]{1,5}|[a-z0-9-]{1,63}")


class Address(NamedTuple):
    """What the text of ``discover`` says.

    :ivar kind: The kind of source.
    :ivar name: Of a host, a service or a file.
    :ivar url: Of a server; of the first of several.
    :ivar others: The URLs of the other servers that know the same, in their order.
    :ivar port: A number, or the name of one.
    :ivar namespace: Where Kubernetes has the service.
    """

    kind: str
    name: str = ""
    url: str = ""
    port: str = ""
    namespace: str = ""
    others: tuple[str, ...] = ()


def read_addresses(use: str | Sequence[str]) -> Address:
    """Return what a text says, or a list of texts that differ in the server alone.

    :raises ValueError: One is none of the forms, or they are not of the same source.
    """
    first, *rest = (read_address(text) for text in ([use] if isinstance(use, str) else use))
    for address in rest:
        if (
            not (first.url and address.url)
            or address._replace(url=first.url, others=first.others) != first
        ):
            raise ValueError(
                "several sources are registries, or Consuls, that know the same service at "
                'different URLs, as in ["registry:http://10.0.0.4:3004", '
                '"registry:http://10.0.0.5:3004"]'
            )
    if not rest and not first.others:
        return first
    urls = [url for each in (first, *rest) for url in (each.url, *each.others)]
    others = [url for url in dict.fromkeys(urls) if url != first.url]
    return first._replace(others=tuple(others))


def read_address(text: str) -> Address:
    """Return what *text* says.

    :raises ValueError: It is none of the forms; says why.
    """
    kind, colon, rest = text.partition(":")
    read = FORMS.get(kind)
    if read is None or (not colon and kind != "registry"):
        raise ValueError(f"is one of {EXAMPLES}, not {text!r}")
    return read(rest)


def _registry(rest: str) -> Address:
    if not rest:
        return Address("registry")
    base, name, others = _several(rest)
    if not base:
        raise ValueError('registry: is followed by a URL, as in "registry:http://10.0.0.4:3004"')
    return Address("registry", name, base, others=others)


def _several(rest: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the URL of the first server, the name behind any, and the URLs of the others."""
    found = [_based(part.strip()) for part in rest.split(",")]
    names = {name for _, name in found if name}
    if len(names) > 1:
        raise ValueError(f"the servers know the service by one name, not by {sorted(names)}")
    if len(found) > 1 and not all(url for url, _ in found):
        raise ValueError(f"of several servers each has a URL, as in http://10.0.0.4:3004: {rest!r}")
    return found[0][0], next(iter(names), ""), tuple(url for url, _ in found[1:])


def _based(rest: str) -> tuple[str, str]:
    """Return the URL of a server and the name behind it; either may be missing."""
    if not rest.startswith(("http://", "https://")):
        return "", _named(rest)
    scheme, _, place = rest.partition("://")
    host, _, name = place.partition("/")
    return Instance(f"{scheme}://{host}").url, _named(name) if name else ""


def _named(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name of a service")
    return text


def _dns(rest: str) -> Address:
    host, _, port = rest.rpartition(":")
    if not _HOST.fullmatch(host) or not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(
            f'dns: is followed by a name and a port, as in "dns:a.internal:80": {rest!r}'
        )
    return Address("dns", host, port=port)


def _srv(rest: str) -> Address:
    if not _HOST.fullmatch(rest):
        raise ValueError(f'srv: is followed by a name, as in "srv:_http._tcp.a.internal": {rest!r}')
    return Address("srv", rest)


def _file(rest: str) -> Address:
    if Path(rest).suffix not in FILES:
        raise ValueError(f"the name of the file ends in {', '.join(FILES)}: {rest!r}")
    return Address("file", rest)


def _consul(rest: str) -> Address:
    url, name, others = _several(rest)
    if not name:
        raise ValueError('consul: ends with the service, as in "consul:http://10.0.0.4:8500/a"')
    return Address("consul", name, url, others=others)


def _kubernetes(rest: str) -> Address:
    namespace, _, service = rest.partition("/")
    name, _, port = service.partition(":")
    if not (_NAME.fullmatch(namespace) and _NAME.fullmatch(name) and _PORT.fullmatch(port)):
        raise ValueError(
            "kubernetes: is followed by a namespace, a service and a port, as in "
            f'"kubernetes:shop/orders:http": {rest!r}'
        )
    return Address("kubernetes", name, port=port, namespace=namespace)


FORMS: dict[str, Callable[[str], Address]] = {
    "registry": _registry,
    "dns": _dns,
    "srv": _srv,
    "file": _file,
    "consul": _consul,
    "kubernetes": _kubernetes,
}
