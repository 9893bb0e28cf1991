"""From a file to a configuration, or to everything that is wrong with it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wsgigate.config.checks import check_across
from wsgigate.config.errors import ConfigError, Errors, substitute
from wsgigate.config.model import Config
from wsgigate.config.tables import Table
from wsgigate.config.yaml import parse_yaml

__all__ = ["MAX_SIZE", "Reading", "load", "parse", "read", "read_file"]

MAX_SIZE = 1024 * 1024
"""Bytes of a file; a larger one is no configuration, whatever it is."""


class Reading(NamedTuple):
    """A file as far as it could be read.

    :ivar config: What it says; a value that is wrong is its default here.
    :ivar errors: What is wrong. The config is for use only when there is nothing.
    :ivar warnings: What is not wrong, but likely not meant: key path and sentence.
    """

    config: Config
    errors: Errors
    warnings: list[tuple[str, str]]


def load(path: str, *, environ: Mapping[str, str] | None = None) -> Config:
    """Return the configuration in the file at *path*.

    :param environ: Where ``${NAME}`` is looked up; the process's own environment unless given.
    :raises ConfigError: It can not be read, or says something wrong: all of it at once.
    """
    reading = read_file(path, environ=environ)
    reading.errors.raise_any(path)
    return reading.config


def parse(text: str, path: str = "", *, environ: Mapping[str, str] | None = None) -> Config:
    """Return the configuration in *text*.

    :param path: The file's name, for errors; one that ends in ``.yaml`` or ``.yml`` is YAML.
    :raises ConfigError: It says something wrong: all of it at once.
    """
    reading = read(text, path, environ=environ)
    reading.errors.raise_any(path)
    return reading.config


def read_file(path: str, *, environ: Mapping[str, str] | None = None) -> Reading:
    """Return the file at *path* as far as it could be read.

    :raises ConfigError: There is no such file, or its syntax is broken.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(path, [("", f"can not be read: {error.strerror}")]) from error
    if len(content) > MAX_SIZE:
        raise ConfigError(path, [("", f"is larger than {MAX_SIZE // 1024} KiB")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, [("", f"is not text in UTF-8: line {line}")]) from error
    return read(text, path, environ=environ)


def read(text: str, path: str = "", *, environ: Mapping[str, str] | None = None) -> Reading:
    """Return *text* as far as it could be read.

    :raises ConfigError: Its syntax is broken.
    """
    parser: Callable[[str], Any] = tomllib.loads
    if path.lower().endswith((".yaml", ".yml")):
        parser = parse_yaml
    try:
        data = parser(text)
    except (ValueError, RecursionError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(path, [("", what)]) from error
    errors = Errors()
    warnings: list[tuple[str, str]] = []
    try:
        data = substitute(data, os.environ if environ is None else environ, errors)
        config = Table(Config).read(data, "", errors)
    except RecursionError:
        raise ConfigError(path, [("", "is nested too deeply")]) from None
    if config is None:  # only YAML can be something else than a table
        config = Config()
    check_across(config, errors, warnings)
    return Reading(config, errors, warnings)
