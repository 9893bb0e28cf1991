"""The configuration in force, for operators to read: no value that may be a secret is in it.

What is masked is decided by the kinds of the keys and by where a value came from, never by what it
looks like alone:

- a key of the kind :class:`.HiddenText` (and ``Trait.SECRET`` of an argument) is ``***``;
- a value that refers to an environment variable keeps the reference, ``${NAME}``, so that no value
  of the environment is ever read here; its default is masked;
- values of header fields are masked, as a service's credentials are often among them;
- the userinfo and the query of URLs, the query of paths, and all but the public members of inline
  keys (JWK), are masked;
- options of custom factories, whose kinds are unknown, are masked, except numbers and flags.
"""

from __future__ import annotations

import dataclasses
import json
import re
from hashlib import blake2b
from typing import Any, TypeVar

from wsgigate.config.middlewares import MIDDLEWARES, MiddlewareEntry
from wsgigate.config.tables import ListOf, MapOf, Table, TableKey, UnionOf
from wsgigate.config.types import HiddenText, Kind

__all__ = ["MASK", "changed", "config_hash", "masked_document", "masked_of", "remember_source"]


C = TypeVar("C")

MASK = "***"

_REFERENCE = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\}")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s]*@")
"""A URL with userinfo; what precedes the last ``@`` of its authority is masked."""

_QUERY = re.compile(r"((?:://|^/)[^\s?#]*\?)[^\s#]+")
"""The query of a URL or of a path, such as that of a health check."""

_FIELDS = frozenset({"add", "fields", "headers", "set"})
"""Keys whose tables have the values of header fields."""

_PUBLIC = frozenset({"alg", "crv", "e", "key_ops", "kid", "kty", "n", "use", "x", "y"})
"""The members of a JWK without a secret (RFC 7517 section 4, RFC 7518 section 6)."""

_SOURCE = "_masked_source"


def remember_source(config: Any, kind: Table[Any], tables: Any, text: bytes = b"") -> None:
    """Keep the masked form of the *tables* that *config* was read from, and their hash.

    :param kind: The kind of the tables.
    :param text: The bytes of the file.
    """
    document = masked_document(kind, tables)
    digest = blake2b(text, digest_size=8)
    digest.update(json.dumps(document, sort_keys=True, default=str).encode())
    object.__setattr__(config, _SOURCE, (document, digest.hexdigest()))


def changed(config: C, **changes: Any) -> C:
    """Return *config* with some tables replaced, as the command line does; its source stays."""
    made: C = dataclasses.replace(config, **changes)  # type: ignore[type-var]
    if hasattr(config, _SOURCE):
        object.__setattr__(made, _SOURCE, getattr(config, _SOURCE))
    return made


def masked_of(config: Any) -> dict[str, Any]:
    """Return the masked tables of *config*; empty for one that was not read from tables."""
    found: dict[str, Any] = getattr(config, _SOURCE, ({}, ""))[0]
    return found


def config_hash(config: Any) -> str:
    """Return a hash that changes with the file; empty for a *config* that was not read from one."""
    found: str = getattr(config, _SOURCE, ({}, ""))[1]
    return found


def masked_document(kind: Table[Any], tables: Any) -> dict[str, Any]:
    """Return *tables* with their defaults and without secrets.

    :param kind: The kind of the tables.
    :param tables: The tables as the file has them, before variables are replaced.
    """
    return _table(kind.keys, tables) if isinstance(tables, dict) else {}


def _table(keys: Any, given: dict[Any, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, key in keys.items():
        if name in given:
            document[name] = _masked(key.kind, given[name], name)
        else:
            default = _default(key)
            if default is not None:
                document[name] = default
    return document


def _default(key: TableKey) -> Any:
    if isinstance(key.kind, HiddenText):
        return None
    default = key.default
    if isinstance(default, str | int | float):
        return default
    if isinstance(default, tuple) and all(isinstance(each, str | int | float) for each in default):
        return list(default)
    return None


def _masked(kind: Kind[Any] | None, value: Any, name: str) -> Any:
    """Return *value* without secrets.

    :param kind: Its kind; None if that is unknown.
    :param name: The key that it is the value of.
    """
    if isinstance(kind, UnionOf):
        return _masked(kind.of(value), value, name)
    if isinstance(value, dict):
        return _masked_table(kind, value, name)
    if isinstance(value, list):
        item = kind.item if isinstance(kind, ListOf) else None
        return [_masked(item, each, name) for each in value]
    if isinstance(value, str) and "${" in value:
        return _references(value)
    if isinstance(kind, HiddenText):
        return MASK
    if isinstance(value, str):
        return MASK if kind is None else _without_credentials(value)
    return value if isinstance(value, int | float) or value is None else str(value)


def _masked_table(kind: Kind[Any] | None, value: dict[Any, Any], name: str) -> Any:
    if "kty" in value:
        return {
            str(key): each
            if key in _PUBLIC and isinstance(each, str) and "${" not in each
            else _masked(None, each, str(key))
            for key, each in value.items()
        }
    if isinstance(kind, HiddenText):
        return MASK
    if isinstance(kind, MiddlewareEntry):
        return _middleware(value)
    if isinstance(kind, Table):
        return _table(kind.keys, value)
    if isinstance(kind, MapOf):
        inner = None if name in _FIELDS else kind.item
        return {str(key): _masked(inner, each, "") for key, each in value.items()}
    return {str(key): _masked(None, each, str(key)) for key, each in value.items()}


def _middleware(value: dict[Any, Any]) -> dict[str, Any]:
    use = value.get("use")
    options = {key: item for key, item in value.items() if key != "use"}
    known = MIDDLEWARES.get(use) if isinstance(use, str) else None
    if known is None:
        shown = {str(key): _masked(None, item, str(key)) for key, item in options.items()}
    else:
        shown = _table(known.table.keys, options)
    return {"use": str(use), **shown}


def _references(text: str) -> str:
    """Return *text* with its references to variables, and nothing around them."""
    found = [
        f"${{{match[1]}:-{MASK}}}" if match[2] else f"${{{match[1]}}}"
        for match in _REFERENCE.finditer(text)
        if match[1]
    ]
    whole = _REFERENCE.fullmatch(text)
    return found[0] if whole and found else f"{MASK} ({', '.join(found)})"


def _without_credentials(text: str) -> str:
    return _QUERY.sub(rf"\1{MASK}", _URL.sub(rf"\1{MASK}@", text))
