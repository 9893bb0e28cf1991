"""The JSON Schema of the file, made from the same kinds that read it."""

from __future__ import annotations

from wsgigate.config.kinds import Schema
from wsgigate.config.model import Config
from wsgigate.config.tables import Table

__all__ = ["schema"]


def schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of a gateway's file, for editors.

    It tells what one table can tell; what several parts say of each other is ``wsgigate check``'s.
    """
    definitions: dict[str, Schema] = {}
    root = Table(Config).schema(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "wsgigate",
        "description": "The file that describes a gateway, in TOML or YAML.",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }
