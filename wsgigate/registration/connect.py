"""Where the registry of a service is, and what allows to register there."""

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
    """Return what makes the client of *entry*'s registries.

    What is given is checked now; what comes from the environment, and what is in files, when it is
    called, since a service must not fail for it.

    :param registry: Their URLs; those of ``$REGISTRY_URL`` unless given.
    :param token: What allows to register; ``$REGISTRY_TOKEN`` unless given.
    :param ca: A file or folder of the authorities that vouch for them.
    :raises ValueError: *registry* or *token* can not be right; so does what is returned.
    """
    given = (registry,) if isinstance(registry, str) else registry
    registries = None if given is None else tuple(map(check_registry, given))
    if registries == ():
        raise ValueError("registry names no registry")
    if token:
        _check_token(token, "token")

    def connect() -> Client:
        # only now, and in the background: it takes a while, and the service should not wait for it
        from wsgigate.registration.client import RegistryClient

        secret = os.environ.get("REGISTRY_TOKEN", "") if token is None else token
        if secret:
            _check_token(secret, "REGISTRY_TOKEN")
        where = _from_environment() if registries is None else registries
        return RegistryClient(where, entry, secret, verify=ca or True)

    return connect


def _from_environment() -> tuple[str, ...]:
    urls = os.environ.get("REGISTRY_URL", "") or DEFAULT_REGISTRY
    try:
        where = tuple(check_registry(url.strip()) for url in urls.split(",") if url.strip())
    except ValueError as error:
        raise ValueError(f"REGISTRY_URL: {error}") from None
    if not where:
        raise ValueError("REGISTRY_URL names no registry")
    return where


def _check_token(token: str, name: str) -> None:
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{name} is 1 to 4096 visible characters without spaces")
