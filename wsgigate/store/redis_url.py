"""The URL of a Redis: servers, connection options, and the prefix of the keys."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from wsgigate.store import NETWORKED

__all__ = ["HostPort", "RedisLocation", "read_url"]

HostPort = tuple[str, int]
"""A host and a port; for a Unix socket its path and 0."""

USERNAME, PASSWORD = "WSGIGATE_STORE_USERNAME", "WSGIGATE_STORE_PASSWORD"

_HINT = "percent-encode special characters of the password (%40 for @, %2F for /, %23 for #)"

_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<user>[^:/?#]*)(?P<pass>:[^/?#]*)?@)?"
    r"(?P<hosts>[^@/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s\[\]:,]+))(?::(?P<port>[0-9]{1,5}))?"
)


class RedisLocation(NamedTuple):
    """The servers of a Redis, and the options of their connections."""

    kind: str
    """``"single"``, ``"sentinel"`` or ``"cluster"``."""
    addresses: tuple[HostPort, ...]
    service: str
    """The name of the primary at the sentinels."""
    settings: dict[str, Any]
    """Arguments of redis-py's connections, except host and port."""
    sentinel_settings: dict[str, Any]
    """The same for connections to the sentinels."""
    tls: bool
    wait: float
    """Maximum seconds to wait for a connection while all are in use."""
    most: int
    """Maximum connections of one process to each server."""
    prefix: str
    named: bool
    """Whether the URL sets the prefix."""
    shown: str
    """The URL without secrets."""


def _flag(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    return known[text.lower()]


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (0 < seconds < math.inf):
        raise ValueError(text)
    return seconds


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


def _count(text: str) -> int:
    return _number(text) or _number("none")


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[^\x00-\x20\x7f]{1,64}", text):
        raise ValueError(text)
    return text


_OPTIONS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "prefix": (_prefix, "1 to 64 characters without spaces"),
    "socket_timeout": (_seconds, "seconds above 0, e.g. 0.05"),
    "socket_connect_timeout": (_seconds, "seconds above 0, e.g. 0.05"),
    "timeout": (_seconds, "seconds above 0, e.g. 0.05"),
    "max_connections": (_count, "a number from 1, e.g. 32"),
    "db": (_number, "a number"),
    "username": (str, ""),
    "password": (str, ""),
    "sentinel_username": (str, ""),
    "sentinel_password": (str, ""),
    "client_name": (str, ""),
    "socket_keepalive": (_flag, "true or false"),
    "ssl_check_hostname": (_flag, "true or false"),
    "ssl_cert_reqs": (str, ""),
    "ssl_ca_certs": (str, ""),
    "ssl_ca_path": (str, ""),
    "ssl_ca_data": (str, ""),
    "ssl_certfile": (str, ""),
    "ssl_keyfile": (str, ""),
    "ssl_password": (str, ""),
    "ssl_ciphers": (str, ""),
}
"""The options of the query: those of redis-py by their names there, and ``prefix``."""


def read_url(
    url: str, *, owner: str = "", environ: Mapping[str, str] = os.environ
) -> RedisLocation:
    """Return the servers and options of *url*.

    :param owner: Identifies the owner of the keys, unless the URL has a ``prefix``.
    :param environ: Provides the user name and password that the URL does not have.
    :raises ValueError: *url* is invalid; the message does not show secrets.
    """
    found = _URL.fullmatch(url)
    if found is None or found["scheme"] not in NETWORKED:
        raise ValueError(f'the URL of a Redis must be "redis://HOST:PORT/DB"; {_HINT}')
    base, _, kind = found["scheme"].partition("+")
    tls = base in ("rediss", "valkeys")
    if "unix" in (base, kind):
        kind = "unix"
    options = _options(found["query"] or "", tls, kind)
    path = unquote(found["path"] or "")
    service = ""
    if kind == "unix":
        if found["hosts"] or len(path) < 2:
            raise ValueError('the URL of a Unix socket must be "unix:///PATH"')
        addresses: tuple[HostPort, ...] = ((path, 0),)
        database = ""
    else:
        addresses = _addresses(found["hosts"], 26379 if kind == "sentinel" else 6379)
        if kind == "sentinel":
            service, _, database = path[1:].partition("/")
            if not service:
                raise ValueError(
                    'the URL of sentinels must be "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB"'
                )
        else:
            database = path[1:]
        if not kind and len(addresses) > 1:
            raise ValueError('several hosts need "redis+sentinel://" or "redis+cluster://"')
    if database and not database.isdecimal():
        raise ValueError(
            "the database in the URL of a Redis must be a number, e.g. redis://localhost:6379/0"
        )
    number = options.pop("db", int(database or 0))
    if kind == "cluster" and number:
        raise ValueError("a Redis Cluster has the database 0 only; remove it from the URL")
    name, secret = found["user"], found["pass"]
    username = unquote(name or "") or options.pop("username", "") or environ.get(USERNAME, "")
    password = unquote((secret or "")[1:]) or options.pop("password", "")
    password = password or environ.get(PASSWORD, "")
    for leftover in ("username", "password"):
        options.pop(leftover, None)
    own = options.pop("prefix", "")
    prefix = own or ":".join(["wsgigate", *_slug(owner), ""])
    wait, most = options.pop("timeout", 0.05), options.pop("max_connections", 32)
    sentinel = {"username": options.pop("sentinel_username", "") or None}
    sentinel["password"] = options.pop("sentinel_password", "") or None
    settings = {"socket_timeout": 0.05, "socket_connect_timeout": 0.05, **options}
    shown = f"{found['scheme']}://{found['hosts']}{found['path'] or ''}"
    return RedisLocation(
        kind="single" if kind in ("", "unix") else kind,
        addresses=addresses,
        service=service,
        settings={
            **settings,
            "db": number,
            "username": username or None,
            "password": password or None,
        },
        sentinel_settings={**settings, **sentinel},
        tls=tls,
        wait=wait,
        most=most,
        prefix=prefix,
        named=bool(own),
        shown=shown,
    )


def _options(query: str, tls: bool, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            near = [f"; did you mean {each!r}?" for each in get_close_matches(name, _OPTIONS, 1)]
            raise ValueError(f"the URL of a Redis has no option {name!r}{''.join(near)}")
        if name in options:
            raise ValueError(f"the URL of a Redis has the option {name!r} twice")
        if name.startswith("ssl_") and not tls:
            raise ValueError(f"the option {name!r} needs TLS: rediss:// or valkeys://")
        if name.startswith("sentinel_") and kind != "sentinel":
            raise ValueError(f"the option {name!r} needs redis+sentinel://")
        if name == "socket_keepalive" and kind == "unix":
            raise ValueError(f"the option {name!r} does not apply to a Unix socket")
        read, expected = _OPTIONS[name]
        try:
            options[name] = read(text)
        except (ValueError, KeyError):
            raise ValueError(f"the option {name!r} of a Redis must be {expected}") from None
    if options.get("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
        raise ValueError("the option 'ssl_cert_reqs' of a Redis must be required, optional or none")
    if tls:
        # redis-py before 6 does not check the name of a certificate by default
        named = options.get("ssl_cert_reqs") != "none"
        options.setdefault("ssl_check_hostname", named)
    return options


def _addresses(text: str, port: int) -> tuple[HostPort, ...]:
    addresses = []
    for part in (text or "localhost").split(","):
        found = _HOST.fullmatch(part)
        if found is None or int(found["port"] or port) not in range(1, 65536):
            raise ValueError(
                "a host in the URL of a Redis must be HOST, HOST:PORT or [IPv6]:PORT with a port "
                f"from 1 to 65535; {_HINT}"
            )
        host = found["six"] or unquote(found["name"])
        addresses.append((host, int(found["port"] or port)))
    return tuple(addresses)


def _slug(owner: str) -> list[str]:
    """Return *owner* as a part of names, with a hash that distinguishes similar ones."""
    if not owner or re.fullmatch(r"[A-Za-z0-9._-]{1,40}", owner):
        return [owner] if owner else []
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", owner).strip("-")[:40]
    return [f"{slug}-{sha256(owner.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"]
