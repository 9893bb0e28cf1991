"""The little XML that Eureka's clients speak: read without what makes XML dangerous, and written.

Both ways it has the shape of Eureka's JSON, so that there is one mapping for the two: an element is
a text, or a mapping of its children by name with its attributes under ``@name`` and its own text
under ``$``; ``<port enabled="true">80</port>`` is ``{"@enabled": "true", "$": "80"}``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

__all__ = ["MOST_DEPTH", "MOST_ELEMENTS", "XmlError", "read_xml", "write_xml"]

MOST_DEPTH = 8
"""How deep the elements of a document may lie in each other."""

MOST_ELEMENTS = 512
"""How many elements and attributes a document may have."""

Node: TypeAlias = "str | dict[str, Any]"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")
_PLAIN = re.compile(r"[ !-%'-;=?-~]*")
_NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML document may contain, not even escaped (XML 1.0, 2.2)."""


class XmlError(ValueError):
    """The document is none that is read; says why."""


def read_xml(data: bytes) -> tuple[str, Node]:
    """Return the name of the root element of *data*, and what it holds.

    A document with a document type is refused before anything in it is read, and with that all
    entities but the five that XML itself has. Whatever it declares, it is read as UTF-8.

    :param data: The whole document, already bounded in size by whoever read it.
    :raises XmlError: It is not well-formed, has a document type, too many elements or too deep
        ones, or an element with two children of one name.
    """
    try:
        data.decode("utf-8")  # as the parser would take another encoding's byte order mark
    except UnicodeDecodeError:
        raise XmlError("it is not well-formed: not UTF-8") from None
    reader = _Reader()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reader.doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        said = expat.ErrorString(error.code)
        raise XmlError(f"it is not well-formed: {said}, line {error.lineno}") from None
    return reader.root


class _Reader:
    """Builds nodes from what the parser meets."""

    def __init__(self) -> None:
        self.root: tuple[str, Node] = "", ""
        self._open: list[tuple[str, dict[str, Any], list[str]]] = []
        self._count = 0

    def doctype(self, *_: object) -> None:
        raise XmlError("it has a document type")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1 + len(attributes)
        if self._count > MOST_ELEMENTS:
            raise XmlError(f"it has more than {MOST_ELEMENTS} elements")
        if len(self._open) == MOST_DEPTH:
            raise XmlError(f"its elements are more than {MOST_DEPTH} deep")
        self._open.append((name, {f"@{key}": value for key, value in attributes.items()}, []))

    def text(self, text: str) -> None:
        self._open[-1][2].append(text)

    def end(self, name: str) -> None:
        _, members, texts = self._open.pop()
        text = "".join(texts).strip()
        node: Node = members
        if not members:
            node = text
        elif text:
            members["$"] = text
        if not self._open:
            self.root = name, node
            return
        siblings = self._open[-1][1]
        if name in siblings:
            raise XmlError(f"it has two elements {name[:64]!a} where one is meant")
        siblings[name] = node


def write_xml(name: str, node: object) -> bytes:
    """Return the document whose root element *name* holds *node*.

    A list is as many elements of one name. A member whose name can not be an element's is left out,
    and so are the characters that no document may contain.
    """
    parts = ['<?xml version="1.0" encoding="UTF-8"?>']
    _write(name, node, parts.append)
    return "".join(parts).encode("utf-8", "replace")


def _write(name: str, node: object, put: Callable[[str], None]) -> None:
    if isinstance(node, list):
        for each in node:
            _write(name, each, put)
        return
    if not isinstance(node, Mapping):
        put(f"<{name}>{_text(node)}</{name}>")
        return
    attributes = [
        f" {key[1:]}={quoteattr(_NO_CHARACTER.sub('', str(value)))}"
        for key, value in node.items()
        if key[:1] == "@"
    ]
    put(f"<{name}{''.join(attributes)}>")
    for key, value in node.items():
        if key == "$":
            put(_text(value))
        elif _NAME.fullmatch(key):
            if type(value) is str:  # nearly all are: without one step more for each
                put(f"<{key}>{_text(value)}</{key}>")
            else:
                _write(key, value, put)
    put(f"</{name}>")


def _text(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else escape(_NO_CHARACTER.sub("", text))
