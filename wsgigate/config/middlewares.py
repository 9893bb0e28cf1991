"""The middlewares a file can name: how each is made of its options."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from wsgiref.types import WSGIApplication

from wsgigate import wsgi
from wsgigate.config.breakers import BreakerOptions, circuit_rules
from wsgigate.config.environment import MISSING
from wsgigate.config.errors import Errors, at, shown
from wsgigate.config.imports import made_by
from wsgigate.config.kinds import Kind, Schema
from wsgigate.config.options import (
    AuthenticatorOptions,
    BodyLimitOptions,
    CorsOptions,
    LimiterOptions,
    LoggerOptions,
    RequestIdOptions,
)
from wsgigate.config.shedders import ShedderOptions, shedding_rules
from wsgigate.config.tables import Table, given, suggestion
from wsgigate.config.texts import ImportPath
from wsgigate.middleware.authenticator import Authenticator
from wsgigate.middleware.body_limit import BodyLimit
from wsgigate.middleware.breaker import Breaker
from wsgigate.middleware.cors import Cors
from wsgigate.middleware.limiter import Limiter
from wsgigate.middleware.logger import Logger
from wsgigate.middleware.request_id import RequestId
from wsgigate.middleware.shedder import Shedder
from wsgigate.store import Store

__all__ = ["USES", "Middleware", "MiddlewareEntry", "Surroundings", "Use", "key_named", "wrap"]

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


class Surroundings(NamedTuple):
    """What a middleware is given besides its options.

    :ivar store: What the gateway's workers share.
    :ivar name: What a limiter or breaker is called that has no name; unique in the gateway.
    :ivar folder: Where relative file names start.
    """

    store: Store
    name: str
    folder: Path


Build: TypeAlias = Callable[[App, Any, Surroundings], App]


class Use(NamedTuple):
    """One middleware that comes with the package.

    :ivar options: The dataclass of its options.
    :ivar build: Makes it; raises ValueError when the options do not do.
    """

    options: type[Any]
    build: Build


def key_named(name: str) -> wsgi.Key:
    """Return the key function that a file calls *name*."""
    kind, _, argument = name.partition(":")
    if kind == "header":
        return wsgi.header(argument)
    if kind == "path":
        return wsgi.path_parameter(argument)
    return _KEYS[kind]


_KEYS: dict[str, wsgi.Key] = {
    "address": wsgi.client_address,
    "api-key": wsgi.api_key,
    "route": wsgi.route,
    "subject": wsgi.subject,
}


def _request_id(app: App, options: RequestIdOptions, around: Surroundings) -> App:
    return RequestId(app, **given(options))


def _logger(app: App, options: LoggerOptions, around: Surroundings) -> App:
    streams = {"stdout": None, "stderr": sys.stderr}
    return Logger(
        app, stream=streams[options.stream or "stdout"], **given(options, without=("stream",))
    )


def _limiter(app: App, options: LimiterOptions, around: Surroundings) -> App:
    arguments = given(options, without=("quota", "key"))
    if options.key is not None:
        names = (options.key,) if isinstance(options.key, str) else options.key
        keys = [key_named(name) for name in names]
        arguments["key"] = keys[0] if len(keys) == 1 else wsgi.combined(*keys)
    arguments.setdefault("name", around.name)
    return Limiter(app, options.quota, store=around.store, **arguments)


def _authenticator(app: App, options: AuthenticatorOptions, around: Surroundings) -> App:
    arguments = given(options, without=("secret_file", "public_key_file"))
    for kind in ("secret", "public_key"):
        files = getattr(options, f"{kind}_file") or ()
        if files and kind in arguments:
            raise ValueError(f"{kind} and {kind}_file say the same thing; give one of them")
        contents = [
            _content(around.folder / file, f"{kind}_file")
            for file in ((files,) if isinstance(files, str) else files)
        ]
        if contents:
            arguments[kind] = contents
    return Authenticator(app, **arguments)


def _content(file: Path, key: str) -> str:
    try:
        content = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"{key}: {file} can not be read: {reason}") from error
    if not content:
        raise ValueError(f"{key}: {file} is empty")
    return content


def _body_limit(app: App, options: BodyLimitOptions, around: Surroundings) -> App:
    return BodyLimit(app, **given(options))


def _breaker(app: App, options: BreakerOptions, around: Surroundings) -> App:
    arguments = given(options, only=("name", "statuses"))
    arguments.setdefault("name", around.name)
    return Breaker(app, circuit_rules(options), store=around.store, **arguments)


def _shedder(app: App, options: ShedderOptions, around: Surroundings) -> App:
    return Shedder(app, shedding_rules(options))


def _cors(app: App, options: CorsOptions, around: Surroundings) -> App:
    arguments = given(options)
    if "max_age" in arguments:
        arguments["max_age"] = int(arguments["max_age"])
    return Cors(app, **arguments)


USES: dict[str, Use] = {
    "authenticator": Use(AuthenticatorOptions, _authenticator),
    "body-limit": Use(BodyLimitOptions, _body_limit),
    "breaker": Use(BreakerOptions, _breaker),
    "cors": Use(CorsOptions, _cors),
    "limiter": Use(LimiterOptions, _limiter),
    "logger": Use(LoggerOptions, _logger),
    "request-id": Use(RequestIdOptions, _request_id),
    "shedder": Use(ShedderOptions, _shedder),
}
"""Every ``use`` there is, the factories of others aside."""


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
