"""What one value of the file may be: read into Python, or an error in its author's words.

Every kind also knows its JSON Schema (draft 2020-12), so that the schema for editors can not say
something else than the reader. Where a value is not text, text with a reference to an environment
variable may stand for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

from wsgigate.config.environment import MISSING, FromEnvironment
from wsgigate.config.errors import Errors, shown
from wsgigate.units import parse_duration, parse_size

__all__ = [
    "Choice",
    "Duration",
    "Flag",
    "Integer",
    "Kind",
    "Number",
    "Schema",
    "Secret",
    "Size",
    "Text",
    "or_reference",
]

T = TypeVar("T")
Schema: TypeAlias = dict[str, Any]


def or_reference(schema: Schema) -> Schema:
    """Return *schema* that also admits text with a reference to an environment variable."""
    reference = {"type": "string", "pattern": r"\$\{[A-Za-z_]", "description": '"${NAME}"'}
    return {"anyOf": [schema, reference]}


class Kind(Generic[T]):
    """One kind of value."""

    expected = "a value"
    """What an error says the value should have been."""

    def read(self, value: object, path: str, errors: Errors) -> T | None:
        """Return *value* as Python wants it, or None when it is wrong and *errors* say so."""
        return self.blank() if value is MISSING else self._read(value, path, errors)

    def blank(self) -> T | None:
        """Return what stands for a wrong value, where a list must keep its count."""
        return None

    def _read(self, value: object, path: str, errors: Errors) -> T | None:
        raise NotImplementedError

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        """Return the JSON Schema; shapes used in several places go to *definitions*."""
        raise NotImplementedError

    def _wrong(self, value: object, path: str, errors: Errors) -> T | None:
        errors.add(path, f"expected {self.expected}, got {shown(value)}")
        return self.blank()


class Text(Kind[str]):
    """Text of one line or many.

    :param expected: What it is, with an example.
    :param pattern: What all of it must match.
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


class Secret(Kind[str]):
    """Text that no error, log or listing may show."""

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
    """A number, whole or not."""

    def __init__(self, minimum: float, maximum: float | None = None) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self.expected = _between("a number", minimum, maximum)

    def _read(self, value: object, path: str, errors: Errors) -> float | None:
        number = _parsed(value, float)
        if isinstance(number, bool) or not isinstance(number, int | float):
            return self._wrong(value, path, errors)
        upper = number if self._maximum is None else self._maximum
        if not self._minimum <= number <= upper or number in (float("inf"), float("-inf")):
            return self._wrong(value, path, errors)
        return float(number)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return or_reference(_limits("number", self._minimum, self._maximum))


class Integer(Kind[int]):
    """A whole number."""

    def __init__(self, minimum: int, maximum: int | None = None) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self.expected = _between("a whole number", minimum, maximum)

    def _read(self, value: object, path: str, errors: Errors) -> int | None:
        number = _parsed(value, int)
        if isinstance(number, bool) or not isinstance(number, int):
            return self._wrong(value, path, errors)
        if number < self._minimum or (self._maximum is not None and number > self._maximum):
            return self._wrong(value, path, errors)
        return number

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return or_reference(_limits("integer", self._minimum, self._maximum))


class Flag(Kind[bool]):
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


class Choice(Kind[str]):
    """One of a few words."""

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
    """A number, or text of a number and a unit."""

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

    :param zero: Whether it may be none at all.
    """

    expected = 'a duration such as "30s"'
    _pattern = "[0-9dhms]\\s*$"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def _read_amount(self, value: Any) -> float:
        seconds = parse_duration(value)
        if not (seconds or self._zero):
            raise ValueError("a duration is more than nothing")
        return seconds


class Size(_Amount[int]):
    """A number of bytes."""

    expected = 'a size such as "64KiB"'
    _pattern = "[0-9KMGTkmgtiIbB]\\s*$"

    def _read_amount(self, value: Any) -> int:
        return parse_size(value)


def _between(what: str, minimum: float, maximum: float | None) -> str:
    return (
        f"{what}, at least {minimum}" if maximum is None else f"{what} from {minimum} to {maximum}"
    )


def _limits(type_: str, minimum: float, maximum: float | None) -> Schema:
    schema: Schema = {"type": type_, "minimum": minimum}
    return schema if maximum is None else {**schema, "maximum": maximum}


def _parsed(value: object, number: Callable[[str], float]) -> object:
    if isinstance(value, FromEnvironment):
        try:
            return number(value)
        except ValueError:
            pass
    return value
