"""The setting ``WSGIGATE``: what it may hold, and the stack that it describes.

A list is the list of middlewares alone; a dict has the keys of :data:`KEYS`. The tables of a
gateway have the names of the file in upper case, as Django's settings do, and inside them the keys
of the file: they are read by what reads the file, so both have the same errors and defaults.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from wsgigate.config.build import BuiltGateway, assemble, check_file
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import ParsedFile, read_file, read_tables
from wsgigate.config.masked import changed
from wsgigate.config.middlewares import MIDDLEWARES, VERIFIERS
from wsgigate.config.model import Config, StoreTable
from wsgigate.config.tables import Table, suggestion
from wsgigate.gateway import Gateway
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import IDENTITY
from wsgigate.runtime import fork

__all__ = [
    "FORCED_IDENTITY",
    "KEYS",
    "GatewaySettings",
    "GatewayStack",
    "checked_gateway",
    "project",
    "read_settings",
    "stack",
]

FORCED_IDENTITY = "wsgigate.django.forced_identity"
"""The identity that a test gives to a request, in place of what an authenticator would verify.
Nothing reads it outside of a test runner."""

_TABLES = {name.upper(): name for name in Table(Config).keys if name != "middleware"}

KEYS = ("MIDDLEWARE", "FILE", *_TABLES)
"""The keys of the setting: the middlewares, the file of a gateway, and the tables of one."""

_EXAMPLE = (
    'a list of middlewares such as [("wsgigate.Limiter", {"quota": "100 per 15 minutes"})], '
    'or a dict such as {"MIDDLEWARE": [...], "SERVICES": {...}, "ROUTES": [...]}'
)


class GatewaySettings(NamedTuple):
    """The setting ``WSGIGATE``, read.

    :ivar middleware: The entries of the list of middlewares, outermost first.
    :ivar parsed: The gateway's tables with their errors and warnings; None without a gateway.
    :ivar path: What the gateway was read from: its file, or a name in the project's folder.
    :ivar where: What error messages call the list of middlewares.
    :ivar errors: All errors: the place, and the message.
    """

    middleware: tuple[Any, ...]
    parsed: ParsedFile | None
    path: str
    where: str
    errors: tuple[tuple[str, str], ...]


def project() -> str:
    """Return the module of the project's settings, which identifies the project."""
    return str(getattr(settings, "SETTINGS_MODULE", "") or settings.ROOT_URLCONF)


def read_settings() -> GatewaySettings:
    """Return the setting ``WSGIGATE`` with all its errors; nothing is imported or built."""
    given: object = getattr(settings, "WSGIGATE", None)
    if isinstance(given, list | tuple):
        return _read({"MIDDLEWARE": given}, "WSGIGATE")
    if isinstance(given, Mapping):
        return _read(given, 'WSGIGATE["MIDDLEWARE"]')
    text = f"is required: {_EXAMPLE}"
    if given is not None:
        text = f"expected {_EXAMPLE}, got {type(given).__name__}"
    return GatewaySettings((), None, "", "WSGIGATE", (("WSGIGATE", text),))


def _read(given: Mapping[Any, Any], where: str) -> GatewaySettings:
    errors: list[tuple[str, str]] = []
    for key in given:
        if key not in KEYS:
            near = suggestion(str(key), list(KEYS)) or f"; known keys: {', '.join(KEYS)}"
            errors.append((f"WSGIGATE[{key!r}]", f"is not a known key{near}"))
    tables = {name: given[key] for key, name in _TABLES.items() if key in given}
    entries = given.get("MIDDLEWARE", ())
    if not isinstance(entries, list | tuple):
        errors.append((where, f"expected a list of middlewares, got {type(entries).__name__}"))
        entries = ()
    if entries and all(isinstance(entry, Mapping) for entry in entries):
        tables["middleware"], entries = entries, ()  # in the form of a file
    for place, entry in enumerate(entries):
        trouble = _shape(entry)
        if trouble:
            errors.append((f"{where}[{place}]", trouble))
    parsed, path = _gateway(given, tables, errors)
    if not given or (where == "WSGIGATE" and not entries and parsed is None):
        errors.append(("WSGIGATE", f"is empty: {_EXAMPLE}"))
    return GatewaySettings(tuple(entries), parsed, path, where, tuple(errors))


def _shape(entry: object) -> str:
    """Return what is wrong with the form of an entry; empty if nothing is."""
    if isinstance(entry, list | tuple):
        if len(entry) != 2 or not isinstance(entry[1], Mapping):
            return f"expected a middleware, or a pair of one and its options, got {entry!r}"
        entry = entry[0]
    if isinstance(entry, Mapping):
        return "a table is the form of a file: give all middlewares as tables, or none"
    if isinstance(entry, str) or callable(entry):
        return ""
    return f"expected a callable that takes the app, or its dotted path, got {entry!r}"


def _gateway(
    given: Mapping[Any, Any], tables: dict[str, Any], errors: list[tuple[str, str]]
) -> tuple[ParsedFile | None, str]:
    if "FILE" not in given:
        if not tables:
            return None, ""
        parsed = _inline(tables)
        errors += _placed(parsed.errors, "")
        return parsed, _inline_path()
    if tables:
        named = next(iter(tables)).upper()
        errors.append(("WSGIGATE", f"FILE and {named} are mutually exclusive; give one of them"))
    path = given["FILE"]
    if not isinstance(path, str | os.PathLike):
        errors.append(('WSGIGATE["FILE"]', f"expected the path of a file, got {path!r}"))
        return None, ""
    path = os.path.join(_folder(), os.fspath(path))
    try:
        parsed = read_file(path, mounted=True)
    except ConfigError as error:
        errors += _placed(error.errors, path)
        return None, path
    errors += _placed(parsed.errors, path)
    return parsed, path


def _inline(tables: dict[str, Any]) -> ParsedFile:
    """Return the tables of the setting, read as those of a file are."""
    data = _plain(tables)
    if isinstance(data.get("gateway", {}), dict):
        # the project decides by itself which server it runs under
        data["gateway"] = {"name": project(), "self_check": "warn", **data.get("gateway", {})}
    if "store" not in data and fork.tested():
        data["store"] = {"url": "memory:"}
    return read_tables(data, _inline_path(), mounted=True)


def _placed(errors: Any, path: str) -> list[tuple[str, str]]:
    """Return *errors* with the place of each: in the file, or in the setting."""
    if path:
        return [(": ".join(part for part in (path, key) if part), text) for key, text in errors]
    placed = []
    for key, text in errors:
        table = key.partition(".")[0].partition("[")[0]
        placed.append((f'WSGIGATE["{table.upper()}"]{key[len(table) :]}', text))
    return placed


def _plain(value: Any) -> Any:
    """Return *value* with the types that a file has: lists for tuples and sets, texts for paths."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _folder() -> str:
    """Return the folder of the project, which relative file names refer to."""
    base: str | os.PathLike[str] | None = getattr(settings, "BASE_DIR", None)
    if base is not None:
        return os.fspath(base)
    file = getattr(sys.modules.get(project()), "__file__", None)
    return os.path.dirname(os.path.abspath(file)) if file else os.getcwd()


def _inline_path() -> str:
    return os.path.join(_folder(), project())


class GatewayStack(NamedTuple):
    """An app in the middlewares and the gateway of the setting.

    :ivar app: The outermost app.
    :ivar gateway: The gateway in it; None without one.
    """

    app: WSGIApplication
    gateway: Gateway | None


def stack(app: WSGIApplication) -> GatewayStack:
    """Return *app* in the middlewares and the gateway of the setting.

    :raises ImproperlyConfigured: The setting is invalid; the message has all errors.
    """
    read = read_settings()
    errors = list(read.errors)
    gateway: Gateway | None = None
    if read.parsed is not None:
        try:
            app = gateway = assemble(
                read.parsed.config, path=read.path, errors=read.parsed.errors, fallback=app
            ).gateway
        except ConfigError as error:
            _add(errors, _placed(error.errors, _file_of(read)))
    app = _in_middlewares(app, read, errors)
    if errors:
        raise ImproperlyConfigured("\n".join(f"{where}: {text}" for where, text in errors))
    return GatewayStack(app, gateway)


def _add(errors: list[tuple[str, str]], more: Iterable[tuple[str, str]]) -> None:
    errors += (each for each in more if each not in errors)


def checked_gateway(
    read: GatewaySettings, *, asks: bool = False, offline: bool = True
) -> tuple[BuiltGateway | None, list[tuple[str, str]], list[tuple[str, str]]]:
    """Build the gateway and the middlewares, and check what they need.

    :param asks: Whether to open the store, read the files and fetch the keys of issuers as well,
        which takes up to some seconds each.
    :param offline: Whether to send nothing to any other machine.
    :returns: The gateway, which is not to serve; the errors; the warnings.
    """
    errors, warnings = list(read.errors), list[tuple[str, str]]()
    unserved = Problem(503)
    _in_middlewares(unserved, read, errors)
    parsed = read.parsed
    if parsed is None:
        return None, errors, warnings
    built = None
    try:
        if asks:
            built = check_file(
                parsed, read.path, asks=not offline, offline=offline, fallback=unserved
            )
        else:
            config = parsed.config
            if config.store.url.startswith("lmdb:"):
                # the user of a command need not be the one that serves, and may own no folder
                config = changed(config, store=StoreTable(url="memory:"))
            built = assemble(config, path=read.path, errors=parsed.errors, fallback=unserved)
    except ConfigError as error:
        _add(errors, _placed(error.errors, _file_of(read)))
    warnings += _placed(parsed.warnings, _file_of(read))
    return built, errors, warnings


def _file_of(read: GatewaySettings) -> str:
    """Return the file that errors name; empty for tables of the setting."""
    return "" if read.path == _inline_path() else read.path


def _in_middlewares(
    app: WSGIApplication, read: GatewaySettings, errors: list[tuple[str, str]]
) -> WSGIApplication:
    """Return *app* in the middlewares of the list, and add what is wrong with them to *errors*."""
    for place, entry in reversed(list(enumerate(read.middleware))):
        where = f"{read.where}[{place}]"
        if all(known != where for known, _ in errors):
            try:
                app = _wrapped(app, entry)
            except (ImportError, TypeError, ValueError) as error:
                errors.append((where, str(error)))
    return app


def _wrapped(app: WSGIApplication, entry: Any) -> WSGIApplication:
    """Return *app* in the middleware of *entry*.

    :raises ImportError: The middleware cannot be imported.
    :raises TypeError: It is not a callable that takes the app and these options.
    :raises ValueError: An option is invalid, or it returned no WSGI app.
    """
    made, options = entry if isinstance(entry, list | tuple) else (entry, {})
    if isinstance(made, str):
        made = import_string(made)
    if not callable(made):
        raise TypeError(f"expected a callable that takes the app, got {made!r}")
    wrapped: Any = made(app, **options)
    if not callable(wrapped):
        raise ValueError(f"returned {wrapped!r}, which is not a WSGI app")
    if getattr(wrapped, "guards_routes", False) is True:
        raise ValueError(
            f"{type(wrapped).__name__} guards the routes of services: name it in the middleware "
            'of one of WSGIGATE["ROUTES"], as {"use": "wsgigate.django:DjangoSession"}'
        )
    if fork.tested() and type(wrapped) in _verifiers():
        return _ForcedIdentity(app, wrapped)
    return wrapped  # type: ignore[no-any-return]


@cache
def _verifiers() -> frozenset[object]:
    """Return the classes of the package that verify callers."""
    return frozenset(MIDDLEWARES[name].table.make for name in VERIFIERS)


class _ForcedIdentity:
    """A middleware that verifies callers, during a test: a forced identity passes it unverified."""

    def __init__(self, app: WSGIApplication, verifier: WSGIApplication) -> None:
        self.app = app
        self._verifier = verifier

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        identity = environ.get(FORCED_IDENTITY)
        if identity is None:
            return self._verifier(environ, start_response)
        environ[IDENTITY] = identity
        return self.app(environ, start_response)
