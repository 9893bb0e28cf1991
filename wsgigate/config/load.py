"""Load a configuration from a file in TOML or YAML, with all its errors at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wsgigate.config.checks import check_across
from wsgigate.config.errors import ConfigError, Errors, substitute
from wsgigate.config.masked import remember_source
from wsgigate.config.model import Config
from wsgigate.config.tables import Table
from wsgigate.config.yaml import parse_yaml

__all__ = [
    "MAX_SIZE",
    "ParsedFile",
    "load",
    "parse",
    "read",
    "read_file",
    "read_tables",
]

MAX_SIZE = 1024 * 1024
"""The maximum size of a file, in bytes."""


class ParsedFile(NamedTuple):
    """A file that was read, with its errors and warnings.

    :ivar config: The configuration; an invalid value has its default here.
    :ivar errors: The errors. The configuration may be used only when there are none.
    :ivar warnings: Probable mistakes: key path and message.
    """

    config: Config
    errors: Errors
    warnings: list[tuple[str, str]]


def load(path: str, *, environ: Mapping[str, str] | None = None) -> Config:
    """Return the configuration in the file at *path*.

    :param environ: The variables for ``${NAME}``. Default: the environment of the process.
    :raises ConfigError: The file cannot be read or has errors; the exception has all of them.
    """
    parsed = read_file(path, environ=environ)
    parsed.errors.raise_any(path)
    return parsed.config


def parse(text: str, path: str = "", *, environ: Mapping[str, str] | None = None) -> Config:
    """Return the configuration in *text*.

    :param path: The file's name, for errors; one that ends in ``.yaml`` or ``.yml`` is YAML.
    :raises ConfigError: The text has errors; the exception has all of them.
    """
    parsed = read(text, path, environ=environ)
    parsed.errors.raise_any(path)
    return parsed.config


def read_file(
    path: str, *, environ: Mapping[str, str] | None = None, mounted: bool = False
) -> ParsedFile:
    """Read the file at *path*; return its configuration, errors and warnings.

    :param mounted: Whether the gateway wraps an app, which is its fallback.
    :raises ConfigError: The file cannot be read, or its syntax is invalid.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(path, [("", f"cannot be read: {error.strerror}")]) from error
    if len(content) > MAX_SIZE:
        raise ConfigError(path, [("", f"is larger than {MAX_SIZE // 1024} KiB")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, [("", f"is not UTF-8 text: line {line}")]) from error
    return read(text, path, environ=environ, mounted=mounted)


def read(
    text: str,
    path: str = "",
    *,
    environ: Mapping[str, str] | None = None,
    mounted: bool = False,
) -> ParsedFile:
    """Parse *text*; return its configuration, errors and warnings.

    :param mounted: As for :func:`read_file`.
    :raises ConfigError: The syntax is invalid.
    """
    parser: Callable[[str], Any] = tomllib.loads
    if path.lower().endswith((".yaml", ".yml")):
        parser = parse_yaml
    try:
        data = parser(text)
    except (ValueError, RecursionError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(path, [("", what)]) from error
    return read_tables(data, path, environ=environ, mounted=mounted)


def read_tables(
    data: object,
    path: str = "",
    *,
    environ: Mapping[str, str] | None = None,
    mounted: bool = False,
) -> ParsedFile:
    """Read *data*, the tables of a file as ``tomllib`` returns them.

    :param mounted: As for :func:`read_file`.
    :raises ConfigError: The tables are nested too deeply.
    """
    errors = Errors()
    warnings: list[tuple[str, str]] = []
    tables = data
    try:
        data = substitute(data, os.environ if environ is None else environ, errors)
        config = Table(Config).read(data, "", errors)
    except RecursionError:
        raise ConfigError(path, [("", "is nested too deeply")]) from None
    if config is None:  # only the top level of YAML can be something other than a table
        config = Config()
    if not errors:
        remember_source(config, Table(Config), tables)
    check_across(config, errors, warnings, mounted=mounted)
    return ParsedFile(config, errors, warnings)
