"""The kinds of values in a file: each validates and converts a value, or adds an error.

Every kind also has its JSON Schema (draft 2020-12), so that the schema for editors always agrees
with the reader. A value that is not text may also be given as text that refers to an environment
variable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from importlib import import_module
from ipaddress import ip_address
from typing import Any, Generic, TypeAlias, TypeVar
from wsgiref.types import WSGIApplication

from wsgigate.config.errors import MISSING, Errors, FromEnvironment, shown
from wsgigate.discovery import Instance
from wsgigate.http.target import canonical_pattern
from wsgigate.rules.quota import Quota
from wsgigate.rules.routing import Route
from wsgigate.units import parse_duration, parse_size

__all__ = [
    "Bind",
    "Boolean",
    "Duration",
    "Enumeration",
    "HiddenText",
    "ImportPath",
    "Integer",
    "Kind",
    "Number",
    "ParsedText",
    "PathPattern",
    "QuotaText",
    "QuotasText",
    "Scalar",
    "Schema",
    "Size",
    "Text",
    "Url",
    "error_text",
    "import_app",
    "import_function",
    "import_object",
    "is_loopback",
    "listen_addresses",
    "or_reference",
]


T = TypeVar("T")

Schema: TypeAlias = dict[str, Any]


def or_reference(schema: Schema) -> Schema:
    """Return *schema* extended to accept text that refers to an environment variable."""
    reference = {"type": "string", "pattern": r"\$\{[A-Za-z_]", "description": '"${NAME}"'}
    return {"anyOf": [schema, reference]}


class Kind(Generic[T]):
    """A kind of value."""

    expected = "a value"
    """The expected value, for error messages."""

    def read(self, value: object, path: str, errors: Errors) -> T | None:
        """Return *value* converted to Python; add to *errors* and return None if it is invalid."""
        return self.blank() if value is MISSING else self._read(value, path, errors)

    def blank(self) -> T | None:
        """Return the placeholder for an invalid value, so that the positions in a list stay."""
        return None

    def _read(self, value: object, path: str, errors: Errors) -> T | None:
        raise NotImplementedError

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        """Return the JSON Schema; shared shapes are added to *definitions*."""
        raise NotImplementedError

    def _wrong(self, value: object, path: str, errors: Errors) -> T | None:
        errors.add(path, f"expected {self.expected}, got {shown(value)}")
        return self.blank()


class Text(Kind[str]):
    """Text of one or more lines.

    :param expected: A description with an example, for error messages.
    :param pattern: A regular expression that the whole text must match.
    """

    def __init__(self, expected: str = "text", *, pattern: str = "") -> None:
        self.expected = expected
        self._pattern = re.compile(pattern) if pattern else None

    def _read(self, value: object, path: str, errors: Errors) -> str | None:
        if not isinstance(value, str) or (self._pattern and not self._pattern.fullmatch(value)):
            return self._wrong(value, path, errors)
        return str(value)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        if self._pattern is None:
            return {"type": "string"}
        return or_reference({"type": "string", "pattern": f"^(?:{self._pattern.pattern})$"})


class HiddenText(Kind[str]):
    """Text that errors, logs and listings must not show."""

    expected = "text (a secret)"

    def _read(self, value: object, path: str, errors: Errors) -> str | None:
        if not isinstance(value, str):
            errors.add(path, f"expected {self.expected}, got something else")
            return None
        if not value:
            errors.add(path, "a secret must not be empty")
            return None
        errors.hide(value)
        return str(value)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"type": "string", "minLength": 1, "writeOnly": True}


class Number(Kind[float]):
    """A number, integer or not."""

    def __init__(self, minimum: float | None = None, maximum: float | None = None) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self.expected = _between("a number", minimum, maximum)

    def _read(self, value: object, path: str, errors: Errors) -> float | None:
        number = _parsed(value, float)
        if isinstance(number, bool) or not isinstance(number, int | float):
            return self._wrong(value, path, errors)
        if not (_within(number, self._minimum, self._maximum) and math.isfinite(number)):
            return self._wrong(value, path, errors)
        return float(number)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return or_reference(_limits("number", self._minimum, self._maximum))


class Integer(Kind[int]):
    """A whole number."""

    def __init__(self, minimum: int | None = None, maximum: int | None = None) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self.expected = _between("a whole number", minimum, maximum)

    def _read(self, value: object, path: str, errors: Errors) -> int | None:
        number = _parsed(value, int)
        if isinstance(number, bool) or not isinstance(number, int):
            return self._wrong(value, path, errors)
        if not _within(number, self._minimum, self._maximum):
            return self._wrong(value, path, errors)
        return number

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return or_reference(_limits("integer", self._minimum, self._maximum))


class Boolean(Kind[bool]):
    """``true`` or ``false``."""

    expected = "true or false"

    def _read(self, value: object, path: str, errors: Errors) -> bool | None:
        if isinstance(value, FromEnvironment):
            value = {"true": True, "false": False}.get(value.lower(), value)
        if not isinstance(value, bool):
            return self._wrong(value, path, errors)
        return value

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return or_reference({"type": "boolean"})


class Scalar(Kind[str | int | float | bool]):
    """Text, a number, ``true`` or ``false``."""

    expected = "text, a number, true or false"

    def _read(self, value: object, path: str, errors: Errors) -> str | int | float | bool | None:
        if not isinstance(value, str | int | float):
            return self._wrong(value, path, errors)
        return str(value) if isinstance(value, str) else value

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"type": ["string", "number", "boolean"]}


class Enumeration(Kind[str]):
    """One of several fixed words."""

    def __init__(self, *words: str) -> None:
        self._words = words
        quoted = [shown(word) for word in words]
        self.expected = " or ".join([", ".join(quoted[:-1]), quoted[-1]]).removeprefix(" or ")

    def _read(self, value: object, path: str, errors: Errors) -> str | None:
        if not isinstance(value, str) or value not in self._words:
            return self._wrong(value, path, errors)
        return str(value)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return or_reference({"enum": list(self._words)})


class _Amount(Kind[T]):
    """A number, or text with a number and a unit."""

    _pattern = ""

    def _read_amount(self, value: Any) -> T:
        raise NotImplementedError

    def _read(self, value: object, path: str, errors: Errors) -> T | None:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                return self._read_amount(value)
            except ValueError:
                pass
        return self._wrong(value, path, errors)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        pattern = rf"^\s*[0-9].*{self._pattern}|\$\{{"
        return {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": pattern}]}


class Duration(_Amount[float]):
    """A length of time; a bare number is seconds.

    :param zero: Whether 0 is allowed.
    """

    expected = 'a duration such as "30s"'
    _pattern = "[0-9dhms]\\s*$"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def _read_amount(self, value: Any) -> float:
        seconds = parse_duration(value)
        if not (seconds or self._zero):
            raise ValueError("a duration must be greater than 0")
        return seconds


class Size(_Amount[int]):
    """A number of bytes."""

    expected = 'a size such as "64KiB"'
    _pattern = "[0-9KMGTkmgtiIbB]\\s*$"

    def _read_amount(self, value: Any) -> int:
        return parse_size(value)


def _within(number: float, minimum: float | None, maximum: float | None) -> bool:
    return (minimum is None or number >= minimum) and (maximum is None or number <= maximum)


def _between(what: str, minimum: float | None, maximum: float | None) -> str:
    if minimum is None:
        return what
    return (
        f"{what}, at least {minimum}" if maximum is None else f"{what} from {minimum} to {maximum}"
    )


def _limits(type_: str, minimum: float | None, maximum: float | None) -> Schema:
    limits = {"minimum": minimum, "maximum": maximum}
    return {"type": type_, **{key: value for key, value in limits.items() if value is not None}}


def _parsed(value: object, number: Callable[[str], float]) -> object:
    if isinstance(value, FromEnvironment):
        try:
            return number(value)
        except ValueError:
            pass
    return value


# Kinds of text that functions of other modules parse: quotas, addresses, paths.


class ParsedText(Kind[T]):
    """Text that a function parses.

    :param make: Returns the value of the text, or raises ValueError.
    :param expected: A description with an example, for error messages.
    :param reason: Report the message of the ValueError instead of "expected ..., got ...".
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


class QuotaText(ParsedText[Quota]):
    """A quota: requests per period."""

    def __init__(self) -> None:
        super().__init__(
            Quota.parse,
            'a quota such as "100 per 15 minutes"',
            pattern=r"^\s*[0-9][0-9_]*\s*([Rr]equests?\s*)?(/|[Pp][Ee][Rr]\b)",
            reason=True,
        )


class QuotasText(ParsedText["Quota | tuple[Quota, ...]"]):
    """One quota, or several separated by ``;``."""

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


class Url(ParsedText[str]):
    """The address of an instance."""

    def __init__(self) -> None:
        super().__init__(
            lambda text: Instance(text).url,
            'an address such as "http://10.0.0.5:8000"',
            pattern="^https?://",
            reason=True,
        )


class PathPattern(ParsedText[str]):
    """A route's path."""

    def __init__(self) -> None:
        super().__init__(_route_path, 'a path such as "/api/users"', pattern="^/", reason=True)


class ImportPath(ParsedText[str]):
    """The name of an object in a Python module, imported when the gateway is built."""

    def __init__(self, what: str) -> None:
        super().__init__(_import_path, f'{what} such as "package.module:name"', pattern=":")


class Bind(ParsedText[str]):
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


def listen_addresses(bind: str) -> list[tuple[str, int]]:
    """Return the addresses and ports a gateway listens on; a host name counts as every address."""
    host, colon, port = bind.rpartition(":")
    if bind.startswith("unix:") or not colon:
        return []
    try:
        return [(str(ip_address(host.strip("[]"))), int(port))]
    except ValueError:
        return [("0.0.0.0", int(port)), ("::", int(port))]  # noqa: S104


def is_loopback(bind: str) -> bool:
    """Return whether *bind* can be reached from this machine only."""
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return bind.startswith("unix:") or host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


# Imports: objects that the file names as ``package.module:name``.


def import_object(name: str) -> Any:
    """Import and return the object *name*, ``package.module:attribute``.

    :raises ValueError: The module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # importing runs arbitrary code, which may raise anything
        raise ValueError(f"{module_name} cannot be imported: {error_text(error)}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(f"{module_name} has no {attribute}") from None
    return found


def import_app(name: str) -> WSGIApplication:
    """Import and return the WSGI application *name*.

    :raises ValueError: The object cannot be imported, or is not callable.
    """
    app: WSGIApplication = import_object(name)
    if not callable(app):
        raise ValueError(f"{name} is not a WSGI application: it is not callable")
    return app


def import_function(name: str) -> Any:
    """Import and return the function *name*.

    :raises ValueError: The object cannot be imported, or is not callable.
    """
    found = import_object(name)
    if not callable(found):
        raise ValueError(f"{name} is not a function: it is not callable")
    return found


def error_text(error: Exception) -> str:
    """Return the type of *error* and its message, if it has one."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
