"""The settings of the extension: keys of ``app.config`` with the prefix ``WSGIGATE_``.

A table of the gateway's file is a key of the same name, such as ``WSGIGATE_MIDDLEWARE`` and
``WSGIGATE_ROUTES``, and its value is what the file would have there. Either these describe the
gateway, or the file that ``WSGIGATE_FILE`` names. Further keys are for views.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from flask import Flask

from wsgigate.auth.authorization import GROUPS, ROLES
from wsgigate.config.errors import ConfigError, Errors
from wsgigate.config.load import ParsedFile, read_file, read_tables
from wsgigate.config.model import Config
from wsgigate.config.tables import ListOf, Table, UnionOf, is_list, setting, suggestion, table
from wsgigate.config.types import Enumeration, Text
from wsgigate.http.limits import FAMILIES
from wsgigate.rules.algorithms import ALGORITHMS
from wsgigate.store.open import under_test

__all__ = [
    "EXTENSION",
    "FLASK_APP",
    "PREFIX",
    "AppSettings",
    "ViewSettings",
    "given_settings",
    "read_settings",
    "settings_of",
]

PREFIX = "WSGIGATE_"
"""The prefix of the keys in ``app.config``."""

EXTENSION = "wsgigate"
"""The key of the extension's state in ``app.extensions``."""

FLASK_APP = "wsgigate.flask.app"
"""``Flask``: the app that the gateway wraps; set by the extension."""

_TEXTS = UnionOf(is_list, ListOf(Text()), Text())


@table
class ViewSettings:
    """The settings for views; the names in ``app.config`` are in upper case, with the prefix."""

    file: str | None = setting(
        "The gateway's file; relative names refer to the root path of the app.", default=None
    )
    realm: str = setting("The name of the protected area, in WWW-Authenticate.", default="api")
    resource_metadata: str | None = setting(
        "The URL of the metadata of this resource (RFC 9728), in WWW-Authenticate.", default=None
    )
    roles_from: tuple[str, ...] = setting(
        "The paths of the claims that hold roles.", ListOf(Text()), default=ROLES
    )
    groups_from: tuple[str, ...] = setting(
        "The paths of the claims that hold groups.", ListOf(Text()), default=GROUPS
    )
    limit_default: Any = setting(
        'The limits of each view that has none of its own, such as ["100/h"].',
        _TEXTS,
        default=None,
    )
    limit_key: Any = setting("The caller that limits of views count.", _TEXTS, default=None)
    limit_algorithm: str = setting(
        "The rate limiting algorithm of views.", Enumeration(*ALGORITHMS), default="token-bucket"
    )
    limit_fields: tuple[str, ...] = setting(
        "Rate limit fields in responses.",
        ListOf(Enumeration(*FAMILIES)),
        default=("ratelimit", "x-ratelimit"),
    )
    limit_on_store_error: str = setting(
        "What to do with requests while the store fails.",
        Enumeration("allow", "refuse"),
        default="allow",
    )
    limit_enabled: bool = setting("Whether limits of views are active.", default=True)


class AppSettings(NamedTuple):
    """The settings of an app.

    :ivar views: The settings for views.
    :ivar gateway: The gateway's configuration.
    :ivar path: The file that it was read from; else a name in the app's folder, to which relative
        names refer.
    :ivar mounts: Whether the configuration does anything, so that requests must pass the gateway.
    """

    views: ViewSettings
    gateway: ParsedFile
    path: str
    mounts: bool

    def key(self, path: str) -> str:
        """Return the key path *path* of the gateway as the user wrote it."""
        return path if self.views.file is not None else _config_key(path)

    def renamed(self, error: ConfigError) -> ConfigError:
        """Return *error* with the keys of ``app.config``, unless they are those of a file."""
        if self.views.file is not None:
            return error
        return ConfigError("app.config", [(self.key(key), text) for key, text in error.errors])


def settings_of(app: Flask) -> ViewSettings:
    """Return the settings for views of *app*; the defaults without the extension."""
    state = app.extensions.get(EXTENSION)
    return _DEFAULTS if state is None else cast(ViewSettings, state.settings)


def given_settings(app: Flask) -> dict[str, Any]:
    """Return a copy of the keys in ``app.config`` that have the prefix and a value."""
    return {
        key: _plain(value)
        for key, value in app.config.items()
        if key.startswith(PREFIX) and value is not None
    }


def read_settings(app: Flask) -> AppSettings:
    """Return the settings in ``app.config``.

    :raises ConfigError: A key is unknown or has an invalid value; the exception has all errors of
        the keys for views.
    """
    given = {key.removeprefix(PREFIX).lower(): value for key, value in given_settings(app).items()}
    tables, views = Table(Config), Table(ViewSettings)
    errors = Errors()
    known = [*tables.keys, *views.keys]
    for name in [name for name in given if name not in known]:
        near = suggestion(name, known) or f"; known keys: {', '.join(map(_config_key, known))}"
        near = re.sub(r'"(\w+)"', lambda found: f'"{_config_key(found[1])}"', near)
        errors.add(name, f"is not a known key{near}")
    read = views.read({name: given[name] for name in given.keys() & views.keys}, "", errors)
    settings = read or ViewSettings()
    data = {name: given[name] for name in given if name in tables.keys}
    if settings.file is None:
        _raise_any(errors)
        path = os.path.join(app.root_path, "app.config")
        mounts = bool(data.keys() - {"store"})  # views use the store as well
        return AppSettings(settings, _of_tables(app, data, path), path, mounts)
    for name in data:
        errors.add(name, f"is not allowed with {_config_key('file')}: the file has this table")
    _raise_any(errors)
    path = os.path.join(app.root_path, settings.file)
    return AppSettings(settings, read_file(path, mounted=True), path, mounts=True)


def _of_tables(app: Flask, data: dict[str, Any], path: str) -> ParsedFile:
    if isinstance(data.get("gateway", {}), dict):
        # the app decides by itself which server it runs under, with a gateway around it or not
        defaults = {"name": app.name, "self_check": "warn"}
        data["gateway"] = {**defaults, **data.get("gateway", {})}
    if "store" not in data and under_test(app):
        data["store"] = {"url": "memory:"}
    return read_tables(data, path, mounted=True)


def _raise_any(errors: Errors) -> None:
    if errors:
        raise ConfigError("app.config", [(_config_key(key), text) for key, text in errors])


def _config_key(path: str) -> str:
    """Return the key path *path* of the file as the key of ``app.config``."""
    end = next((at for at, character in enumerate(path) if character in ".["), len(path))
    return f"{PREFIX}{path[:end].upper()}{path[end:]}" if path else ""


def _plain(value: Any) -> Any:
    """Return *value* with the lists and tables of a file for tuples and mappings."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


_DEFAULTS = ViewSettings()
