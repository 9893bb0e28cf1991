"""Middlewares in the file: an entry is read, and its middleware is built around an app.

An entry's ``use`` is a name of :data:`USES`, or ``package.module:factory``, which is imported.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from wsgiref.types import WSGIApplication

from wsgigate.config.errors import MISSING, Errors, at, shown
from wsgigate.config.middleware_options import (
    AuthenticatorOptions,
    BodyLimitOptions,
    BreakerOptions,
    ConcurrencyOptions,
    CorsOptions,
    ExemptOptions,
    LimiterOptions,
    LoggerOptions,
    OnlyOptions,
    RequestIdOptions,
    ShedderOptions,
    circuit_rules,
    shedding_rules,
)
from wsgigate.config.tables import Table, given, suggestion
from wsgigate.config.traffic import FaultOptions, fault_rules
from wsgigate.config.types import ImportPath, Kind, Schema
from wsgigate.coordination.denylist import DenyList
from wsgigate.http import wsgi
from wsgigate.http.caller import key_of
from wsgigate.middleware.authenticator import Authenticator
from wsgigate.middleware.body_limit import BodyLimit
from wsgigate.middleware.breaker import Breaker
from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.cors import Cors
from wsgigate.middleware.faults import Faults
from wsgigate.middleware.limiter import Limiter
from wsgigate.middleware.logger import Logger
from wsgigate.middleware.request_id import RequestId
from wsgigate.middleware.shedder import Shedder
from wsgigate.store import Store

__all__ = [
    "USES",
    "BuildContext",
    "Middleware",
    "MiddlewareEntry",
    "Use",
    "import_app",
    "import_function",
    "import_object",
    "key_named",
    "made_by",
    "wrap",
]


# Imports: objects that the file names as ``package.module:name``.


def import_object(name: str) -> Any:
    """Import and return the object *name*, ``package.module:attribute``.

    :raises ValueError: The module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # importing runs arbitrary code, which may raise anything
        raise ValueError(f"{module_name} cannot be imported: {_error_text(error)}") from error
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


def made_by(name: str, app: WSGIApplication, options: dict[str, Any]) -> WSGIApplication:
    """Return the app that the factory *name* makes of *app* and *options*.

    :raises ValueError: The factory cannot be imported, fails, or returns nothing callable.
    """
    factory = import_app(name)
    try:
        made: WSGIApplication = factory(app, **options)  # type: ignore[call-arg, assignment, arg-type]
    except Exception as error:  # a factory is arbitrary code, which may raise anything
        raise ValueError(f"{name} failed: {_error_text(error)}") from error
    if not callable(made):
        raise ValueError(f"{name} returned no WSGI application, but {type(made).__name__}")
    return made


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


App: TypeAlias = WSGIApplication


@dataclass(frozen=True)
class Middleware:
    """One entry of a ``middleware`` list.

    :param use: A name of :data:`USES`, or ``package.module:factory``.
    :param options: An instance of the options class of its use; for a factory, a dict; None for an
        invalid entry.
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
        """Whether it verifies tokens, or may: that of a factory is unknown."""
        return isinstance(self.options, AuthenticatorOptions | dict | None)


def wrap(app: App, middleware: Middleware, around: BuildContext) -> App:
    """Return *app* wrapped in *middleware*.

    :raises ValueError: An option is invalid, or the factory fails.
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
            problem = (
                "is required: the middleware's name"
                if use is None
                else f"expected a middleware's name, got {shown(use)}"
            )
            errors.add(path_of_use, problem)
            return self.blank()
        if ":" in use:
            factory = self._factory.read(use, path_of_use, errors)
            return Middleware(str(use), None if factory is None else _plain(options))
        if use not in self._tables:
            near = suggestion(use, list(USES)) or f"; known middlewares: {', '.join(USES)}"
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
                    "description": "A custom middleware: factory(app, **options).",
                    "properties": {"use": factory},
                }
            )
        return {"$ref": "#/$defs/middleware"}


def _plain(value: Any) -> Any:
    """Return *value* converted to the plain types of the file's format."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


# The middlewares of the package: how each is built from its options.


class BuildContext(NamedTuple):
    """What building a middleware requires besides its options.

    :ivar store: The store that the gateway's workers share.
    :ivar name: The name of a limiter or breaker without one; unique in the gateway.
    :ivar folder: The folder that relative file names refer to.
    :ivar deny_list: The list of denied tokens.
    :ivar faults: Whether faults may be injected.
    """

    store: Store
    name: str
    folder: Path
    deny_list: DenyList
    faults: bool = False


Build: TypeAlias = Callable[[App, Any, BuildContext], App]


class Use(NamedTuple):
    """One middleware of the package.

    :ivar options: The dataclass of its options.
    :ivar build: Builds it; raises ValueError if an option is invalid.
    """

    options: type[Any]
    build: Build


def key_named(name: str) -> wsgi.Key:
    """Return the key function of the key *name* in a file.

    :raises ValueError: *name* is not a known key, and no function that can be imported.
    """
    try:
        return key_of(name)
    except ValueError:
        found: wsgi.Key = import_function(name)
        return found


def _request_id(app: App, options: RequestIdOptions, around: BuildContext) -> App:
    return RequestId(app, **given(options))


def _logger(app: App, options: LoggerOptions, around: BuildContext) -> App:
    streams = {"stdout": None, "stderr": sys.stderr}
    return Logger(
        app, stream=streams[options.stream or "stdout"], **given(options, without=("stream",))
    )


def _limiter(app: App, options: LimiterOptions, around: BuildContext) -> App:
    arguments = given(options, without=("quota", "key", "only", "exempt"))
    arguments |= _counting_arguments(options)
    for key in ("cost", "plan"):
        if _IS_OBJECT.fullmatch(str(arguments.get(key, ""))):
            arguments[key] = _named_callable(key, arguments[key])
    arguments.setdefault("name", around.name)
    return Limiter(app, options.quota, store=around.store, **arguments)


def _concurrency(app: App, options: ConcurrencyOptions, around: BuildContext) -> App:
    arguments = given(options, without=("limit", "key", "only", "exempt"))
    arguments |= _counting_arguments(options)
    arguments.setdefault("name", around.name)
    return ConcurrencyLimiter(app, options.limit, store=around.store, **arguments)


def _counting_arguments(options: LimiterOptions | ConcurrencyOptions) -> dict[str, Any]:
    """Return the arguments key, only and exempt of a limiter."""
    arguments: dict[str, Any] = {}
    if options.key is not None:
        names = (options.key,) if isinstance(options.key, str) else options.key
        try:
            arguments["key"] = [key_named(name) for name in names]
        except ValueError as error:
            raise ValueError(f"key: {error}") from None
    if options.only is not None:
        arguments["only"] = _selected("only", options.only)
    if options.exempt is not None:
        arguments["exempt"] = _selected("exempt", options.exempt)
    return arguments


def _selected(key: str, options: ExemptOptions | OnlyOptions) -> dict[str, Any]:
    selected = given(options)
    if "rule" in selected:
        selected["rule"] = _named_callable(key, selected["rule"])
    return selected


_IS_OBJECT = re.compile(r"(?!claim:|header:)[\w.]+:[\w.]+")

_IS_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def _named_callable(key: str, name: str) -> Any:
    try:
        return import_function(name)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _authenticator(app: App, options: AuthenticatorOptions, around: BuildContext) -> App:
    arguments = given(options, without=("secret_file", "public_key_file", "deny_list", "exempt"))
    if options.exempt is not None:
        arguments["exempt"] = _selected("exempt", options.exempt)
    if options.deny_list:
        arguments["deny_list"] = around.deny_list
    elif "on_store_error" in arguments:
        raise ValueError("on_store_error: requires deny_list = true")
    for kind in ("secret", "public_key"):
        files = getattr(options, f"{kind}_file") or ()
        if files and kind in arguments:
            raise ValueError(f"{kind} and {kind}_file are mutually exclusive; give one of them")
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
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{key}: {file} cannot be read: {reason}") from error
    if not content:
        raise ValueError(f"{key}: {file} is empty")
    return content


def _body_limit(app: App, options: BodyLimitOptions, around: BuildContext) -> App:
    return BodyLimit(app, **given(options))


def _breaker(app: App, options: BreakerOptions, around: BuildContext) -> App:
    arguments = given(options, only=("name", "statuses", "enabled"))
    arguments.setdefault("name", around.name)
    return Breaker(app, circuit_rules(options), store=around.store, **arguments)


def _shedder(app: App, options: ShedderOptions, around: BuildContext) -> App:
    return Shedder(app, shedding_rules(options), **given(options, only=("enabled",)))


def _cors(app: App, options: CorsOptions, around: BuildContext) -> App:
    arguments = given(options)
    if "max_age" in arguments:
        arguments["max_age"] = int(arguments["max_age"])
    arguments["origins"] = [
        _named_callable("origins", origin) if _IS_FUNCTION.fullmatch(origin) else origin
        for origin in options.origins
    ]
    return Cors(app, **arguments)


def _faults(app: App, options: FaultOptions, around: BuildContext) -> App:
    arguments = given(options, only=("when", "max_delayed"))
    enabled = options.enabled and around.faults
    made = Faults(app, fault_rules(options), enabled=enabled, **arguments)
    return made if enabled else app


USES: dict[str, Use] = {
    "authenticator": Use(AuthenticatorOptions, _authenticator),
    "body-limit": Use(BodyLimitOptions, _body_limit),
    "breaker": Use(BreakerOptions, _breaker),
    "concurrency-limiter": Use(ConcurrencyOptions, _concurrency),
    "cors": Use(CorsOptions, _cors),
    "faults": Use(FaultOptions, _faults),
    "limiter": Use(LimiterOptions, _limiter),
    "logger": Use(LoggerOptions, _logger),
    "request-id": Use(RequestIdOptions, _request_id),
    "shedder": Use(ShedderOptions, _shedder),
}
"""The middlewares of the package, by ``use``."""
