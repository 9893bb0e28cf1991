"""Everything that is wrong with a file, found in one go: where, and a sentence for its author."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeVar

__all__ = ["ConfigError", "Errors", "FromEnvironment", "MISSING", "at", "shown", "substitute"]


T = TypeVar("T")

_BARE = re.compile(r"[A-Za-z0-9_-]+")

_CREDENTIALS = re.compile(r"(://)[^/@\s\"']+@")

_SHOWN = 60

_SHORTEST_SECRET = 4  # hiding a shorter one would hide the words around it


class ConfigError(Exception):
    """A configuration file that can not be used; as text, one line for each thing that is wrong.

    :param path: The file, as its user named it.
    :param errors: Pairs of key path and sentence; the key path is empty for the file as a whole.
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
    """Errors as they are found; secrets in their texts are replaced when they are read."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], None] = {}
        self._secrets: set[str] = set()

    def add(self, path: str, text: str) -> None:
        """Keep one error; the same one twice is one."""
        self._found[path, " ".join(text.split())] = None

    def hide(self, secret: str) -> None:
        """Never show *secret*, wherever it turns up, however it is quoted there."""
        for form in (
            secret,
            repr(secret)[1:-1],
            json.dumps(secret)[1:-1],
            " ".join(secret.split()),
        ):
            if len(form) >= _SHORTEST_SECRET:
                self._secrets.add(form)

    def under(self, path: str, *, but: str = "") -> bool:
        """Return whether *path* or something below it is wrong, *but* and below not counted."""
        return any(_below(key, path) and not (but and _below(key, but)) for key, _ in self._found)

    def exactly(self, path: str) -> bool:
        """Return whether *path* itself is wrong, whatever is below it."""
        return any(key == path for key, _ in self._found)

    def tried(self, path: str, make: Callable[[], T], *, keys: Collection[str] = ()) -> T | None:
        """Return what *make* makes, or None when it raises ValueError: an error at *path*.

        :param keys: Keys below *path*: an error that begins with the name of one is at that key.
        """
        try:
            return make()
        except ValueError as error:
            key, colon, text = str(error).partition(": ")
            if colon and key in keys:
                self.add(at(path, key), text)
            else:
                self.add(path, str(error) or type(error).__name__)
            return None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter([(key, self._masked(text)) for key, text in self._found])

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self, path: str) -> None:
        """Raise all of them as one :class:`ConfigError` of the file *path*, if there are any."""
        if self._found:
            raise ConfigError(path, self)

    def _masked(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return _CREDENTIALS.sub(r"\1***@", text)


def _below(key: str, path: str) -> bool:
    return key == path or key.startswith((path + ".", path + "["))


def at(path: str, key: str | int) -> str:
    """Return the key path of *key* below *path*: ``routes[2].middleware``, ``services."a.b"``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    name = key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    return f"{path}.{name}" if path else name


def shown(value: object) -> str:
    """Return *value* as an error text names it: ``"30 parsecs"``, ``the number 3``, ``a list``."""
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


# ``${NAME}`` and ``${NAME:-default}`` in the strings of a file, and ``$$`` for a dollar sign.

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
