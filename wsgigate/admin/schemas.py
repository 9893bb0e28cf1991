"""JSON Schemas of documents, derived from their types.

A document is declared once, as a ``TypedDict``: mypy checks the code that makes it, and the schema
of the API description is derived from it. ``Annotated[str, "..."]`` gives a member a description;
the docstring is the description of the document.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NotRequired, Required, TypeAlias, Union

__all__ = ["JsonSchema", "schema_of"]


JsonSchema: TypeAlias = dict[str, Any]

_PLAIN: dict[Any, JsonSchema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    types.NoneType: {"type": "null"},
    None: {"type": "null"},
    Any: {},
    object: {},
    dict: {"type": "object"},
}


def schema_of(
    hint: Any, definitions: dict[str, JsonSchema], *, at: str = "#/components/schemas/"
) -> JsonSchema:
    """Return the JSON Schema (draft 2020-12) of the values of a type.

    :param definitions: Receives the schema of each ``TypedDict`` by its name.
    :param at: Where a reference finds these.
    :raises TypeError: No schema describes the type.
    """
    if typing.is_typeddict(hint):
        _define(hint, definitions, at)
        return {"$ref": at + hint.__name__}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is None and hint in _PLAIN:
        return dict(_PLAIN[hint])
    if origin is Annotated:
        schema = schema_of(inner[0], definitions, at=at)
        for note in inner[1:]:
            schema |= {"description": note} if isinstance(note, str) else note
        return schema
    if origin in (Required, NotRequired):
        return schema_of(inner[0], definitions, at=at)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(each, definitions, at=at) for each in inner]}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {
            "type": "object",
            "additionalProperties": schema_of(inner[1], definitions, at=at),
        }
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return {"type": "array", "items": schema_of(inner[0], definitions, at=at)}
    raise TypeError(f"no JSON Schema describes {hint!r}")


def _define(hint: Any, definitions: dict[str, JsonSchema], at: str) -> None:
    name = hint.__name__
    if name in definitions:
        return
    schema: JsonSchema = {"type": "object"}
    definitions[name] = schema  # first: a type may contain itself
    if hint.__doc__:
        schema["description"] = " ".join(inspect.cleandoc(hint.__doc__).split())
    hints = typing.get_type_hints(hint, include_extras=True)
    # __required_keys__ does not know a NotRequired in an annotation that is text
    required = [
        key
        for key, each in hints.items()
        if typing.get_origin(each) is not NotRequired
        and (key in hint.__required_keys__ or typing.get_origin(each) is Required)
    ]
    if required:
        schema["required"] = required
    schema["properties"] = {key: schema_of(each, definitions, at=at) for key, each in hints.items()}
