"""``${NAME}`` and ``${NAME:-default}`` in the strings of a file, and ``$$`` for a dollar sign."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wsgigate.config.errors import Errors, at

__all__ = ["MISSING", "FromEnvironment", "substitute"]

_REFERENCE = re.compile(r"\$\$|\$\{([^}]*)(\}?)")
_BODY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASS|PWD|KEY|CREDENTIAL", re.IGNORECASE)

MISSING = object()
"""Stands where a variable is not set, which is an error already: nothing more is said of it."""


class FromEnvironment(str):
    """Text that a variable took part in, which numbers and switches may therefore be read from."""

    __slots__ = ()


def substitute(value: object, environ: Mapping[str, str], errors: Errors, path: str = "") -> object:
    """Return *value* with the references in every string of it replaced; keys stay as they are.

    A variable that is set but empty counts as set, except where a default is given: as in a shell.
    """
    if isinstance(value, str):
        return _text(value, environ, errors, path) if "$" in value else value
    if isinstance(value, list):
        return [
            substitute(item, environ, errors, at(path, index)) for index, item in enumerate(value)
        ]
    if isinstance(value, dict):
        return {
            key: substitute(item, environ, errors, at(path, str(key)))
            for key, item in value.items()
        }
    return value


def _text(text: str, environ: Mapping[str, str], errors: Errors, path: str) -> object:
    parts: list[str] = []
    end = 0
    used = missing = False
    for reference in _REFERENCE.finditer(text):
        parts.append(text[end : reference.start()])
        end = reference.end()
        if reference[0] == "$$":
            parts.append("$")
            continue
        found = _value(reference, environ, errors, path)
        used, missing = True, missing or found is None
        parts.append(found or "")
    if missing:
        return MISSING
    whole = "".join([*parts, text[end:]])
    return FromEnvironment(whole) if used else whole


def _value(
    reference: re.Match[str], environ: Mapping[str, str], errors: Errors, path: str
) -> str | None:
    body = _BODY.fullmatch(reference[1])
    if not reference[2]:
        errors.add(path, 'a "${" without its "}"; write "$$" for a dollar sign')
        return None
    if "${" in reference[1]:
        errors.add(path, "a reference to a variable can not stand inside of another")
        return None
    if body is None:
        errors.add(
            path, 'a reference to a variable is "${NAME}" or "${NAME:-default}"; "$$" is a dollar'
        )
        return None
    name, default = body[1], body[2]
    value = environ.get(name)
    if default is not None:
        value = value or default.replace("$$", "$")
    if value is None:
        errors.add(
            path, f"the environment variable {name} is not set, and ${{{name}}} has no default"
        )
    elif _SECRET_NAME.search(name):
        errors.hide(value)
    return value
