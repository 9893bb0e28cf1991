"""Types of constructor arguments: how a signature gives their units, and checks against it.

``Annotated`` types give what a type alone does not, such as ``Annotated[int, Range(1, 64)]``.
The keys of a configuration file are derived from them, with the ``:param`` lines as descriptions.
Constructors check the values themselves.

The type checks are lenient, so that nothing is rejected that works: any number fits a number, any
iterable a list, any value a bool, and what cannot be inspected, such as the items of an iterator,
is left to the constructor. Their errors name the parameter.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum, auto
from functools import wraps
from numbers import Real
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar, Union, cast

__all__ = [
    "FIELD_NAME",
    "Bytes",
    "Count",
    "FieldName",
    "Fraction",
    "Method",
    "OneOf",
    "Pattern",
    "Range",
    "Seconds",
    "Trait",
    "checked",
    "explained",
    "types_of",
]

T = TypeVar("T")


class Range(NamedTuple):
    """The least and the most of a number.

    ``Range(0)`` lets a time be 0, and ``Range(1)`` requires an item in a list; there is no other
    range of these.
    """

    least: float
    most: float | None = None


class OneOf(NamedTuple):
    """The texts that are allowed."""

    choices: tuple[str, ...]


class Pattern(NamedTuple):
    """The form of a text.

    :ivar regex: A regular expression that matches the whole text.
    :ivar expected: A description with an example, for error messages.
    """

    regex: str
    expected: str


class Trait(Enum):
    """What else an ``Annotated`` type gives."""

    SECONDS = auto()
    """A time; in a file, text such as ``"30s"``. It is above 0 unless a range allows 0."""
    BYTES = auto()
    """A size; in a file, text such as ``"64KiB"``."""
    SECRET = auto()
    """Errors, logs and listings must not show the value."""
    ZERO_IS_NONE = auto()
    """A file gives 0 for ``None``, which TOML does not have."""


FIELD_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
"""The pattern of an HTTP token, such as the name of a header field or a cookie."""

FieldName: TypeAlias = Annotated[str, Pattern(FIELD_NAME, "the name of a field")]
Method: TypeAlias = Annotated[str, Pattern("[A-Z]+", 'a method such as "GET"')]
Seconds: TypeAlias = Annotated[float, Trait.SECONDS]
Bytes: TypeAlias = Annotated[int, Trait.BYTES]
Count: TypeAlias = Annotated[int, Range(1)]
Fraction: TypeAlias = Annotated[float, Range(0, 1)]

_FUNCTION: object = Callable

_LOOKED_INTO = 1000
"""The number of items of a list whose types are checked."""


def checked(cls: type[T]) -> type[T]:
    """Class decorator: make the constructor raise ValueError for arguments of wrong types.

    Errors of the constructor itself come first. Where it raises a TypeError or the like, or accepts
    a value that would fail later, the error names the expected type.
    """
    return _wrapped(cls, afterwards=True)


def explained(cls: type[T]) -> type[T]:
    """Class decorator: do the same only where the constructor fails, for hot classes."""
    return _wrapped(cls, afterwards=False)


def _wrapped(cls: type[T], *, afterwards: bool) -> type[T]:
    init: Callable[..., None] = cls.__init__
    signature = inspect.signature(init)

    @wraps(init)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except (TypeError, AttributeError, LookupError) as error:
            try:
                _check(cls, signature, (self, *args), kwargs)
            except ValueError as explanation:
                raise explanation from error
            raise
        if afterwards:
            _check(cls, signature, (self, *args), kwargs)

    cls.__init__ = cast(Any, __init__)  # type: ignore[method-assign]
    return cls


def _check(
    cls: type[Any],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Check the arguments' types; a wrong number of arguments is left to the call."""
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return
    hints = types_of(cls)
    for name, value in given.items():
        hint = hints.get(name, Any)
        if value is None and name == "app":
            continue  # a middleware that responds to every request itself needs no app
        if not _fits(value, hint):
            raise ValueError(f"{name}: expected {_words(hint)}, not {_shown(value)}")


_known: dict[Any, dict[str, Any]] = {}


def types_of(make: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of the parameters of a class or a function.

    A type that cannot be resolved at run time is Any.
    """
    hints = _known.get(make)
    if hints is None:
        names = {**vars(typing), **vars(sys.modules[make.__module__])}
        call: Any = cast(Any, make).__init__ if isinstance(make, type) else make
        hints = _known[make] = {}
        for name, written in call.__annotations__.items():
            try:
                hints[name] = eval(written, names) if isinstance(written, str) else written  # noqa: S307
            except Exception:  # a name that is imported for type checkers only
                hints[name] = Any
    return hints


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(value, inner[0])
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        # The constructor checks the value itself, with a better message.
        return isinstance(value, tuple({type(each) for each in inner}))
    kind = hint if origin is None else origin
    if not isinstance(kind, type):
        return True
    if kind is bool or kind is object:
        return True
    if kind in (int, float):
        return isinstance(value, Real) and not isinstance(value, bool)
    if kind is _FUNCTION:
        return callable(value)
    if kind in (str, bytes):
        return isinstance(value, kind)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and (
            len(inner) < 2
            or all(_fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items())
        )
    if issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc"):
        return _is_list(value, kind, inner)
    if kind is type:
        return isinstance(value, type) and all(
            issubclass(value, each) for each in inner if isinstance(each, type)
        )
    if getattr(kind, "_is_protocol", False):
        return _has_methods(value, kind)
    if kind is typing.TextIO:
        return hasattr(value, "write")
    # A test double of one of our classes need not be an instance of it.
    return isinstance(value, kind) or type(value).__module__ != "builtins"


def _is_list(value: Any, kind: type[Any], inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        return False
    if isinstance(value, Mapping) and issubclass(kind, Sequence):
        return False  # for other iterables its keys are accepted
    if not isinstance(value, Collection) or not inner:
        return True
    kinds = [each for each in inner if each is not ...]
    if len(kinds) > 1:  # a tuple of a fixed length
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    return all(_fits(item, kinds[0]) for item, _ in zip(value, range(_LOOKED_INTO), strict=False))


def _has_methods(value: Any, protocol: type[Any]) -> bool:
    """Return whether *value* has the methods of *protocol*."""
    methods = [name for name, each in vars(protocol).items() if inspect.isfunction(each)]
    ours = [name for name in methods if not name.startswith("_") or name == "__call__"]
    return all(callable(getattr(value, name, None)) for name in ours)


def _words(hint: Any) -> str:
    """Return *hint* in words for an error message."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _words(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if origin is Literal:
        return " or ".join(f'"{each}"' for each in inner)
    kind = hint if origin is None else origin
    if hint is None or hint is type(None):
        return "None"
    if hint is Any or not isinstance(kind, type):
        return "something else"
    if kind in _NAMES:
        return _NAMES[kind]
    if kind is _FUNCTION or "__call__" in vars(kind):
        return "a function"
    if issubclass(kind, Mapping):
        return "a table"
    if issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc"):
        return "a list"
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bytes: "bytes",
    type: "a class",
}


def _shown(value: Any) -> str:
    """Return *value* if it is short and cannot be a secret, else its type."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)[:40]
    return f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"
