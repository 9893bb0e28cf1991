"""YAML as an alternative to TOML, restricted to what TOML can express.

Aliases are rejected, as a few lines of them expand to millions of values; so are duplicate keys.
Error messages never quote lines of the file, which may hold a secret.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["parse_yaml"]

DEEPEST = 50
"""The maximum nesting depth; PyYAML's time grows disproportionately with the depth."""


def parse_yaml(text: str) -> Any:
    """Return the plain data in *text*.

    :raises ValueError: The text is not valid restricted YAML, or PyYAML is not installed.
    """
    try:
        yaml: Any = import_module("yaml")
    except ImportError:
        raise ValueError(
            'YAML requires PyYAML: pip install "wsgigate[yaml]", or use TOML'
        ) from None
    try:
        node = _node(yaml, text)
        _reject_duplicates(node)
        loader = yaml.SafeLoader("")
        try:
            return {} if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(_message(error)) from error


def _node(yaml: Any, text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"{_position(event.start_mark)}: is nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{_position(event.start_mark)}: YAML aliases are not supported")
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _reject_duplicates(node: Any) -> None:
    if node is None or isinstance(node.value, str):
        return
    keys: set[str] = set()
    for child in node.value:
        if not isinstance(child, tuple):
            _reject_duplicates(child)
            continue
        key, value = child
        if not isinstance(key.value, str):
            raise ValueError(f"{_position(key.start_mark)}: a key must be text")
        if key.value in keys:
            raise ValueError(f"{_position(key.start_mark)}: duplicate key {key.value!r}")
        keys.add(key.value)
        _reject_duplicates(value)


def _position(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _message(error: Any) -> str:
    # str(error) quotes lines of the file, which may hold a secret
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "is not YAML"
    mark = getattr(error, "problem_mark", None)
    return f"{_position(mark)}: {problem}" if mark is not None else str(problem)
