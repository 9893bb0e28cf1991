"""Composite kinds: lists, maps, unions, and tables.

The keys of a table are declared once. A :class:`Table` has them as the fields of a dataclass, for
what only the file has: the type of a field gives its kind, unless the file is stricter. An
:class:`ArgumentTable` derives them from the signature of the class that it configures, and
:func:`argument` derives a single field: the name, the kind and the default from the parameter, the
description from its ``:param`` line. They are derived when they are first needed, as inspecting
classes takes time.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from difflib import get_close_matches
from functools import cache, cached_property
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    TypeAlias,
    TypeVar,
    Union,
    dataclass_transform,
)

from wsgigate.config.errors import Errors, FromEnvironment, at, shown
from wsgigate.config.types import (
    Boolean,
    Duration,
    Enumeration,
    HiddenText,
    Integer,
    Kind,
    Number,
    Scalar,
    Schema,
    Size,
    Text,
    import_object,
    or_reference,
)
from wsgigate.rules.arguments import OneOf, Pattern, Range, Trait, types_of

__all__ = [
    "REQUIRED",
    "ArgumentTable",
    "Arguments",
    "ListOf",
    "MapOf",
    "Table",
    "TableKey",
    "UnionOf",
    "argument",
    "argument_keys",
    "arguments_for",
    "is_flag",
    "is_list",
    "is_table",
    "setting",
    "suggestion",
    "table",
]

T = TypeVar("T")
K = TypeVar("K")


REQUIRED = dataclasses.MISSING
"""The default of a key without one."""

Constructor: TypeAlias = Callable[..., Any]
"""A class or function whose arguments a file gives."""

Arguments: TypeAlias = Mapping[str, Any]
"""The values of an :class:`ArgumentTable`: an omitted key is not in it."""


class TableKey(NamedTuple):
    """One key of a table.

    :ivar kind: The kind of its value.
    :ivar doc: Its description, in the schema, the reference and error messages.
    :ivar default: Its default; REQUIRED without one.
    :ivar convert: Makes the argument of its value when the gateway is built: it may import code.
    :ivar rules: The parameter that this is a field of, if that is a dataclass of rules.
    :ivar zero_is_none: Whether 0 in the file is None for the class.
    """

    kind: Kind[Any]
    doc: str
    default: Any = REQUIRED
    convert: Callable[[Any], Any] | None = None
    rules: str = ""
    zero_is_none: bool = False

    @property
    def required(self) -> bool:
        """Whether the key has no default."""
        return self.default is REQUIRED


def setting(doc: str, kind: Kind[Any] | None = None, **default: Any) -> Any:
    """Return the dataclass field that declares one key of a table.

    :param doc: Its description, in the schema, the reference and error messages.
    :param kind: The kind of its value. Default: derived from the type of the field.
    :param default: ``default`` or ``default_factory``; a key without either is required.
    """
    return dataclasses.field(metadata={"kind": kind, "doc": doc}, **default)


def argument(make: Constructor, parameter: str = "", *, default: None, doc: str = "") -> Any:
    """Return the dataclass field for an argument of *make*, derived from its signature.

    :func:`arguments_for` collects the arguments of *make*.

    :param parameter: The name of the parameter. Default: that of the field.
    :param default: None stands for the default of *make*.
    :param doc: A description that replaces the one of the parameter.
    """
    metadata = {"make": make, "parameter": parameter, "doc": doc}
    return dataclasses.field(metadata=metadata, default=default)


def arguments_for(make: Constructor, values: Any) -> dict[str, Any]:
    """Return the arguments of *make* that the table *values* has."""
    fields = [field for field in dataclasses.fields(values) if field.metadata.get("make") is make]
    found = {f.metadata["parameter"] or f.name: getattr(values, f.name) for f in fields}
    return {name: value for name, value in found.items() if value is not None}


_tables: set[type] = set()
"""The classes made by :func:`table`."""


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(setting, argument)
)
def table(cls: type[T]) -> type[T]:
    """Make *cls* a frozen dataclass whose fields are the keys of a table of the file."""
    _tables.add(cls)
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
        self.name = name or cls.__name__.removesuffix("Table")

    @cached_property
    def keys(self) -> Mapping[str, TableKey]:
        """The keys by name, in the order of the reference."""
        hints = types_of(self._cls)
        fields = dataclasses.fields(self._cls)  # type: ignore[arg-type]
        return {field.name: _key_of(field, hints[field.name]) for field in fields}

    @property
    def doc(self) -> str:
        """The description of the table."""
        return inspect.getdoc(self._cls) or ""

    def blank(self) -> T | None:
        return self._made({})

    def _made(self, values: dict[str, Any]) -> T:
        missing = {name: None for name, key in self.keys.items() if key.required}
        return self._cls(**{**missing, **values})

    def _read(self, value: object, path: str, errors: Errors) -> T | None:
        if not isinstance(value, dict):
            return self._wrong(value, path, errors)
        values: dict[str, Any] = {}
        for name, item in value.items():
            key = self.keys.get(name) if isinstance(name, str) else None
            if key is None:
                errors.add(at(path, str(name)), _unknown(str(name), list(self.keys)))
                continue
            read = key.kind.read(item, at(path, name), errors)
            if read is not None:
                values[name] = read
        for name, key in self.keys.items():
            if key.required and name not in value:
                errors.add(at(path, name), f"is required: {_phrase(key.doc)}")
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
            schema: Schema = {"type": "object", "description": self.doc}
            definitions[self.name] = schema
            schema["properties"] = {
                name: _described(key, definitions) for name, key in self.keys.items()
            }
            required = [name for name, key in self.keys.items() if key.required]
            if required:
                schema["required"] = required
            if self._one_of:
                schema["oneOf"] = [{"required": [key]} for key in self._one_of]
            schema["additionalProperties"] = False
        return {"$ref": f"#/$defs/{self.name}"}


class ArgumentTable(Table[Arguments]):
    """A table whose keys are the arguments of a class, read into a dict of those that it has.

    :param make: The class, or ``package.module:Class``, which is imported when it is needed.
    :param without: Parameters that are no keys of the file.
    :param keys: Keys that differ from the parameters of the same name, and further keys: a key, a
        parameter of another class, or only another description.
    :param doc: A description that replaces that of the class.
    """

    def __init__(
        self,
        make: Constructor | str,
        *,
        without: Iterable[str] = (),
        keys: Mapping[str, TableKey | tuple[Constructor, str] | str] | None = None,
        name: str = "",
        doc: str = "",
    ) -> None:
        self._maker = make
        self._without = frozenset(without)
        self._differing = keys or {}
        self._doc = doc
        self._one_of = ()
        self.name = name or (make if isinstance(make, str) else make.__name__).rpartition(":")[2]

    @cached_property
    def make(self) -> Constructor:
        """The class or function that the table configures."""
        made: Constructor = (
            import_object(self._maker) if isinstance(self._maker, str) else self._maker
        )
        return made

    @property
    def parameters(self) -> Set[str]:
        """The names of all parameters."""
        return inspect.signature(self.make).parameters.keys()

    @cached_property
    def keys(self) -> Mapping[str, TableKey]:
        keys = {
            name: key
            for name, key in argument_keys(self.make).items()
            if self._without.isdisjoint((name, key.rules))
        }
        for name, differing in self._differing.items():
            if isinstance(differing, TableKey):
                keys[name] = differing
            elif isinstance(differing, str):
                keys[name] = keys[name]._replace(doc=differing)
            else:
                make, parameter = differing
                keys[name] = argument_keys(make)[parameter]
        return keys

    @property
    def doc(self) -> str:
        return self._doc or _plain((inspect.getdoc(self.make) or "").partition("\n\n")[0])

    def _made(self, values: dict[str, Any]) -> Arguments:
        return {
            name: None if self.keys[name].zero_is_none and value == 0 else value
            for name, value in values.items()
        }

    def arguments(self, values: Arguments) -> dict[str, Any]:
        """Return the arguments for *values*, with the rules that some of them describe.

        :raises ValueError: A value is invalid; the message begins with its key.
        """
        found: dict[str, Any] = {}
        grouped: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            key = self.keys[name]
            if key.convert is not None:
                try:
                    value = key.convert(value)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
            (grouped.setdefault(key.rules, {}) if key.rules else found)[name] = value
        hints = types_of(self.make)
        for name, values in grouped.items():
            found[name] = _rules_in(hints[name])(**values)
        return found


class ListOf(Kind[tuple[T, ...]]):
    """A list of one kind of items; in an environment variable, commas separate the items."""

    def __init__(self, item: Kind[T], *, least: int = 0) -> None:
        self.item = item
        self._least = least
        self.expected = "a list with at least one item" if least else "a list"

    def _read(self, value: object, path: str, errors: Errors) -> tuple[T, ...] | None:
        if isinstance(value, FromEnvironment):
            value = [FromEnvironment(part.strip()) for part in value.split(",") if part.strip()]
        if not isinstance(value, list):
            errors.add(path, f"expected {self.expected}, got {shown(value)}{self._cure(value)}")
            return self.blank()
        if len(value) < self._least:
            errors.add(path, f"expected {self.expected}, got an empty list")
            return None
        items = [self.item.read(item, at(path, n), errors) for n, item in enumerate(value)]
        return tuple(item for item in items if item is not None)

    def _cure(self, text: object) -> str:
        """Return the list that *text* was probably meant as."""
        if not isinstance(text, str) or not isinstance(self.item, (Text, Enumeration)):
            return ""
        words = text.replace(",", " ").split()
        return f"; give [{', '.join(map(shown, words))}]" if 0 < len(words) < 10 else ""

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        schema: Schema = {"type": "array", "items": self.item.schema(definitions)}
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
        self.item = item
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
            read = self.item.read(item, at(path, name), errors)
            if read is not None:
                items[name] = read
        return items

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        schema: Schema = {
            "type": "object",
            "additionalProperties": self.item.schema(definitions),
        }
        if self._key:
            schema["propertyNames"] = {"pattern": f"^(?:{self._key.pattern})$"}
        return schema


class UnionOf(Kind[T | K], Generic[T, K]):
    """One of two kinds, depending on the value.

    :param first: The kind of values for which *chooses* returns true.
    :param second: The kind of all other values.
    """

    def __init__(self, chooses: Callable[[object], bool], first: Kind[T], second: Kind[K]) -> None:
        self._chooses = chooses
        self.first = first
        self.second = second
        self.expected = f"{first.expected}, or {second.expected}"

    def of(self, value: object) -> Kind[T] | Kind[K]:
        """Return the kind of *value*."""
        return self.first if self._chooses(value) else self.second

    def _read(self, value: object, path: str, errors: Errors) -> T | K | None:
        return self.of(value).read(value, path, errors)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"anyOf": [self.first.schema(definitions), self.second.schema(definitions)]}


def is_flag(value: object) -> bool:
    """Return whether *value* is true or false, to choose a kind of :class:`UnionOf`."""
    return isinstance(value, bool)


def is_list(value: object) -> bool:
    """Return whether *value* is a list, to choose a kind of :class:`UnionOf`."""
    return isinstance(value, list)


def is_table(value: object) -> bool:
    """Return whether *value* is a table, to choose a kind of :class:`UnionOf`."""
    return isinstance(value, dict)


# The keys of a signature.

_UNIONS = (Union, UnionType)

_SCALAR = object()
"""Stands for the type of any text, number or flag."""


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value[:1].isalpha()


@cache  # bounded by the number of classes
def argument_keys(make: Constructor) -> Mapping[str, TableKey]:
    """Return a key for each parameter of *make* that a file can give, by name."""
    docs, hints = _param_docs(make), types_of(make)
    keys: dict[str, TableKey] = {}
    for name, parameter in inspect.signature(make).parameters.items():
        hint = hints.get(name, Any)
        rules = _rules_in(hint)
        if rules is not None:
            keys |= {each: key._replace(rules=name) for each, key in argument_keys(rules).items()}
            continue
        try:
            found = _kind_of(hint)
        except TypeError as error:
            raise TypeError(f"{name} of {make.__qualname__}: {error}") from None
        if found is None:
            continue  # a function, a store, an app: not for a file
        traits = set(_traits_in(hint))
        default = REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
        keys[name] = TableKey(
            found,
            _for_file(docs.get(name, ""), traits),
            default if default is REQUIRED or _is_plain(default) else None,
            int if Trait.SECONDS in traits and _plain_type(hint) is int else None,
            zero_is_none=Trait.ZERO_IS_NONE in traits,
        )
    return keys


def _is_table(hint: Any) -> bool:
    """Return whether *hint* is a class made by :func:`table`."""
    return isinstance(hint, type) and hint in _tables


def _rules_in(hint: Any) -> Any:
    """Return the dataclass of rules that a parameter of this type expects, else None."""
    hints = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
    found = [each for each in hints if each is not NoneType]
    [only] = found if len(found) == 1 else [None]
    return only if isinstance(only, type) and dataclasses.is_dataclass(only) else None


def _kind_of(hint: Any, traits: tuple[Any, ...] = ()) -> Kind[Any] | None:
    """Return the kind of the values of a type; None if a file cannot give them."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _kind_of(inner[0], (*traits, *inner[1:]))
    limits = next((trait for trait in traits if isinstance(trait, Range)), None)
    if limits is not None and not _can_check(limits, hint, traits):
        raise TypeError(f"a file cannot check {limits} of {hint}: let the constructor check it")
    if Trait.SECONDS in traits:
        return Duration(zero=limits is not None and limits.least == 0)
    if Trait.BYTES in traits:
        return Size()
    if Trait.SECRET in traits:
        return HiddenText()
    if origin in _UNIONS:
        if set(inner) >= {str, int, float, bool}:
            inner = (_SCALAR, *(each for each in inner if each not in (str, int, float, bool)))
        return _either([_kind_of(each, traits) for each in inner])
    if hint is _SCALAR:
        return Scalar()
    if origin is Literal:
        return Enumeration(*inner)
    if hint is bool:
        return Boolean()
    if hint in (int, float):
        least, most = limits or (None, None)
        kind: Any = Integer if hint is int else Number
        number: Kind[Any] = kind(0 if Trait.ZERO_IS_NONE in traits else least, most)
        return number
    if hint is str:
        return _text(traits)
    if _is_table(hint):
        return Table(hint)
    return _composite(origin, inner, limits)


def _can_check(limits: Range, hint: Any, traits: tuple[Any, ...]) -> bool:
    """Return whether the kind of a type applies its range, so that none is silently ignored."""
    origin = typing.get_origin(hint)
    if origin in _UNIONS or hint is NoneType:
        return True  # the members of a union decide
    if Trait.SECONDS in traits:
        return limits == Range(0)
    if hint in (int, float):
        return Trait.BYTES not in traits
    return isinstance(origin, type) and issubclass(origin, Iterable) and limits == Range(1)


def _text(traits: Iterable[Any]) -> Kind[str]:
    for trait in traits:
        if isinstance(trait, OneOf):
            return Enumeration(*trait.choices)
        if isinstance(trait, Pattern):
            return Text(trait.expected, pattern=trait.regex)
    return Text()


def _composite(origin: Any, inner: tuple[Any, ...], limits: Range | None) -> Kind[Any] | None:
    if not isinstance(origin, type) or not inner:
        return None
    if issubclass(origin, Mapping):
        value = _kind_of(inner[1])
        return None if value is None else MapOf(value)
    if issubclass(origin, Iterable):
        item = _kind_of(inner[0])
        return None if item is None else ListOf(item, least=0 if limits is None else 1)
    return None


_CHOICES: tuple[tuple[type[Kind[Any]], Callable[[object], bool]], ...] = (
    (ListOf, is_list),
    (Boolean, is_flag),
    (Text, _is_word),  # beside a number, which begins with a digit
)


def _either(kinds: Iterable[Kind[Any] | None]) -> Kind[Any] | None:
    """Return the kind for one of several types, of which a file can give one or two."""
    found = [kind for kind in kinds if kind is not None]
    if len(found) < 2:
        return found[0] if found else None
    for kind, chooses in _CHOICES:
        first = [each for each in found if isinstance(each, kind)]
        others = [each for each in found if each not in first]
        if len(first) == len(others) == 1:
            return UnionOf(chooses, first[0], others[0])
    raise TypeError(f"a file cannot choose between {[kind.expected for kind in found]}")


def _traits_in(hint: Any) -> Iterator[Any]:
    """Yield what the ``Annotated`` types in *hint* give."""
    if typing.get_origin(hint) is Annotated:
        yield from hint.__metadata__
    for each in typing.get_args(hint):
        if each is not hint and not isinstance(each, Range | OneOf | Pattern | Trait):
            yield from _traits_in(each)


def _plain_type(hint: Any) -> Any:
    """Return the type in *hint* without ``Annotated`` and ``None``."""
    while typing.get_origin(hint) in (Annotated, *_UNIONS):
        [hint, *_] = [each for each in typing.get_args(hint) if each is not NoneType]
    return hint


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | tuple)


_PARAM = re.compile(r"^:param (\w+):(.*?)(?=^:|\Z)", re.MULTILINE | re.DOTALL)


def _param_docs(make: Constructor) -> dict[str, str]:
    text = inspect.getdoc(make) or ""
    return {name: _plain(doc) for name, doc in _PARAM.findall(text)}


def _plain(text: str) -> str:
    """Return the text of a docstring without markup."""
    text = re.sub(r":\w+:`[~.]?(?:[\w.]+\.)?(\w+)`", r"\1", text)
    text = re.sub(r"``(.*?)``|(?<![\w*])\*(\w+)\*", r"\1\2", text)
    return " ".join(text.split())


def _for_file(doc: str, traits: Iterable[Any]) -> str:
    """Return the description of a parameter for the key of a file, which has no None and units."""
    if Trait.ZERO_IS_NONE in traits:
        doc = doc.replace("None", "0")
    doc = re.sub(r"(?<=\.) None [^.]*\.", "", doc)
    if Trait.SECONDS in traits:
        doc = doc.replace(", in seconds", "").replace(" in seconds", "")
    return doc.replace(", in bytes", "").replace(" in bytes", "") if Trait.BYTES in traits else doc


def suggestion(word: str, known: list[str]) -> str:
    """Return ``; did you mean "..."?`` with the nearest of *known*, or an empty string."""
    plain = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", word).replace("-", "_").lower()
    spelled = {name.replace("-", "_").lower(): name for name in known}
    # A secret_path is the secret_file rather than the secret, and jwks_url is jwks.
    renamed = re.sub(r"_path$", "_file", plain), re.sub(r"_ur[il]$", "", plain)
    near = [name for name in renamed if name != plain and name in spelled]
    near = near or get_close_matches(plain, spelled, n=1, cutoff=0.6)
    return f"; did you mean {shown(spelled[near[0]])}?" if near else ""


def _unknown(key: str, known: list[str]) -> str:
    return "is not a known key" + (suggestion(key, known) or f"; known keys: {', '.join(known)}")


def _phrase(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _key_of(field: dataclasses.Field[Any], hint: Any) -> TableKey:
    """Return the key that a field of a table declares.

    :param hint: The type of the field.
    """
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    declared = field.metadata
    if "make" not in declared:
        kind = declared["kind"] or _kind_of(hint)
        if kind is None:
            raise TypeError(f"{field.name}: a file cannot give a value of the type {hint}")
        return TableKey(kind, declared["doc"], default)
    make, name = declared["make"], declared["parameter"] or field.name
    derived = argument_keys(make).get(name)
    if derived is None:
        taken = types_of(make).get(name)
        raise TypeError(
            f"{field.name} cannot be a key: {make.__qualname__} "
            + (f"has no argument {name}" if taken is None else f"takes {name} as {taken}")
            + (", which a name that its module does not import gives" if taken is Any else "")
        )
    return derived._replace(
        doc=declared["doc"] or derived.doc, default=derived.default if default is None else default
    )


def _described(key: TableKey, definitions: dict[str, Schema]) -> Schema:
    schema = {**key.kind.schema(definitions), "description": key.doc}
    if isinstance(key.default, str | int | float | bool):
        schema["default"] = key.default
    return schema
