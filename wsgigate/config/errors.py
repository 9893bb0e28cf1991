"""Errors of a configuration file, and environment variables in its values.

All errors of a file are collected and reported together, each with the path of its key. A secret
that a value or a variable held is masked in every error text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeVar

__all__ = [
    "MISSING",
    "ConfigError",
    "Errors",
    "FromEnvironment",
    "at",
    "is_below",
    "shown",
    "substitute",
]


T = TypeVar("T")

_BARE = re.compile(r"[A-Za-z0-9_-]+")

_WITHIN = re.compile(r"(\w+)\[\d+\](?:\.\w+(?:\[\d+\])?)*")

_CREDENTIALS = re.compile(r"(://)[^/@\s\"']+@")

_SHOWN = 60

_SHORTEST_SECRET = 4  # hiding a shorter one would hide the words around it


class ConfigError(Exception):
    """A configuration file that cannot be used; as text, one line per error.

    :param path: The file name, as the user gave it.
    :param errors: Pairs of key path and message; the key path is empty for the file as a whole.
    """

    def __init__(self, path: str, errors: Iterable[tuple[str, str]]) -> None:
        self.path = path
        self.errors: list[tuple[str, str]] = list(errors)
        super().__init__(str(self))

    def __str__(self) -> str:
        return "\n".join(
            ": ".join(part for part in (self.path, key, text) if part) for key, text in self.errors
        )


class Errors:
    """The errors of a file, collected; iterating masks the secrets in their texts."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], None] = {}
        self._secrets: set[str] = set()

    def add(self, path: str, text: str) -> None:
        """Add the error *text* at the key *path*, once."""
        self._found[path, " ".join(text.split())] = None

    def hide(self, secret: str) -> None:
        """Mask *secret* in all error texts, in any quoted form."""
        for form in (
            secret,
            repr(secret)[1:-1],
            json.dumps(secret)[1:-1],
            " ".join(secret.split()),
        ):
            if len(form) >= _SHORTEST_SECRET:
                self._secrets.add(form)

    def under(self, path: str, *, but: str = "") -> bool:
        """Return whether *path* or a key below it has an error, except *but* and keys below it."""
        return any(
            is_below(key, path) and not (but and is_below(key, but)) for key, _ in self._found
        )

    def exactly(self, path: str) -> bool:
        """Return whether *path* itself has an error; keys below it are ignored."""
        return any(key == path for key, _ in self._found)

    def catch(self, path: str, make: Callable[[], T], *, keys: Collection[str] = ()) -> T | None:
        """Return the result of *make*; on ValueError, add an error at *path* and return None.

        :param keys: Keys below *path*: an error that begins with one of them is added at that key,
            such as ``secret: ...`` or, within it, ``rules[0].scopes: ...``.
        """
        try:
            return make()
        except ValueError as error:
            key, colon, text = str(error).partition(": ")
            within = _WITHIN.fullmatch(key)
            if colon and key in keys:
                self.add(at(path, key), text)
            elif colon and within is not None and within[1] in keys:
                self.add(f"{path}.{key}" if path else key, text)
            else:
                self.add(path, str(error) or type(error).__name__)
            return None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter([(key, self._masked(text)) for key, text in self._found])

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self, path: str) -> None:
        """Raise a :class:`ConfigError` of the file *path* with all errors, if there are any."""
        if self._found:
            raise ConfigError(path, self)

    def _masked(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return _CREDENTIALS.sub(r"\1***@", text)


def is_below(key: str, path: str) -> bool:
    """Return whether the key path *key* is *path* or below it."""
    return key == path or key.startswith((path + ".", path + "["))


def at(path: str, key: str | int) -> str:
    """Return the key path of *key* below *path*: ``routes[2].middleware``, ``services."a.b"``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    name = key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    return f"{path}.{name}" if path else name


def shown(value: object) -> str:
    """Return *value* as error texts show it: ``"30 parsecs"``, ``the number 3``, ``a list``."""
    if isinstance(value, str):
        text = value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
        return json.dumps(text, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    return "a date or time"


# Environment variables in strings: ``${NAME}``, ``${NAME:-default}``, and ``$$`` for ``$``.

_REFERENCE = re.compile(r"\$\$|\$\{([^}]*)(\}?)")

_BODY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASS|PWD|KEY|CREDENTIAL", re.IGNORECASE)

MISSING = object()
"""Replaces a value whose variable is not set: that error is reported already, no further one is."""


class FromEnvironment(str):
    """Text that came from a variable; numbers and flags may be read from it."""

    __slots__ = ()


def substitute(value: object, environ: Mapping[str, str], errors: Errors, path: str = "") -> object:
    """Return *value* with variables substituted in all its strings; keys are left unchanged.

    A variable that is set but empty counts as set, except with a default, as in a shell.
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
        errors.add(path, '"${" without a closing "}"; write "$$" for a dollar sign')
        return None
    if "${" in reference[1]:
        errors.add(path, "a variable reference cannot contain another one")
        return None
    if body is None:
        errors.add(
            path,
            'a variable reference is "${NAME}" or "${NAME:-default}"; write "$$" for a dollar sign',
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
