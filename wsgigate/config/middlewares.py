"""One entry of a list of middlewares: how it is read, and an app put into it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias
from wsgiref.types import WSGIApplication

from wsgigate.config.environment import MISSING
from wsgigate.config.errors import Errors, at, shown
from wsgigate.config.imports import made_by
from wsgigate.config.kinds import Kind, Schema
from wsgigate.config.options import (
    AuthenticatorOptions,
)
from wsgigate.config.tables import Table, suggestion
from wsgigate.config.texts import ImportPath
from wsgigate.config.uses import USES, Surroundings

__all__ = ["Middleware", "MiddlewareEntry", "wrap"]

App: TypeAlias = WSGIApplication


@dataclass(frozen=True)
class Middleware:
    """One entry of a ``middleware`` list.

    :param use: A name of :data:`USES`, or ``package.module:factory``.
    :param options: An instance of the options of its use; for a factory, a dict; None for an entry
        that is wrong.
    """

    use: str
    options: Any = dataclasses.field(repr=False)

    @property
    def keys(self) -> list[str]:
        """The keys of its options."""
        if not dataclasses.is_dataclass(self.options):
            return []
        return [field.name for field in dataclasses.fields(self.options)]

    @property
    def verifies(self) -> bool:
        """Whether it verifies tokens, or may, for all that is known of it."""
        return isinstance(self.options, AuthenticatorOptions | dict | None)


def wrap(app: App, middleware: Middleware, around: Surroundings) -> App:
    """Return *app* in *middleware*.

    :raises ValueError: Its options do not do, or somebody's factory fails.
    """
    if ":" in middleware.use:
        return made_by(middleware.use, app, middleware.options)
    return USES[middleware.use].build(app, middleware.options, around)


class MiddlewareEntry(Kind[Middleware]):
    """A table whose ``use`` names a middleware, and whose other keys are its options."""

    expected = 'a table such as { use = "logger" }'

    def __init__(self) -> None:
        self._tables = {
            use: Table(entry.options, name=f"middleware.{use}") for use, entry in USES.items()
        }
        self._factory = ImportPath("a factory")

    def blank(self) -> Middleware:
        return Middleware("", None)

    def _read(self, value: object, path: str, errors: Errors) -> Middleware | None:
        if not isinstance(value, dict):
            return self._wrong(value, path, errors)
        options = {key: item for key, item in value.items() if key != "use"}
        use, path_of_use = value.get("use"), at(path, "use")
        if use is MISSING:
            return self.blank()
        if not isinstance(use, str):
            said = (
                "is missing: the middleware's name"
                if use is None
                else f"expected a middleware's name, got {shown(use)}"
            )
            errors.add(path_of_use, said)
            return self.blank()
        if ":" in use:
            factory = self._factory.read(use, path_of_use, errors)
            return Middleware(str(use), None if factory is None else _plain(options))
        if use not in self._tables:
            near = suggestion(use, list(USES)) or f"; known are {', '.join(USES)}"
            errors.add(path_of_use, f"{shown(use)} is not a middleware{near}")
            return self.blank()
        return Middleware(str(use), self._tables[use].read(options, path, errors))

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        if "middleware" not in definitions:
            choices: list[Schema] = []
            definitions["middleware"] = {
                "description": "One middleware: its name and its options.",
                "type": "object",
                "required": ["use"],
                "oneOf": choices,
            }
            for use, kind in self._tables.items():
                kind.schema(definitions)
                shape = definitions.pop(kind.name)
                shape["title"] = use
                shape["properties"] = {"use": {"const": use}, **shape["properties"]}
                shape["required"] = ["use", *shape.get("required", [])]
                choices.append(shape)
            factory = self._factory.schema(definitions)
            choices.append(
                {
                    "title": "package.module:factory",
                    "description": "Anybody's middleware: factory(app, **options).",
                    "properties": {"use": factory},
                }
            )
        return {"$ref": "#/$defs/middleware"}


def _plain(value: Any) -> Any:
    """Return *value* with nothing in it but the types of the file's format."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
