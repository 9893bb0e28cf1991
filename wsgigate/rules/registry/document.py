"""From the document that a registration sends to an entry, or to what is wrong with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from wsgigate.rules.health import HealthCheck
from wsgigate.rules.registry.entry import (
    Invalid,
    Registered,
    Status,
    check_host,
    check_id,
    check_service,
)

__all__ = ["METADATA_BYTES", "parse", "parse_status"]

METADATA_BYTES = 4096
"""How long the metadata may be, as JSON."""

_METADATA_MEMBERS = 64
_METADATA_DEPTH = 4
_MOST_WEIGHT = 65_535
_MOST_TAGS = 256
_LONGEST_TAG = 4096
TAGS_BYTES = 16 * 1024
"""How long all tags of an instance may be together, as JSON."""

_MEMBERS = frozenset(
    [
        *("serviceName", "instanceId", "host", "port", "scheme", "weight", "status", "version"),
        *("zone", "tags", "metadata", "healthCheckPath"),
    ]
)
_REQUIRED = ("serviceName", "instanceId", "host", "port")
_NAME = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WORD = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,62}[\x21-\x7e])?")


def parse(document: Mapping[str, Any], service: str | None = None) -> Registered:
    """Return the entry that *document* describes.

    Its members are ``serviceName``, ``instanceId``, ``host``, ``port`` and, if need be, ``scheme``,
    ``weight``, ``status``, ``version``, ``zone``, ``tags``, ``healthCheckPath`` and ``metadata``. A
    ``version``, ``zone`` or ``healthCheckPath`` may be among the metadata instead.

    :param service: The name of the service where the document need not say it.
    :raises Invalid: A member is missing, unknown, or beyond its limits; names it.
    """
    for name in document:
        if name not in _MEMBERS:
            raise Invalid(str(name)[:64], "there is no such member")
    given = document if service is None else {"serviceName": service, **document}
    for name in _REQUIRED:
        if given.get(name) in (None, "", 0):
            raise Invalid(name, "serviceName, instanceId, host, and port are required!")
    if service is not None and given["serviceName"] != service:
        raise Invalid("serviceName", "is another service's")
    metadata = _metadata(document.get("metadata"))

    def member(name: str, read: Callable[[str, Any], Any], default: Any = None) -> Any:
        value = document.get(name)
        return default if value is None else read(name, value)

    def either(name: str, read: Callable[[str, Any], str]) -> str | None:
        value = document.get(name)
        if value is not None:
            return read(name, value)
        value = metadata.get(name)
        return read(f"metadata.{name}", value) if isinstance(value, str) and value else None

    return Registered(
        check_service(given["serviceName"]),
        check_id(given["instanceId"]),
        check_host(given["host"]),
        _integer("port", given["port"], 1, 65_535),
        scheme=member("scheme", _scheme, "http"),
        weight=member("weight", lambda name, value: _integer(name, value, 0, _MOST_WEIGHT), 1),
        status=member("status", lambda name, value: parse_status(value), Status.UP),
        version=either("version", _word),
        zone=either("zone", _word),
        tags=member("tags", _tags, ()),
        metadata=metadata,
        health_check_path=either("healthCheckPath", _path),
    )


def parse_status(value: object) -> Status:
    """Return the status that *value* names.

    :raises Invalid: There is none of that name.
    """
    try:
        return Status(value)  # type: ignore[arg-type]
    except ValueError:
        raise Invalid("status", f"one of {', '.join(Status)}") from None


def _integer(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise Invalid(name, f"a whole number from {least} to {most}")
    return value


def _scheme(name: str, value: object) -> str:
    if value != "http" and value != "https":
        raise Invalid(name, '"http" or "https"')
    return str(value)


def _word(name: str, value: object) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise Invalid(name, "1 to 64 printable ASCII characters, no space first or last")
    return value


def _tags(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MOST_TAGS:
        raise Invalid(name, f"a list of at most {_MOST_TAGS} tags")
    for tag in value:
        # a whole routing rule may stand in one, as Traefik reads it there
        if not isinstance(tag, str) or not 0 < len(tag) <= _LONGEST_TAG or _NO_TEXT.search(tag):
            raise Invalid(
                name, f"each tag a text of 1 to {_LONGEST_TAG} characters, no control characters"
            )
    if len(json.dumps(value)) > TAGS_BYTES:
        raise Invalid(name, f"at most {TAGS_BYTES} bytes of JSON for all tags together")
    return tuple(dict.fromkeys(value))


def _path(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise Invalid(name, "a path of at most 256 characters")
    try:
        HealthCheck(value)
    except ValueError as error:
        raise Invalid(name, str(error)) from None
    return value


def _metadata(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid("metadata", "an object")
    try:
        _check_tree(value, _METADATA_DEPTH)
        encoded = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (RecursionError, TypeError, ValueError) as error:
        if isinstance(error, Invalid):
            raise
        raise Invalid("metadata", "has a value that is no JSON") from None
    if len(encoded) > METADATA_BYTES:
        raise Invalid("metadata", f"at most {METADATA_BYTES} bytes of JSON")
    return value


def _check_tree(value: object, depth: int) -> None:
    """Refuse what is nested deeper than *depth*, control characters, and names that mean more."""
    if isinstance(value, dict):
        if depth == 0:
            raise Invalid("metadata", f"at most {_METADATA_DEPTH} levels deep")
        if len(value) > _METADATA_MEMBERS:
            raise Invalid("metadata", f"at most {_METADATA_MEMBERS} members")
        for name, item in value.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name[:2] == "__":
                raise Invalid(
                    "metadata",
                    "names of 1 to 128 printable ASCII characters, not beginning with __",
                )
            _check_tree(item, depth - 1)
    elif isinstance(value, list):
        if depth == 0:
            raise Invalid("metadata", f"at most {_METADATA_DEPTH} levels deep")
        for item in value:
            _check_tree(item, depth - 1)
    elif isinstance(value, str):
        if not value.isprintable():
            raise Invalid("metadata", "texts without control characters")
    elif isinstance(value, float) and not math.isfinite(value):
        raise Invalid("metadata", "numbers that are finite")
