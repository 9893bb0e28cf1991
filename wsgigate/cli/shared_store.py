"""The store of a gateway, for the commands that write to what its workers share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from wsgigate.config.build import assemble
from wsgigate.config.model import Config
from wsgigate.store import Store

__all__ = ["shared_store"]


@contextmanager
def shared_store(config: Config, path: str) -> Iterator[Store]:
    """Yield the store of the gateway that *config*, of the file *path*, describes.

    :raises ConfigError: The gateway can not be built.
    :raises ValueError: Its workers share nothing.
    """
    if config.store.url == "memory:":
        raise ValueError(f"the store of {path} is each worker's own: no command sees it")
    gateway = assemble(config, path=path).gateway
    try:
        yield gateway.store
    finally:
        gateway.close()
