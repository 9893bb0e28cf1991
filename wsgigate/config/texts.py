"""Kinds of text that somebody else already knows how to read: quotas, addresses, paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from wsgigate.config.errors import Errors
from wsgigate.config.kinds import Kind, Schema, or_reference
from wsgigate.discovery import Instance
from wsgigate.rules.quota import Quota
from wsgigate.rules.routing import Route
from wsgigate.target import canonical_pattern

__all__ = ["Bind", "Checked", "ImportPath", "PathPattern", "QuotaText", "Url"]

T = TypeVar("T")


class Checked(Kind[T]):
    """Text that a function reads.

    :param make: Makes the value of the text; raises ValueError when it can not.
    :param expected: What it is, with an example.
    :param reason: Whether the ValueError says it better than "expected this, got that".
    """

    def __init__(
        self, make: Callable[[str], T], expected: str, *, pattern: str = "", reason: bool = False
    ) -> None:
        self.expected = expected
        self._make = make
        self._pattern = pattern
        self._reason = reason

    def _read(self, value: object, path: str, errors: Errors) -> T | None:
        if not isinstance(value, str):
            return self._wrong(value, path, errors)
        try:
            return self._make(str(value))
        except ValueError as error:
            if not self._reason:
                return self._wrong(value, path, errors)
            errors.add(path, str(error))
            return None

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        text: Schema = {"type": "string"}
        return or_reference({**text, "pattern": self._pattern}) if self._pattern else text


class QuotaText(Checked[Quota]):
    """How many requests in how much time."""

    def __init__(self) -> None:
        super().__init__(
            Quota.parse,
            'a quota such as "100 per 15 minutes"',
            pattern=r"^\s*[0-9][0-9_]*\s*([Rr]equests?\s*)?(/|[Pp][Ee][Rr]\b)",
            reason=True,
        )


class QuotasText(Checked["Quota | tuple[Quota, ...]"]):
    """One quota, or several with ``;`` between them."""

    def __init__(self) -> None:
        super().__init__(
            _quotas,
            'a quota such as "100 per 15 minutes", or several such as "10/h; 100/d"',
            pattern=r"^\s*[0-9][0-9_]*\s*([Rr]equests?\s*)?(/|[Pp][Ee][Rr]\b)",
            reason=True,
        )


def _quotas(text: str) -> Quota | tuple[Quota, ...]:
    quotas = Quota.parse_all(text)
    return quotas[0] if len(quotas) == 1 else quotas


class Url(Checked[str]):
    """The address of an instance."""

    def __init__(self) -> None:
        super().__init__(
            lambda text: Instance(text).url,
            'an address such as "http://10.0.0.5:8000"',
            pattern="^https?://",
            reason=True,
        )


class PathPattern(Checked[str]):
    """A route's path."""

    def __init__(self) -> None:
        super().__init__(_route_path, 'a path such as "/api/users"', pattern="^/", reason=True)


class ImportPath(Checked[str]):
    """An object of a Python module, which is imported when the gateway is built."""

    def __init__(self, what: str) -> None:
        super().__init__(_import_path, f'{what} such as "package.module:name"', pattern=":")


class Bind(Checked[str]):
    """An address to listen on."""

    def __init__(self) -> None:
        super().__init__(
            _bind, 'an address such as "127.0.0.1:3000", "[::1]:3000" or "unix:/run/gateway.sock"'
        )


def _route_path(text: str) -> str:
    path = canonical_pattern(text)
    Route(path, None)
    return path


_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_BIND = re.compile(r"unix:.+|(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def _import_path(text: str) -> str:
    if not _IMPORT_PATH.fullmatch(text):
        raise ValueError(text)
    return text


def _bind(text: str) -> str:
    match = _BIND.fullmatch(text)
    if not match or (match[1] and int(match[1]) > 65535):
        raise ValueError(text)
    return text
