"""Composite kinds: lists, maps, alternatives, and tables as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Generic, TypeVar, dataclass_transform

from wsgigate.config.errors import Errors, FromEnvironment, at, shown
from wsgigate.config.types import Kind, Schema, or_reference

__all__ = [
    "Either",
    "ListOf",
    "MapOf",
    "Table",
    "given",
    "is_flag",
    "is_list",
    "is_table",
    "setting",
    "suggestion",
    "table",
]

T = TypeVar("T")
K = TypeVar("K")


def setting(kind: Kind[Any], doc: str, **default: Any) -> Any:
    """Return the dataclass field that declares one key of a table.

    :param kind: The kind of its value.
    :param doc: Its description, in the schema, the reference and error messages.
    :param default: ``default`` or ``default_factory``; a key without either is required.
    """
    return dataclasses.field(metadata={"kind": kind, "doc": doc}, **default)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def table(cls: type[T]) -> type[T]:
    """Make *cls* a frozen dataclass whose fields are the keys of a table of the file."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


class Table(Kind[T]):
    """A table with known keys, read into a dataclass made by :func:`table`.

    An invalid key keeps its default, or is None without a default, so that the rest of the file can
    still be checked.

    :param one_of: Keys of which exactly one is required.
    """

    expected = "a table"

    def __init__(self, cls: type[T], *, name: str = "", one_of: Sequence[str] = ()) -> None:
        self._cls = cls
        self._one_of = one_of
        self.name = name or cls.__name__
        self._fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    def blank(self) -> T:
        return self._made({})

    def _made(self, values: dict[str, Any]) -> T:
        missing = {name: None for name, field in self._fields.items() if _required(field)}
        return self._cls(**{**missing, **values})

    def _read(self, value: object, path: str, errors: Errors) -> T | None:
        if not isinstance(value, dict):
            return self._wrong(value, path, errors)
        values: dict[str, Any] = {}
        for key, item in value.items():
            field = self._fields.get(key) if isinstance(key, str) else None
            if field is None:
                errors.add(at(path, str(key)), _unknown(str(key), list(self._fields)))
                continue
            read = field.metadata["kind"].read(item, at(path, key), errors)
            if read is not None:
                values[key] = read
        for field in self._fields.values():
            if _required(field) and field.name not in value:
                errors.add(at(path, field.name), f"is required: {_phrase(field.metadata['doc'])}")
        self._check_one_of(value, path, errors)
        return self._made(values)

    def _check_one_of(self, value: Mapping[str, object], path: str, errors: Errors) -> None:
        known = [key for key in self._one_of if key in value]
        if self._one_of and not known:
            errors.add(path, f"needs {' or '.join(self._one_of)}")
        elif len(known) > 1:
            errors.add(path, f"{' and '.join(known)} are mutually exclusive; give one of them")

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        if self.name not in definitions:
            schema: Schema = {"type": "object", "description": inspect.getdoc(self._cls)}
            definitions[self.name] = schema
            schema["properties"] = {
                field.name: _described(field, definitions) for field in self._fields.values()
            }
            required = [field.name for field in self._fields.values() if _required(field)]
            if required:
                schema["required"] = required
            if self._one_of:
                schema["oneOf"] = [{"required": [key]} for key in self._one_of]
            schema["additionalProperties"] = False
        return {"$ref": f"#/$defs/{self.name}"}


class ListOf(Kind[tuple[T, ...]]):
    """A list of one kind of items; in an environment variable, commas separate the items."""

    def __init__(self, item: Kind[T], *, least: int = 0) -> None:
        self._item = item
        self._least = least
        self.expected = "a list with at least one item" if least else "a list"

    def _read(self, value: object, path: str, errors: Errors) -> tuple[T, ...] | None:
        if isinstance(value, FromEnvironment):
            value = [FromEnvironment(part.strip()) for part in value.split(",") if part.strip()]
        if not isinstance(value, list):
            return self._wrong(value, path, errors)
        if len(value) < self._least:
            errors.add(path, f"expected {self.expected}, got an empty list")
            return None
        items = [self._item.read(item, at(path, n), errors) for n, item in enumerate(value)]
        return tuple(item for item in items if item is not None)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        schema: Schema = {"type": "array", "items": self._item.schema(definitions)}
        if self._least:
            schema["minItems"] = self._least
        if "$ref" in schema["items"]:  # a table cannot come from a variable
            return schema
        return or_reference(schema)


class MapOf(Kind[Mapping[str, T]]):
    """A table with arbitrary keys.

    :param item: The kind of the values.
    :param key: A regular expression that the keys must match.
    :param called: What the keys are, for error messages.
    """

    expected = "a table"

    def __init__(self, item: Kind[T], *, key: str = "", called: str = "a name") -> None:
        self._item = item
        self._key = re.compile(key) if key else None
        self._called = called

    def _read(self, value: object, path: str, errors: Errors) -> Mapping[str, T] | None:
        if not isinstance(value, dict):
            return self._wrong(value, path, errors)
        items: dict[str, T] = {}
        for key, item in value.items():
            name = str(key)
            if self._key and not self._key.fullmatch(name):
                errors.add(at(path, name), f"{shown(name)} is not {self._called}")
            read = self._item.read(item, at(path, name), errors)
            if read is not None:
                items[name] = read
        return items

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        schema: Schema = {
            "type": "object",
            "additionalProperties": self._item.schema(definitions),
        }
        if self._key:
            schema["propertyNames"] = {"pattern": f"^(?:{self._key.pattern})$"}
        return schema


class Either(Kind[T | K], Generic[T, K]):
    """One of two kinds, depending on the value.

    :param first: The kind of values for which *chooses* returns true.
    :param second: The kind of all other values.
    """

    def __init__(self, chooses: Callable[[object], bool], first: Kind[T], second: Kind[K]) -> None:
        self._chooses = chooses
        self._first = first
        self._second = second
        self.expected = f"{first.expected}, or {second.expected}"

    def _read(self, value: object, path: str, errors: Errors) -> T | K | None:
        if self._chooses(value):
            return self._first.read(value, path, errors)
        return self._second.read(value, path, errors)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"anyOf": [self._first.schema(definitions), self._second.schema(definitions)]}


def is_flag(value: object) -> bool:
    """Return whether *value* is true or false, to choose a kind of :class:`Either`."""
    return isinstance(value, bool)


def is_list(value: object) -> bool:
    """Return whether *value* is a list, to choose a kind of :class:`Either`."""
    return isinstance(value, list)


def is_table(value: object) -> bool:
    """Return whether *value* is a table, to choose a kind of :class:`Either`."""
    return isinstance(value, dict)


def given(
    values: Any, *, only: Sequence[str] | None = None, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the keys of the table *values* that are not None, as keyword arguments."""
    names = [field.name for field in dataclasses.fields(values)] if only is None else only
    found = {name: getattr(values, name) for name in names if name not in without}
    return {name: value for name, value in found.items() if value is not None}


def suggestion(word: str, known: list[str]) -> str:
    """Return ``; did you mean "..."?`` with the nearest of *known*, or an empty string."""
    plain = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", word).replace("-", "_").lower()
    spelled = {name.replace("-", "_").lower(): name for name in known}
    near = get_close_matches(plain, spelled, n=1, cutoff=0.6)
    return f"; did you mean {shown(spelled[near[0]])}?" if near else ""


def _unknown(key: str, known: list[str]) -> str:
    return "is not a known key" + (suggestion(key, known) or f"; known keys: {', '.join(known)}")


def _phrase(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _described(field: dataclasses.Field[Any], definitions: dict[str, Schema]) -> Schema:
    schema = {**field.metadata["kind"].schema(definitions), "description": field.metadata["doc"]}
    if isinstance(field.default, str | int | float | bool):
        schema["default"] = field.default
    return schema
