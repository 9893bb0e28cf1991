"""HTTP/1.1 requests as a server reads them: heads, and the framing of bodies. No I/O.

Theory of operation
-------------------

A head is parsed once it is complete, in one pass over its lines; the connection finds its end. What
every request needs is done by built-in methods over the whole head, and Python code runs once per
field:

- Control characters anywhere are found by ``bytes.translate``, which deletes them: the length
  changes. Bare CR and LF are found by counting both.
- The name of a field is validated once per process: ``_KEYS`` maps each spelling that was seen to
  its environ key. The table is bounded, as clients choose the names.
- A value needs no check of its own: the check of the whole head covers it.

The rules are those of gunicorn's parser, so that the same requests are refused whatever server runs
the gateway; a test compares the two on mutated requests. Where RFC 9112 leaves a choice, the
stricter one is taken: an ambiguous request is refused, never repaired, because a proxy in front may
have read it differently (request smuggling).

Differences from gunicorn: several ``Cookie`` fields are joined with a semicolon (RFC 9113 section
8.2.3), as a comma can be part of a cookie's value; ``Connection`` is read as a list of options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote_to_bytes, urlsplit

from wsgigate.http.fields import is_token
from wsgigate.http.problem import Problem

__all__ = ["PREFACE", "BadRequest", "ChunkedDecoder", "Head", "HeadParser", "HeadRules"]


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client of HTTP/2 sends first (RFC 9113 section 3.4)."""

_BAD_HEAD = Problem(400, "Malformed request head.")

_BAD_BODY = Problem(400, "Malformed request body.")

_LONG_TARGET = Problem(414, "The request target is too long.")

_LONG_FIELDS = Problem(431, "The request has too many fields or too long ones.")

_EXPECTATION = Problem(417, "Only 100-continue can be expected.")

_CODING = Problem(501, "Transfer coding not supported.")

_SCRIPT_NAME = Problem(500, "The server failed.")


class BadRequest(Exception):
    """A request that is refused before any application sees it.

    :ivar problem: The response.
    """

    def __init__(self, problem: Problem, reason: str) -> None:
        super().__init__(reason)
        self.problem = problem


@dataclass(frozen=True)
class HeadRules:
    """What a head may contain.

    :param request_line: The most bytes of a request line; 0 for any number.
    :param fields: The most fields.
    :param field_size: The most bytes of a field line.
    :param header_map: What becomes of a name with an underscore, which would be read like another
        name with a hyphen: ``refuse`` the request, ``drop`` the field, or ``dangerous`` to keep it.
    :param any_method: Accept lower-case methods, and those shorter than 3 or longer than 20.
    :param upper_method: Read methods in upper case.
    :param script_name: The path that the server is mounted at.
    """

    request_line: int = 8190
    fields: int = 100
    field_size: int = 8190
    header_map: Literal["refuse", "drop", "dangerous"] = "refuse"
    any_method: bool = False
    upper_method: bool = False
    script_name: str = ""

    @property
    def longest(self) -> int:
        """The most bytes of a whole head."""
        return (self.request_line or 1 << 20) + self.fields * (self.field_size + 2) + 4


@dataclass(slots=True)
class Head:
    """The head of a request, besides what is in its environ.

    :ivar length: Bytes of the body; -1 for a chunked one.
    :ivar keep: Whether the client keeps the connection open.
    :ivar expects: Whether the client waits for ``100 Continue``.
    """

    method: str
    target: str
    version: tuple[int, int]
    length: int
    keep: bool
    expects: bool = False


_CONTROLS = bytes([*range(0, 9), 11, 12, *range(14, 32), 127])

_VERSIONS = {"HTTP/1.1": (1, 1), "HTTP/1.0": (1, 0)}

_LATER_VERSION = re.compile(r"HTTP/1\.\d", re.ASCII)

_KNOWN_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

_USUAL_METHOD = re.compile(r"[^a-z#]{3,20}")

_SINGLE = frozenset(("HTTP_HOST", "CONTENT_TYPE", "CONTENT_LENGTH", "SCRIPT_NAME"))
"""Fields that must not be repeated (RFC 9110 section 5.3): two readers may choose differently."""

_FRAMING = frozenset(("CONTENT_TYPE", "CONTENT_LENGTH", "TRANSFER_ENCODING"))
"""What no name with an underscore may become: another reader would not use such a field."""

_KEYS: dict[str, str] = {}
"""Environ keys by the spelling of a field's name."""

_MOST_KEYS = 2000

_FORBIDDEN_TRAILERS = frozenset(
    ("HOST", "CONTENT-LENGTH", "TRANSFER-ENCODING", "TRAILER", "AUTHORIZATION", "TE")
)


class HeadParser:
    """Parses heads by *rules*.

    :param secure: What tells, per environ key, that the request came by ``https``: the peer is a
        proxy whose word on that is accepted.
    :param forwarders: Upper-case names with an underscore that the peer may send; ``*`` for all.
    """

    def __init__(
        self,
        rules: HeadRules,
        *,
        secure: Mapping[str, str] | None = None,
        forwarders: frozenset[str] = frozenset(),
    ) -> None:
        self._rules = rules
        self._secure = dict(secure or {})
        self._forwarders = forwarders

    def parse(self, data: bytes, environ: dict[str, Any]) -> Head:
        """Read the head *data*, without the empty line at its end, into *environ*.

        :raises BadRequest: The head is malformed, ambiguous or too long.
        """
        lines = data.decode("latin-1").split("\r\n")
        ends = len(lines) - 1
        if data.count(b"\n") != ends or data.count(b"\r") != ends:
            raise BadRequest(_BAD_HEAD, "a bare CR or LF in the head")
        if len(data.translate(None, _CONTROLS)) != len(data):
            raise BadRequest(_BAD_HEAD, "a control character in the head")
        rules = self._rules
        if ends > rules.fields:
            raise BadRequest(_LONG_FIELDS, f"more than {rules.fields} fields")
        method, target, version = self._request_line(lines[0])
        if len(data) > rules.field_size and max(map(len, lines[1:]), default=0) > (
            rules.field_size - 2
        ):
            raise BadRequest(_LONG_FIELDS, f"a field of more than {rules.field_size} bytes")
        keys = _KEYS
        del lines[0]
        for line in lines:
            name, colon, value = line.partition(":")
            key = keys.get(name)
            if key is None or not colon:
                key = self._key(name, colon)
                if not key:
                    continue
            value = value.strip(" \t")
            if key in environ:
                self._repeat(environ, key, value)
            else:
                environ[key] = value
        self._set_path(method, target, environ)
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = target
        environ["SERVER_PROTOCOL"] = f"HTTP/1.{version[1]}"
        head = Head(method, target, version, 0, version >= (1, 1))
        if "HTTP_TRANSFER_ENCODING" in environ:
            self._set_coding(environ, head)
        elif "CONTENT_LENGTH" in environ:
            length: str = environ["CONTENT_LENGTH"]
            if not (length.isascii() and length.isdigit() and len(length) < 19):
                raise BadRequest(_BAD_HEAD, "a malformed Content-Length")
            head.length = int(length)
        if "HTTP_CONNECTION" in environ:
            options = environ["HTTP_CONNECTION"].lower()
            if options != "keep-alive" or not head.keep:
                named = [each.strip(" \t") for each in options.split(",")]
                head.keep = "close" not in named and (head.keep or "keep-alive" in named)
        if "HTTP_EXPECT" in environ:
            if {each.strip(" \t") for each in environ["HTTP_EXPECT"].lower().split(",")} != {
                "100-continue"
            }:
                raise BadRequest(_EXPECTATION, "an unknown expectation")
            head.expects = version >= (1, 1)  # RFC 9110 section 10.1.1: ignored from HTTP/1.0
        if self._secure:
            self._set_scheme(environ)
        if method == "CONNECT":
            head.keep = False  # what follows belongs to a tunnel (RFC 9931 section 8)
        return head

    def _request_line(self, line: str) -> tuple[str, str, tuple[int, int]]:
        limit = self._rules.request_line
        if len(line) > limit > 0:
            raise BadRequest(_LONG_TARGET, f"a request line of more than {limit} bytes")
        parts = line.split(" ")
        if len(parts) != 3:
            raise BadRequest(_BAD_HEAD, "a malformed request line")
        method, target, version = parts
        if method not in _KNOWN_METHODS:
            usual = self._rules.any_method or _USUAL_METHOD.fullmatch(method)
            if not (usual and is_token(method)):
                raise BadRequest(_BAD_HEAD, "a malformed method")
            if self._rules.upper_method:
                method = method.upper()
        # RFC 9112 section 3.2: printable ASCII
        if not (target and target.isascii() and target.isprintable()):
            raise BadRequest(_BAD_HEAD, "a malformed request target")
        number = _VERSIONS.get(version)
        if number is None:
            if not _LATER_VERSION.fullmatch(version):
                raise BadRequest(_BAD_HEAD, "a version other than HTTP/1")
            number = (1, int(version[-1]))
        return method, target, number

    def _set_path(self, method: str, target: str, environ: dict[str, Any]) -> None:
        if target[0] == "/" and "#" not in target:
            path, _, query = target.partition("?")
        elif target == "*" and method == "OPTIONS":
            path, query = target, ""
        elif target[0] != "/" and method != "CONNECT" and "://" not in target:
            raise BadRequest(_BAD_HEAD, "a malformed request target")
        else:
            # a leading "//" would be read as an authority
            try:
                parts = urlsplit("." + target if target.startswith("//") else target)
            except ValueError:
                raise BadRequest(_BAD_HEAD, "a malformed request target") from None
            path, query = parts.path, parts.query
            if target.startswith("//"):
                path = path[1:]
        mount = environ.get("SCRIPT_NAME")
        if mount is None:
            mount = self._rules.script_name
        else:
            environ["HTTP_SCRIPT_NAME"] = mount
        if mount:
            if not path.startswith(mount):
                raise BadRequest(
                    _SCRIPT_NAME, f"the path does not start with SCRIPT_NAME {mount!r}"
                )
            path = path[len(mount) :]
        environ["SCRIPT_NAME"] = mount
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        environ["QUERY_STRING"] = query

    def _key(self, name: str, colon: str) -> str:
        """Return the environ key of the field *name*, an empty string for a dropped field."""
        if not colon:
            raise BadRequest(_BAD_HEAD, "a field without a colon")
        if not is_token(name):
            raise BadRequest(_BAD_HEAD, "a malformed field name")
        upper = name.upper()
        if "_" in name:
            if upper in self._forwarders or "*" in self._forwarders:
                if upper == "SCRIPT_NAME":  # not Script-Name: the proxy forwards that of a client
                    return upper
            elif self._rules.header_map == "refuse":
                raise BadRequest(_BAD_HEAD, "a field name with an underscore")
            elif self._rules.header_map == "drop":
                return ""
        key = upper.replace("-", "_")
        if key in _FRAMING and "_" in name:
            raise BadRequest(_BAD_HEAD, "a field of the framing with an underscore in its name")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        if "_" not in name and len(_KEYS) < _MOST_KEYS:
            _KEYS[name] = key
        return key

    def _repeat(self, environ: dict[str, Any], key: str, value: str) -> None:
        if key in _SINGLE:
            raise BadRequest(_BAD_HEAD, "a repeated field that must be single")
        if key in self._secure:
            if (value == self._secure[key]) != (environ[key] == self._secure[key]):
                raise BadRequest(_BAD_HEAD, "contradictory scheme fields")
            return
        environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value

    def _set_coding(self, environ: dict[str, Any], head: Head) -> None:
        """Read Transfer-Encoding (RFC 9112 section 6.1)."""
        codings = [
            each.strip(" \t").lower() for each in environ["HTTP_TRANSFER_ENCODING"].split(",")
        ]
        for coding in codings:
            if coding not in ("chunked", "identity", "compress", "deflate", "gzip"):
                raise BadRequest(_CODING, "an unknown transfer coding")
        if codings[-1] != "chunked" or "chunked" in codings[:-1]:
            raise BadRequest(_BAD_HEAD, "a body whose end is not known")
        if head.version < (1, 1) or "CONTENT_LENGTH" in environ:
            raise BadRequest(_BAD_HEAD, "a body with two lengths")
        if len(codings) > 1 and set(codings) - {"chunked", "identity"}:
            head.keep = False
        head.length = -1

    def _set_scheme(self, environ: dict[str, Any]) -> None:
        schemes = {
            "https" if environ[key] == value else "http"
            for key, value in self._secure.items()
            if key in environ
        }
        if len(schemes) > 1:
            raise BadRequest(_BAD_HEAD, "contradictory scheme fields")
        for scheme in schemes:
            environ["wsgi.url_scheme"] = scheme


_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*(;[^\r\n]*))?")

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"

_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'

_EXTENSIONS = re.compile(
    rb"(?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*"
)

_LINE = 8190

_MOST_EXTENSIONS = 16384
"""Bytes of chunk extensions in one body: they mean nothing here, and cost as much as a body."""


@dataclass(slots=True)
class ChunkedDecoder:
    """Decodes a chunked body (RFC 9112 section 7.1) piece by piece.

    :ivar complete: Whether the body has ended.
    :ivar rest: The bytes that follow the body, once it has ended.
    """

    rules: HeadRules = field(default_factory=HeadRules)
    complete: bool = False
    rest: bytes = b""
    _buffer: bytes = b""
    _left: int = 0  # bytes of the present chunk
    _state: Literal["size", "data", "end", "trailers"] = "size"
    _extensions: int = 0

    def feed(self, data: bytes) -> bytes:
        """Return what *data* contains of the body.

        :raises BadRequest: The coding is malformed.
        """
        buffer = self._buffer + data if self._buffer else data
        found: list[bytes] = []
        at = 0
        while True:
            if self._state == "data":
                part = buffer[at : at + self._left]
                found.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    break
                self._state = "end"
            elif self._state == "end":
                if len(buffer) - at < 2:
                    if buffer[at:] not in (b"", b"\r"):
                        raise BadRequest(_BAD_BODY, "a chunk that is longer than its size")
                    break
                if buffer[at : at + 2] != b"\r\n":
                    raise BadRequest(_BAD_BODY, "a chunk that is longer than its size")
                at += 2
                self._state = "size"
            elif self._state == "size":
                end = buffer.find(b"\r\n", at, at + _LINE)
                if end < 0:
                    if len(buffer) - at >= _LINE or b"\n" in buffer[at:]:
                        raise BadRequest(_BAD_BODY, "a malformed chunk size")
                    break
                self._begin_chunk(buffer[at:end])
                at = end + 2
            else:
                at = self._end(buffer, at)
                break
        self._buffer = b"" if self.complete else buffer[at:]
        return b"".join(found)

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise BadRequest(_BAD_BODY, "a malformed chunk size")
        if match[2]:
            self._extensions += len(match[2])
            if self._extensions > _MOST_EXTENSIONS or not _EXTENSIONS.fullmatch(match[2]):
                raise BadRequest(_BAD_BODY, "malformed or too long chunk extensions")
        self._left = int(match[1], 16)
        self._state = "data" if self._left else "trailers"

    def _end(self, buffer: bytes, at: int) -> int:
        """Read the trailer section, which is checked and discarded."""
        if buffer[at : at + 2] == b"\r\n":
            end, size = at, 2
        else:
            end, size = buffer.find(b"\r\n\r\n", at), 4
            if end < 0:
                part = buffer[at:]
                if part.count(b"\n") != part.count(b"\r\n"):
                    raise BadRequest(_BAD_BODY, "a bare LF in the trailers")
                if len(part) > self.rules.field_size * 4:
                    raise BadRequest(_LONG_FIELDS, "too long trailers")
                return at
            check_trailers(buffer[at:end], self.rules)
        self.complete = True
        self.rest = buffer[end + size :]
        return len(buffer)


def check_trailers(data: bytes, rules: HeadRules) -> None:
    """Check a trailer section, without the empty line at its end.

    :raises BadRequest: It is malformed, or has a field that is no trailer (RFC 9110 section 6.5.1).
    """
    lines = data.decode("latin-1").split("\r\n")
    ends = len(lines) - 1
    if data.count(b"\n") != ends or data.count(b"\r") != ends:
        raise BadRequest(_BAD_BODY, "a bare CR or LF in the trailers")
    if len(data.translate(None, _CONTROLS)) != len(data):
        raise BadRequest(_BAD_BODY, "a control character in the trailers")
    if len(lines) > rules.fields or max(map(len, lines)) > rules.field_size - 2:
        raise BadRequest(_LONG_FIELDS, "too many trailers or too long ones")
    for line in lines:
        name, colon, _ = line.partition(":")
        if not colon or not is_token(name) or name.upper() in _FORBIDDEN_TRAILERS:
            raise BadRequest(_BAD_BODY, "a malformed trailer")
        if "_" in name and rules.header_map == "refuse":
            raise BadRequest(_BAD_BODY, "a trailer with an underscore in its name")
