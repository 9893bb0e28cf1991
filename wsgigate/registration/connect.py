"""The URLs and the token of the registries of a service, from arguments or the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from wsgigate.registration.entry import Entry, check_registry
from wsgigate.registration.heartbeat import Client

__all__ = ["connector"]


DEFAULT_REGISTRY = "http://127.0.0.1:3004"

_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


def connector(
    entry: Entry,
    registry: str | Sequence[str] | None = None,
    token: str | None = None,
    ca: str | None = None,
) -> Callable[[], Client]:
    """Return a function that returns the client for *entry*'s registries.

    Arguments are validated now; environment variables and files when the function is called, as an
    error in them must not stop the service from starting.

    :param registry: The URLs. Default: ``$REGISTRY_URL``.
    :param token: The token for the registries. Default: ``$REGISTRY_TOKEN``.
    :param ca: A file or folder of trusted certificate authorities.
    :raises ValueError: *registry* or *token* is invalid; the returned function raises it as well.
    """
    given = (registry,) if isinstance(registry, str) else registry
    registries = None if given is None else tuple(map(check_registry, given))
    if registries == ():
        raise ValueError("registry is empty: the URL of a registry, or several")
    if token:
        _check_token(token, "token")

    def connect() -> Client:
        # imported in the background thread: the import takes a while and must not delay the start
        from wsgigate.registration.client import RegistryClient

        secret = os.environ.get("REGISTRY_TOKEN", "") if token is None else token
        if secret:
            _check_token(secret, "REGISTRY_TOKEN")
        urls = _from_environment() if registries is None else registries
        return RegistryClient(urls, entry, secret, verify=ca or True)

    return connect


def _from_environment() -> tuple[str, ...]:
    text = os.environ.get("REGISTRY_URL", "") or DEFAULT_REGISTRY
    try:
        urls = tuple(check_registry(url.strip()) for url in text.split(",") if url.strip())
    except ValueError as error:
        raise ValueError(f"REGISTRY_URL: {error}") from None
    if not urls:
        raise ValueError("REGISTRY_URL is empty: the URL of a registry, or several, with commas")
    return urls


def _check_token(token: str, name: str) -> None:
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{name} must be 1 to 4096 visible characters without spaces")
