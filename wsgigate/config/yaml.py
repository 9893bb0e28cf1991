"""YAML for those who prefer it, read so that it can say no more than TOML."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["parse_yaml"]

DEEPEST = 50
"""Lists and tables in each other; PyYAML takes ever longer with more of them."""


def parse_yaml(text: str) -> Any:
    """Return the plain data in *text*.

    A name that stands for another part of the file is refused, as a few lines of them are a table
    of millions; so is a key that is there twice.

    :raises ValueError: It is not YAML of that sort, or PyYAML is not installed.
    """
    try:
        yaml: Any = import_module("yaml")
    except ImportError:
        raise ValueError(
            'YAML needs PyYAML: pip install "wsgigate[yaml]", or write the file in TOML'
        ) from None
    try:
        node = _node(yaml, text)
        _refuse_twice(node)
        loader = yaml.SafeLoader("")
        try:
            return {} if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(_told(error)) from error


def _node(yaml: Any, text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"{_place(event.start_mark)}: is nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{_place(event.start_mark)}: YAML aliases are not supported")
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _refuse_twice(node: Any) -> None:
    if node is None or isinstance(node.value, str):
        return
    keys: set[str] = set()
    for child in node.value:
        if not isinstance(child, tuple):
            _refuse_twice(child)
            continue
        key, value = child
        if not isinstance(key.value, str):
            raise ValueError(f"{_place(key.start_mark)}: a key is text")
        if key.value in keys:
            raise ValueError(f"{_place(key.start_mark)}: the key {key.value!r} is there twice")
        keys.add(key.value)
        _refuse_twice(value)


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _told(error: Any) -> str:
    # Not str(error): that quotes the lines around, which may hold a secret.
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "is not YAML"
    mark = getattr(error, "problem_mark", None)
    return f"{_place(mark)}: {problem}" if mark is not None else str(problem)
