"""Consul's ``filter`` expressions, except regular expressions.

https://developer.hashicorp.com/consul/api-docs/features/filtering defines the language. Supported
are ``==``, ``!=``, ``in``, ``not in``, ``contains``, ``not contains``, ``is empty``, ``is not
empty``, ``and``, ``or``, ``not`` and parentheses. ``matches`` is rejected: the expression comes
from any client that may read, and one regular expression can occupy a thread for hours.

A selector is checked against a sample of the document, even if there is nothing to filter: a
misspelled name is an error, not an empty result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from wsgigate.rules.registry import Invalid

__all__ = ["Filter", "parse_filter"]


Filter: TypeAlias = Callable[[Any], bool]

_LONGEST = 2_048

_MOST_TOKENS = 256

_DEEPEST = 16

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<sign>==|!=|[()])
      | "(?P<double>(?:[^"\\]|\\.)*)"
      | `(?P<raw>[^`]*)`
      | (?P<word>[A-Za-z_/-][A-Za-z0-9_/.:-]*(?:\["[^"\]]*"\](?:\.[A-Za-z0-9_/.:-]+)?)*)
      | (?P<number>-?[0-9][0-9.]*)
    )""",
    re.VERBOSE,
)

_PART = re.compile(r"([A-Za-z0-9_/:-]+)|\[\"([^\"\]]*)\"\]")


class _Token(NamedTuple):
    kind: str
    text: str


def parse_filter(text: str, sample: Mapping[str, Any]) -> Filter:
    """Return a predicate for documents.

    :param text: The expression.
    :param sample: A document of the same shape, with an item in each list of objects. A mapping
        that is empty in the sample accepts any keys.
    :raises Invalid: The expression is malformed or unsupported; the error names ``filter``.
    """
    if len(text) > _LONGEST:
        raise Invalid("filter", f"at most {_LONGEST} characters")
    parser = _FilterParser(_tokens(text), sample)
    wanted = parser.any_of(0)
    if parser.ahead() is not None:
        raise _wrong(f"{parser.ahead()!r} is not expected there")
    return wanted


def _wrong(why: str) -> Invalid:
    return Invalid("filter", why)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise _wrong(f"cannot be read from {text[at : at + 20].strip()!r}")
        kind = str(found.lastgroup)
        value = found[kind]
        if kind in ("double", "raw"):
            value = re.sub(r"\\(.)", r"\1", value) if kind == "double" else value
            kind = "text"
        tokens.append(_Token(kind, value))
        at = found.end()
    if len(tokens) > _MOST_TOKENS:
        raise _wrong(f"has more than {_MOST_TOKENS} words")
    return tokens


class _FilterParser:
    """A recursive-descent parser: ``or`` binds least, then ``and``, then ``not``."""

    def __init__(self, tokens: list[_Token], sample: Mapping[str, Any]) -> None:
        self._tokens = tokens
        self._at = 0
        self._sample = sample

    def ahead(self, further: int = 0) -> str | None:
        at = self._at + further
        return self._tokens[at].text if at < len(self._tokens) else None

    def _is_word(self, word: str, further: int = 0) -> bool:
        at = self._at + further
        return at < len(self._tokens) and self._tokens[at] == _Token("word", word)

    def _is_sign(self, sign: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at] == _Token("sign", sign)

    def _next(self, what: str) -> _Token:
        if self._at >= len(self._tokens):
            raise _wrong(f"ends where {what} is expected")
        self._at += 1
        return self._tokens[self._at - 1]

    def any_of(self, depth: int) -> Filter:
        parts = [self._all_of(depth)]
        while self._is_word("or"):
            self._at += 1
            parts.append(self._all_of(depth))
        return parts[0] if len(parts) == 1 else lambda document: any(p(document) for p in parts)

    def _all_of(self, depth: int) -> Filter:
        parts = [self._one(depth)]
        while self._is_word("and"):
            self._at += 1
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else lambda document: all(p(document) for p in parts)

    def _one(self, depth: int) -> Filter:
        if depth > _DEEPEST:
            raise _wrong(f"is nested deeper than {_DEEPEST}")
        if self._is_word("not"):
            self._at += 1
            inner = self._one(depth + 1)
            return lambda document: not inner(document)
        if self._is_sign("("):
            self._at += 1
            inner = self.any_of(depth + 1)
            if not self._is_sign(")"):
                raise _wrong("has a parenthesis that is not closed")
            self._at += 1
            return inner
        return self._match()

    def _match(self) -> Filter:
        first = self._next("a selector")
        if first.kind == "sign":
            raise _wrong(f"{first.text!r} is not expected there")
        if self._is_word("in") or (self._is_word("not") and self._is_word("in", 1)):
            negated = self._is_word("not")
            self._at += 2 if negated else 1
            return self._held(first.text, self._next("a selector"), negated)
        if first.kind == "number":
            raise _wrong(f"{first.text!r} is not a selector")
        operator = self._next("an operator")
        if operator.kind == "sign" and operator.text in ("==", "!="):
            return self._equal(first, self._value(), operator.text == "!=")
        if operator.kind == "word" and operator.text == "contains":
            return self._held(self._value(), first, negated=False)
        if operator.kind == "word" and operator.text == "not":
            verb = self._next("an operator").text
            if verb == "contains":
                return self._held(self._value(), first, negated=True)
            operator = _Token("word", f"not {verb}")
        if operator.kind == "word" and operator.text == "is":
            negated = self._is_word("not")
            self._at += negated
            if self._next("empty").text != "empty":
                raise _wrong('"is" is followed by "empty" or "not empty"')
            return self._empty(first, negated)
        if operator.text.removeprefix("not ") == "matches":
            raise _wrong("matches is not supported: no regular expressions")
        raise _wrong(f"{operator.text!r} is not a supported operator")

    def _value(self) -> str:
        value = self._next("a value")
        if value.kind == "sign":
            raise _wrong(f"{value.text!r} is not expected there")
        return value.text

    def _equal(self, selector: _Token, value: str, negated: bool) -> Filter:
        find, kind = self._select(selector)
        wanted: object = value
        if kind in (list, dict):
            raise _wrong(f"{selector.text} has several values: use in or contains")
        if kind is bool:
            if value not in ("true", "false"):
                raise _wrong(f"{selector.text} is true or false, not {value!r}")
            wanted = value == "true"
        elif kind is int:
            try:
                wanted = int(value)
            except ValueError:
                raise _wrong(f"{selector.text} is a number, not {value!r}") from None
        if negated:
            return lambda document: all(each != wanted for each in find(document))
        return lambda document: any(each == wanted for each in find(document))

    def _held(self, value: str, selector: _Token, negated: bool) -> Filter:
        find, kind = self._select(selector)
        if kind in (int, bool):
            raise _wrong(f"{selector.text} has one value: use ==")

        def holds(document: Any) -> bool:
            return any(value in each for each in find(document))

        return (lambda document: not holds(document)) if negated else holds

    def _empty(self, selector: _Token, negated: bool) -> Filter:
        find, kind = self._select(selector)
        if kind in (int, bool):
            raise _wrong(f"{selector.text} is a {kind.__name__}, which is never empty")

        def holds(document: Any) -> bool:
            return not any(find(document))

        return (lambda document: not holds(document)) if negated else holds

    def _select(self, selector: _Token) -> tuple[Callable[[Any], list[Any]], type]:
        """Return a function that returns the values of *selector* in a document, and their type.

        It returns the values of every object in a list, and none for a missing member.
        """
        path = _path(selector)
        kind, missing = _kind(self._sample, path, selector.text)
        return lambda document: _found(document, path, missing), kind


def _path(selector: _Token) -> list[str]:
    text = selector.text
    if selector.kind == "text":
        if not text.startswith("/"):
            raise _wrong(f"{text!r} is not a selector")
        return [part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/")]
    if selector.kind != "word":
        raise _wrong(f"{text!r} is not a selector")
    parts: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == ".":
            at += 1
        found = _PART.match(text, at)
        if found is None:
            raise _wrong(f"{text!r} is not a selector")
        parts.append(found[1] if found[1] is not None else found[2])
        at = found.end()
    return parts


def _kind(sample: Any, path: list[str], text: str) -> tuple[type, Any]:
    """Return the type of the value at *path*, and the default for documents without it."""
    here = sample
    for name in path:
        if isinstance(here, list) and here and isinstance(here[0], dict):
            here = here[0]
        if not isinstance(here, dict):
            raise _wrong(f"the selector {text!r} is not known here")
        if not here:  # any keys, such as those of metadata
            return str, None
        if name not in here:
            raise _wrong(f"the selector {text!r} is not known here")
        here = here[name]
    return type(here), here if isinstance(here, (str, int)) else None


def _found(document: Any, path: list[str], missing: Any) -> list[Any]:
    here = [document]
    for number, name in enumerate(path, start=1):
        inner: list[Any] = []
        for each in here:
            for one in each if isinstance(each, list) else [each]:
                if isinstance(one, Mapping) and name in one:
                    inner.append(one[name])
                elif isinstance(one, Mapping) and number == len(path) and missing is not None:
                    inner.append(missing)
        here = inner
    return here
