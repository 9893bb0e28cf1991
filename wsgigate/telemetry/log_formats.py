"""Formats of the access log with fields of choice: JSON, OpenTelemetry, ECS, logfmt, combined.

A field is a name, such as ``user_agent``, and a function of the record. The presets ``otel`` (the
attribute names of OpenTelemetry's semantic conventions) and ``ecs`` (Elastic Common Schema) give
the same fields other names and units. Each format escapes every value, so that no value can end the
line, forge another field or control a terminal.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from wsgigate.http.fields import KNOWN_METHODS
from wsgigate.http.wsgi import (
    ATTEMPTS,
    CLAIMS,
    IDENTITY,
    TUNNELLED,
    UPSTREAM_SECONDS,
    environ_key,
)
from wsgigate.rules.claims import ClaimPath
from wsgigate.telemetry.access_log import (
    LONGEST,
    SHORTEST,
    BoundedLines,
    JsonLines,
    Record,
    TextLines,
    TimeText,
    cut,
    json_text,
    path_of,
    status_of,
    words,
)
from wsgigate.telemetry.redaction import MASK, SECRET_MEMBERS, Redaction

__all__ = [
    "DEFAULTS",
    "FIELDS",
    "MOST_FIELDS",
    "CombinedLines",
    "LogfmtLines",
    "SelectedJson",
    "SelectedText",
    "Selection",
    "level_of",
]

MOST_FIELDS = 64
"""The largest number of fields of a line."""

_PREFIXES = ("request.", "response.", "claim.")

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

Get = Callable[[Record], object]


def _environ(key: str) -> Get:
    def get(record: Record) -> object:
        return None if record.environ is None else record.environ.get(key)

    return get


def _milliseconds(record: Record) -> float | None:
    waited = _environ(UPSTREAM_SECONDS)(record)
    return round(waited * 1000, 3) if isinstance(waited, float) else None


def _gateway(record: Record) -> float | None:
    waited = _environ(UPSTREAM_SECONDS)(record)
    taken = record.duration - (waited if isinstance(waited, float) else 0.0)
    return round(max(0.0, taken) * 1000, 3)


def _received(record: Record) -> int | None:
    environ = record.environ or {}
    tunnelled = environ.get(TUNNELLED)
    if tunnelled:
        return int(tunnelled[0])
    length = environ.get("CONTENT_LENGTH") or ""
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None


def _status(record: Record) -> int | None:
    code = status_of(record.status)
    return int(code) if code else None


def level_of(record: Record) -> str:
    """Return the severity of a record: ERROR, WARN or INFO."""
    status = _status(record)
    if status is None or status >= 500 or record.error is not None:
        return "ERROR"
    return "WARN" if status >= 400 or record.aborted else "INFO"


def _summary(record: Record) -> str:
    return f"{record.method} {path_of(record)} {status_of(record.status) or '---'}"


class _Field(NamedTuple):
    """A field, and its names in the presets.

    :ivar get: Returns its value.
    :ivar otel: Its name in ``otel``; the empty text means ``wsgigate.NAME``.
    :ivar ecs: Its name in ``ecs``.
    :ivar to_otel: Converts a value for ``otel``.
    :ivar to_ecs: Converts a value for ``ecs``.
    """

    get: Get
    otel: str = ""
    ecs: str = ""
    to_otel: Callable[[Any], object] | None = None
    to_ecs: Callable[[Any], object] | None = None


def _version(protocol: object) -> object:
    return protocol.removeprefix("HTTP/") if isinstance(protocol, str) else protocol


FIELDS: Mapping[str, _Field] = {
    "time": _Field(lambda r: r.time, "timestamp", "@timestamp"),
    "level": _Field(level_of, "severity_text", "log.level", None, str.lower),
    "message": _Field(_summary, "body", "message"),
    "request_id": _Field(lambda r: r.request_id, "", "http.request.id"),
    "trace_id": _Field(lambda r: r.trace_id, "trace_id", "trace.id"),
    "span_id": _Field(lambda r: r.span_id, "span_id", "span.id"),
    "client": _Field(lambda r: r.client, "client.address", "client.address"),
    "method": _Field(
        lambda r: r.method,
        "http.request.method",
        "http.request.method",
        lambda method: method if method in KNOWN_METHODS else "_OTHER",
    ),
    "path": _Field(path_of, "url.path", "url.path"),
    "query": _Field(lambda r: None, "url.query", "url.query"),  # redacted by the Selection
    "scheme": _Field(_environ("wsgi.url_scheme"), "url.scheme", "url.scheme"),
    "host": _Field(_environ("HTTP_HOST"), "server.address", "url.domain"),
    "protocol": _Field(
        _environ("SERVER_PROTOCOL"),
        "network.protocol.version",
        "http.version",
        _version,
        _version,
    ),
    "tls": _Field(
        lambda r: (r.environ or {}).get("wsgi.url_scheme") == "https", "", "tls.established"
    ),
    "user_agent": _Field(_environ("HTTP_USER_AGENT"), "user_agent.original", "user_agent.original"),
    "referer": _Field(lambda r: None, "http.request.header.referer", "http.request.referrer"),
    "status": _Field(_status, "http.response.status_code", "http.response.status_code"),
    "bytes": _Field(lambda r: r.bytes, "http.response.body.size", "http.response.body.bytes"),
    "bytes_in": _Field(_received, "http.request.body.size", "http.request.body.bytes"),
    "duration_ms": _Field(
        lambda r: round(r.duration * 1000, 3),
        "http.server.request.duration",
        "event.duration",
        lambda value: round(value / 1000, 6),
        lambda value: round(value * 1_000_000),
    ),
    "upstream_ms": _Field(_milliseconds),
    "gateway_ms": _Field(_gateway),
    "attempts": _Field(_environ(ATTEMPTS)),
    "route": _Field(lambda r: r.route, "http.route"),
    "service": _Field(lambda r: r.service),
    "instance": _Field(lambda r: r.instance),
    "subject": _Field(lambda r: r.subject, "user.id", "user.id"),
    "shaped": _Field(lambda r: r.shaped),
    "rule": _Field(lambda r: r.rule),
    "reason": _Field(lambda r: r.reason, "", "event.reason"),
    "error": _Field(lambda r: r.error, "error.type", "error.type"),
    "aborted": _Field(lambda r: r.aborted or None),
}
"""The fields by name; ``request.NAME``, ``response.NAME`` and ``claim.PATH`` are further ones."""

_OPTIONAL = ("trace_id", "span_id", "shaped", "rule", "reason", "error", "aborted")

DEFAULTS = {
    "logfmt": (
        *("time", "level", "request_id", "client", "method", "path", "status", "bytes"),
        *("duration_ms", "route", "service", "instance", "subject", *_OPTIONAL),
    ),
    "otel": (
        *("time", "level", "message", "request_id", "client", "method", "path", "query"),
        *("scheme", "host", "protocol", "user_agent", "status", "bytes", "bytes_in"),
        *("duration_ms", "upstream_ms", "gateway_ms", "attempts", "route", "service"),
        *("instance", "subject", *_OPTIONAL),
    ),
}
DEFAULTS["ecs"] = (*DEFAULTS["otel"], "referer", "tls")

_CONSTANTS: Mapping[str, Sequence[tuple[str, object]]] = {
    "ecs": (
        ("ecs.version", "8.17.0"),
        ("event.dataset", "wsgigate.access"),
        ("event.kind", "event"),
        ("event.category", ["web"]),
    ),
}


class Selection:
    """The selected fields of a record, with their names in a format, and redacted.

    :param names: The names of the fields, in order.
    :param preset: ``otel``, ``ecs`` or the empty text.
    :param redact: Names whose values are masked, besides the usual ones.
    :raises ValueError: There is no field of such a name; the message begins with ``fields``.
    """

    def __init__(
        self, names: Sequence[str], *, preset: str = "", redact: Iterable[str] = ()
    ) -> None:
        redact = tuple(redact)
        if len(names) > MOST_FIELDS:
            raise ValueError(f"fields: at most {MOST_FIELDS} fields, got {len(names)}")
        self._redaction = Redaction(redact)
        self._members = Redaction(redact, known=SECRET_MEMBERS)
        self.constants = _CONSTANTS.get(preset, ())
        self.reads_response = any(name.startswith("response.") for name in names)
        self.fields: list[tuple[str, Get]] = []
        for name in names:
            if (shown := self._named(name, preset)) in [known for known, _ in self.fields]:
                raise ValueError(f"fields: {name} is given twice")
            self.fields.append((shown, self._getter(name, preset)))

    def values(self, record: Record) -> Iterator[tuple[str, object]]:
        """Yield the names and the values of a record; a value may be ``None``."""
        for name, get in self.fields:
            yield name, get(record)

    def _named(self, name: str, preset: str) -> str:
        if not preset:
            return name
        known = FIELDS.get(name)
        if known is not None:
            return (known.otel if preset == "otel" else known.ecs) or f"wsgigate.{name}"
        kind, _, rest = name.partition(".")
        if kind == "claim":
            return f"wsgigate.{name}"
        dotted = f"http.{kind}.header.{rest.lower()}"
        return dotted if preset == "otel" else f"wsgigate.{dotted}"

    def _getter(self, name: str, preset: str) -> Get:
        known = FIELDS.get(name)
        if known is None:
            return self._further(name)
        get = {"query": self._query, "referer": self._referer}.get(name, known.get)
        convert = {"otel": known.to_otel, "ecs": known.to_ecs}.get(preset)
        if convert is None:
            return get

        def converted(record: Record) -> object:
            value = get(record)
            return None if value is None else convert(value)

        return converted

    def _further(self, name: str) -> Get:
        kind, _, rest = name.partition(".")
        if kind == "claim" and rest:
            try:
                path = ClaimPath(rest)
            except ValueError as error:
                raise ValueError(f"fields: {name}: {error}") from None
            return self._claim(path)
        if kind in ("request", "response") and _NAME.fullmatch(rest):
            masked = self._redaction.masks(rest)
            return _response(rest, masked) if kind == "response" else _request(rest, masked)
        raise ValueError(
            f"fields: unknown field {name[:64]!r}; known are {', '.join(FIELDS)}, "
            "request.NAME and response.NAME for header fields, and claim.PATH"
        )

    def _claim(self, path: ClaimPath) -> Get:
        secret = any(map(self._members.masks, path.names))

        def get(record: Record) -> object:
            environ = record.environ or {}
            claims = getattr(environ.get(IDENTITY), "claims", None) or environ.get(CLAIMS) or {}
            value = path.find(claims)
            return MASK if secret and value is not None else self._members.members(value)

        return get

    def _query(self, record: Record) -> str | None:
        query = (record.environ or {}).get("QUERY_STRING")
        return self._redaction.query(query) if query else None

    def _referer(self, record: Record) -> str | None:
        referer = (record.environ or {}).get("HTTP_REFERER")
        return None if referer is None else self._redaction.url(referer)


def _request(name: str, masked: bool) -> Get:
    get = _environ(environ_key(name))

    def masking(record: Record) -> object:
        return None if get(record) is None else MASK

    return masking if masked else get


def _response(name: str, masked: bool) -> Get:
    lower = name.lower()

    def get(record: Record) -> object:
        values = [value for field, value in record.head or () if field.lower() == lower]
        if not values:
            return None
        return MASK if masked else ", ".join(values)

    return get


# The formats.


def _shown(value: object, limit: int) -> str:
    """Return *value* as JSON in ASCII, at most about *limit* characters long."""
    if value is None or isinstance(value, str):
        return json_text(value, limit)
    if isinstance(value, bool | int | float):
        text = json.dumps(value)
        return text if len(text) <= 40 else json_text(text, limit)
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else json_text(text, limit)


class SelectedJson(BoundedLines):
    """One JSON object per line with the selected fields, in ASCII.

    :param selection: The fields.
    :param nulls: Whether fields without a value are ``null``, else they are left out.
    """

    def __init__(self, selection: Selection, *, nulls: bool) -> None:
        self._nulls = nulls
        self._time = TimeText()
        self._constant = "".join(
            f",{json.dumps(name)}:{json.dumps(value)}" for name, value in selection.constants
        )
        self._members = [
            (f"{json.dumps(name)}:", get, name in ("time", "timestamp", "@timestamp"))
            for name, get in selection.fields
        ]

    def _line(self, r: Record, limit: int) -> bytes:
        members = []
        for prefix, get, is_time in self._members:
            value = get(r)
            if value is None:
                if self._nulls:
                    members.append(f"{prefix}null")
            elif type(value) is str:
                members.append(prefix + _known_text(value, limit))
            elif is_time:
                members.append(f'{prefix}"{self._time(r.time)}"')
            else:
                members.append(prefix + _shown(value, limit))
        if limit == SHORTEST:  # otherwise a line that is too long is made again with a lower limit
            members = _fitting(members, LONGEST - len(self._constant), '"truncated":true')
        line = "{" + ",".join(members) + self._constant + "}\n"
        return line.replace("\x7f", "\\u007f").encode("ascii")

    def dropped(self, now: float, count: int) -> bytes:
        return JsonLines().dropped(now, count)


def _known_text(value: str, limit: int) -> str:
    """Return *value* as JSON; values that recur, which are short, are kept."""
    return _kept_text(value, limit) if len(value) <= 40 else json_text(value, limit)


_kept_text = lru_cache(maxsize=4096)(json_text)


def _fitting(parts: list[str], room: int, mark: str) -> list[str]:
    """Return the first of *parts* that fit into *room* bytes, and *mark* if some do not."""
    left = room - len(mark) - 8
    for number, part in enumerate(parts):
        left -= len(part) + 1 + 5 * part.count("\x7f")
        if left < 0:
            return [*parts[:number], mark]
    return parts


_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # visible ASCII without a quote, an equals sign, a backslash


class LogfmtLines(BoundedLines):
    """One line of ``name=value`` pairs; values with other characters are quoted as in JSON.

    :param selection: The fields.
    """

    def __init__(self, selection: Selection) -> None:
        self._time = TimeText()
        self._pairs = [
            (f"{_logfmt_name(name)}=", get, name == "time") for name, get in selection.fields
        ]

    def _line(self, r: Record, limit: int) -> bytes:
        pairs = []
        for prefix, get, is_time in self._pairs:
            value = get(r)
            if value is None:
                continue
            if is_time:
                pairs.append(prefix + self._time(r.time))
                continue
            text = value if type(value) is str else _shown(value, limit)
            if len(text) > limit or not _BARE.fullmatch(text):
                text = json_text(text, limit).replace("\x7f", "\\u007f")
            pairs.append(prefix + text)
        if limit == SHORTEST:
            pairs = _fitting(pairs, LONGEST, "truncated=true")
        return (" ".join(pairs) + "\n").encode("ascii")

    def dropped(self, now: float, count: int) -> bytes:
        return f'time={self._time(now)} event="log records dropped" count={count}\n'.encode()


def _logfmt_name(name: str) -> str:
    return re.sub(r'[\s="\\\x00-\x20\x7f-\U0010ffff]', "_", name)


class SelectedText(TextLines):
    """The line of text in columns, with further fields as ``name="value"``.

    :param selection: The further fields.
    :param encoding: Encoding of the stream.
    :param colour: Whether the status is coloured by its class.
    """

    def __init__(self, selection: Selection, encoding: str, *, colour: bool) -> None:
        super().__init__(encoding, colour=colour)
        self._selection = selection
        self._written = encoding

    def _line(self, r: Record, limit: int) -> bytes:
        line = super()._line(r, limit)[:-1]
        for name, value in self._selection.values(r):
            if value is None:
                continue
            text = cut(value if isinstance(value, str) else _shown(value, limit), limit)
            more = f" {_logfmt_name(name)}={words(text)}"
            encoded = more.encode(self._written, "backslashreplace")
            if len(line) + len(encoded) >= LONGEST and limit == SHORTEST:
                break
            line += encoded
        return line + b"\n"


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class CombinedLines(BoundedLines):
    """The combined log format of Apache and nginx, which tools such as GoAccess read.

    Bytes that are not visible ASCII, quotes and backslashes in a value are escaped as Apache does
    it: ``\\xHH``, ``\\"`` and ``\\\\``. The target has the query, redacted.

    :param redact: Names of query parameters to mask, besides the usual ones.
    """

    def __init__(self, redact: Iterable[str] = ()) -> None:
        self._redaction = Redaction(redact)

    def _line(self, r: Record, limit: int) -> bytes:
        environ = r.environ or {}
        query = self._redaction.query(environ.get("QUERY_STRING") or "")
        target = path_of(r) + (f"?{query}" if query else "")
        protocol = environ.get("SERVER_PROTOCOL") or "HTTP/1.1"
        request = f"{cut(r.method, limit)} {cut(target, limit)} {cut(protocol, 16)}"
        referer = environ.get("HTTP_REFERER")
        referer = "-" if not referer else self._redaction.url(referer)
        agent = environ.get("HTTP_USER_AGENT") or "-"
        return (
            f"{_clf_word(cut(r.client, limit))} - {_clf_word(cut(r.subject or '-', limit))}"
            f' [{_clf_time(r.time)}] "{_clf(request)}" {status_of(r.status) or "-"}'
            f' {r.bytes or "-"} "{_clf(cut(referer, limit))}" "{_clf(cut(agent, limit))}"\n'
        ).encode("ascii")

    def dropped(self, now: float, count: int) -> bytes:
        return f'- - - [{_clf_time(now)}] "-" - - "-" "{count} log records dropped"\n'.encode()


def _clf_time(now: float) -> str:
    t = time.gmtime(now)
    return (
        f"{t.tm_mday:02d}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year}"
        f":{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} +0000"
    )


def _clf(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(map(_clf_character, text))


def _clf_character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isascii() and character.isprintable():
        return character
    # A server passes each byte of a field as a character; of other texts UTF-8 is meant.
    code = ord(character)
    data = bytes([code]) if code < 0x100 else character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def _clf_word(text: str) -> str:
    return _clf(text).replace(" ", "\\x20") or "-"
