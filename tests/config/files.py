"""Parts of configuration files, and what is built from them."""

from __future__ import annotations

import pytest

from wsgigate.config.build import assemble, build
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import parse
from wsgigate.gateway import Gateway

SECRET = "a-secret-of-at-least-thirty-two-bytes"
MEMORY = '[store]\nurl = "memory:"\n'
APP = '[[routes]]\npath = "/echo"\napp = "full_site:echo"\n'


_built: list[Gateway] = []


def built(text: str, path: str = "", *, store: str = MEMORY) -> Gateway:
    """Return the gateway of a file, which in this folder is closed after the test.

    :param store: The table of the store, which comes before *text*.
    """
    _built.append(build(parse(store + text, environ={}), path=path))
    return _built[-1]


def close_all() -> None:
    """Close all gateways that were built, whose threads would go on beside later tests."""
    while _built:
        _built.pop().close()


def errors_of(text: str, path: str = "") -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        assemble(parse(MEMORY + text, environ={}), path=path)
    return caught.value.errors
