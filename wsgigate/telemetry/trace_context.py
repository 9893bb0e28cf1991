"""Trace context: the fields that link the spans of one request over services, without I/O.

W3C Trace Context (level 1, and the random flag of level 2) defines ``traceparent`` and
``tracestate``, W3C Baggage the field ``baggage``, and B3 the fields of Zipkin.

Rules that must hold:

- A malformed ``traceparent`` starts a new trace, and its ``tracestate`` is dropped with it. A
  malformed ``tracestate`` is dropped alone. Neither ever rejects a request.
- What is passed on is written anew from parsed values, within the bounds below. So no client
  makes the fields grow, and no unusual form of theirs reaches a service.
- A client may choose its trace id. So the ratio is applied to an id only if the gateway or a
  trusted caller has made it; otherwise a client could choose an id that is always sampled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

__all__ = [
    "MAX_BAGGAGE",
    "MAX_BAGGAGE_MEMBERS",
    "MAX_TRACESTATE",
    "MAX_TRACESTATE_MEMBERS",
    "RANDOM",
    "SAMPLED",
    "RemoteParent",
    "TraceContext",
    "TracerSource",
    "bounded_baggage",
    "ratio_bound",
    "read_b3",
    "read_traceparent",
    "read_tracestate",
    "sampler_ratio",
]

SAMPLED = 0x01
"""The flag of a trace whose caller may have recorded it."""

RANDOM = 0x02
"""The flag of a trace id whose right half is random (level 2)."""

MAX_TRACESTATE_MEMBERS = 32

MAX_TRACESTATE = 512
"""Longest ``tracestate`` in characters that is passed on; the specification's least."""

_LONG_MEMBER = 128
"""Length above which a member is removed first (section 3.3.1.5)."""

MAX_BAGGAGE = 8192
"""Longest ``baggage`` in bytes that is passed on; the specification's least."""

MAX_BAGGAGE_MEMBERS = 64


class TracerSource(Protocol):
    """A provider of tracers, such as ``opentelemetry.sdk.trace.TracerProvider``."""

    def get_tracer(self, name: str, /) -> Any:
        """Return the tracer of the package *name*."""


class RemoteParent(NamedTuple):
    """The span of the caller.

    :ivar trace_id: 32 lower-case hexadecimal digits.
    :ivar span_id: 16 lower-case hexadecimal digits.
    :ivar flags: :data:`SAMPLED` and :data:`RANDOM`; B3 fields without a decision have None.
    """

    trace_id: str
    span_id: str
    flags: int | None


class TraceContext:
    """The trace of one request, as middlewares and logs read it from ``environ``.

    :ivar trace_id: 32 lower-case hexadecimal digits.
    :ivar span_id: The id of the gateway's own span, 16 lower-case hexadecimal digits.
    :ivar sampled: Whether the trace is recorded.
    :ivar parent: The caller's span; None if the trace began here.
    :ivar link: The span of a caller whose trace is not continued; None otherwise.
    :ivar span: Records the gateway's span and those of its attempts; None if nothing is recorded.
    """

    __slots__ = ("link", "parent", "random", "sampled", "span", "span_id", "trace_id")

    def __init__(
        self,
        trace_id: str,
        span_id: str,
        sampled: bool,
        random: bool = True,
        parent: RemoteParent | None = None,
        link: RemoteParent | None = None,
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.sampled = sampled
        self.random = random
        self.parent = parent
        self.link = link
        self.span: Any = None

    def traceparent(self, span_id: str | None = None) -> str:
        """Return the field for a service whose parent is this span, or *span_id*."""
        flags = _FLAGS[self.sampled | self.random << 1]
        return f"00-{self.trace_id}-{span_id or self.span_id}-{flags}"


_FLAGS = ("00", "01", "02", "03")

_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)


def read_traceparent(text: str) -> RemoteParent | None:
    """Return the caller's span from the value of ``traceparent``; None if it is malformed.

    Several fields are malformed: a server joins them with commas. The value of a future version is
    read as far as this version defines it (section 3.2.1).
    """
    match = _TRACEPARENT.fullmatch(text) or _TRACEPARENT.fullmatch(text.strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if rest is not None and version == "00":
        return None
    return RemoteParent(trace_id, span_id, int(flags, 16) & (SAMPLED | RANDOM))


_MEMBER = re.compile(
    r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


def read_tracestate(text: str) -> str:
    """Return ``tracestate`` as it is passed on; empty if it is malformed.

    Members longer than 128 characters are removed first from a value that is too long, then members
    from its end (section 3.3.1.5).
    """
    if len(text) > 32 * 1024:  # longer than any valid value
        return ""
    members: dict[str, str] = {}
    for part in text.split(","):
        member = part.strip(" \t")
        if not member:
            continue
        match = _MEMBER.fullmatch(member)
        if match is None or match[1] in members:
            return ""
        members[match[1]] = member
    if len(members) > MAX_TRACESTATE_MEMBERS:
        return ""
    kept = list(members.values())
    while sum(map(len, kept)) + len(kept) - 1 > MAX_TRACESTATE:
        long = [at for at, member in enumerate(kept) if len(member) > _LONG_MEMBER]
        del kept[long[-1] if long else -1]
    return ",".join(kept)


def bounded_baggage(text: str) -> str:
    """Return ``baggage`` unchanged; empty if it exceeds what must be passed on (section 3.3.2)."""
    if len(text) > MAX_BAGGAGE or text.count(",") >= MAX_BAGGAGE_MEMBERS:
        return ""
    return text


_B3_IDS = re.compile(r"(?!0+-)((?:[0-9a-f]{16}){1,2})-(?!0{16})([0-9a-f]{16})", re.IGNORECASE)

_B3_SAMPLED: Mapping[str, int | None] = {
    "": None,
    "0": 0,
    "1": SAMPLED,
    "d": SAMPLED,
    "false": 0,
    "true": SAMPLED,
}


def read_b3(get: Callable[[str, str], str]) -> RemoteParent | None:
    """Return the caller's span from B3 fields; None without any, or if they are malformed.

    The single field ``b3`` comes first. A trace id of 64 bits is extended to the left.

    :param get: Returns the value of an ``environ`` key, or else its second argument.
    """
    single = get("HTTP_B3", "")
    if single:
        ids, decision = single[:49], single[49:]
        if single[16:17] == "-":  # a trace id of 64 bits
            ids, decision = single[:33], single[33:]
        if decision and decision[0] != "-":
            return None
        sampled, _, parent = decision[1:].partition("-")
        if parent and not re.fullmatch("[0-9a-fA-F]{16}", parent):
            return None
    else:
        ids = f"{get('HTTP_X_B3_TRACEID', '')}-{get('HTTP_X_B3_SPANID', '')}"
        sampled = "d" if get("HTTP_X_B3_FLAGS", "") == "1" else get("HTTP_X_B3_SAMPLED", "")
    match = _B3_IDS.fullmatch(ids)
    sampled = sampled.lower()
    if match is None or sampled not in _B3_SAMPLED:
        return None
    return RemoteParent(match[1].lower().zfill(32), match[2].lower(), _B3_SAMPLED[sampled])


def ratio_bound(ratio: float) -> int:
    """Return the bound of the right half of a trace id below which a trace is sampled.

    The decision is that of the OpenTelemetry sampler ``traceidratio``, so that all gateways and
    services with the same ratio decide alike.
    """
    return round(ratio * (1 << 64))


def sampler_ratio(name: str, argument: str) -> float | None:
    """Return the ratio of the sampler that ``OTEL_TRACES_SAMPLER`` names; None if it has none.

    :param name: The value of that variable.
    :param argument: The value of ``OTEL_TRACES_SAMPLER_ARG``.
    """
    name = name.strip().lower().removeprefix("parentbased_")
    if name in ("always_on", "always_off"):
        return float(name == "always_on")
    if name != "traceidratio":
        return None
    try:
        ratio = float(argument or 1)
    except ValueError:
        return None
    return ratio if 0 <= ratio <= 1 else None
