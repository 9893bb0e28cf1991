"""The command ``status``: the overview of a running gateway, for scripts and people."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from wsgigate.cli.main import failed
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.config.model import Config

__all__ = ["TOKEN", "address_of", "lines", "read_overview", "status"]


TOKEN = "WSGIGATE_ADMIN_TOKEN"  # noqa: S105  # the name of a variable
"""The environment variable with the token for a gateway that is given by its URL."""

LARGEST = 8 * 1024 * 1024

_EXIT = {"ok": 0, "warning": 1, "error": 2}


def status(arguments: argparse.Namespace) -> int:
    """Print the overview of the gateway; return 0, 1 with a warning, 2 with an error."""
    try:
        if "://" in arguments.gateway:
            url, token = arguments.gateway, os.environ.get(TOKEN, "")
            if not token:
                raise ValueError(f"{TOKEN} must have the admin or viewer token of the gateway")
        else:
            url, token = address_of(load(arguments.gateway), arguments.gateway)
        overview = read_overview(url, token, arguments.timeout)
    except (ConfigError, ValueError) as error:
        return failed(error)
    except (OSError, http.client.HTTPException) as error:
        return failed(f"no answer: {error or type(error).__name__}")
    if arguments.json or not sys.stdout.isatty():
        print(json.dumps(overview, indent=2))
    else:
        for line in lines(overview):
            print(line)
    return _EXIT.get(str(overview.get("state")), 2)


def address_of(config: Config, path: str) -> tuple[str, str]:
    """Return the URL of the admin API of a gateway on this machine, and a token for it.

    :raises ValueError: The file has no admin table or no token, or it listens on a Unix socket.
    """
    admin, gateway = config.admin, config.gateway
    if admin is None:
        raise ValueError(f"{path} has no [admin] table, so the gateway has no status to read")
    token = admin.viewer_token or admin.token
    if token is None:
        raise ValueError(f"admin.viewer_token is required in {path} to read the status")
    if gateway.bind.startswith("unix:"):
        raise ValueError(f"gateway.bind of {path} is a Unix socket; give the URL of the gateway")
    host, _, port = gateway.bind.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104
    scheme = "http" if gateway.tls is None else "https"
    return f"{scheme}://{host}:{port}{admin.prefix}", token


def read_overview(url: str, token: str, timeout: float) -> dict[str, Any]:
    """Return the overview below *url*, the gateway's address and the admin prefix.

    Redirects are not followed: the token is meant for this address.

    :param timeout: Seconds for connecting, and for each read.
    :raises ValueError: *url* is invalid, or the response is not an overview; says why.
    :raises OSError: The gateway does not answer.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError(f"a gateway's URL is as http://127.0.0.1:3000/_gateway, got {url!r}")
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout)
    try:
        path = parts.path.rstrip("/") + "/overview"
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        body = response.read(LARGEST)
    finally:
        connection.close()
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if response.status != 200:
        why = document.get("detail", "") if isinstance(document, dict) else ""
        raise ValueError(f"{path} was answered with {response.status}. {why}".rstrip())
    if not isinstance(document, dict) or "state" not in document:
        raise ValueError(f"{path} was not answered with an overview")
    return document


_COUNTED = ("routes", "services", "instances", "middlewares", "circuitBreakers")


def lines(overview: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of an overview for people."""
    gateway, config = overview["gateway"], overview["config"]
    yield f"{gateway['name']} {gateway['version']}: {overview['state']}"
    yield f"since {gateway['started']}, {overview['workers']} workers, store {_store(overview)}"
    yield f"configuration {config['hash']} {config['file']}".rstrip()
    yield ""
    yield f"{'':18}{'total':>7}{'ok':>7}{'warning':>9}{'error':>7}"
    for name in _COUNTED:
        counts = overview[name]
        yield (
            f"{name:18}{counts['total']:>7}{counts['ok']:>7}"
            f"{counts['warning']:>9}{counts['error']:>7}"
        )
    if overview["problems"]:
        yield ""
        yield from overview["problems"]


def _store(overview: Mapping[str, Any]) -> str:
    store = overview["store"]
    return f"{store['kind']}: {store['error']}" if "error" in store else str(store["kind"])
