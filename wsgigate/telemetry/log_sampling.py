"""Which records of the access log are kept, and where the time of a slow request went."""

from __future__ import annotations

from zlib import crc32

from wsgigate.http.wsgi import ATTEMPTS, TUNNELLED, UPSTREAM_SECONDS
from wsgigate.runtime.logs import one_line
from wsgigate.telemetry.access_log import Record, path_of, status_of

__all__ = ["is_kept", "is_tunnel", "slow_fields", "slow_text"]

_TRACE = 14  # hexadecimal digits of a trace id that are random (W3C Trace Context Level 2, 56 bits)


def is_kept(record: Record, share: float, chance: float) -> bool:
    """Return whether a record is kept if *share* of the unremarkable ones are.

    All records of errors, rejections and responses that were cut off are kept, whatever *share* is.
    The others are chosen by the trace id, as samplers of traces do it, or else by the request id:
    all gateways and services with the same share keep the same requests.

    :param share: 0 to 1.
    :param chance: A random number in [0, 1), for requests without an id.
    """
    code = status_of(record.status)
    if code >= "400" or not code or record.reason or record.error or record.aborted:
        return True
    if record.trace_id is not None:
        try:
            return int(record.trace_id[-_TRACE:], 16) >= (1 - share) * float(1 << 4 * _TRACE)
        except ValueError:
            pass
    if record.request_id is not None:
        return crc32(record.request_id.encode("utf-8", "replace")) < share * float(1 << 32)
    return chance < share


def slow_fields(record: Record) -> dict[str, object]:
    """Return what the log has of a slow request; *record* has its environ."""
    environ = record.environ or {}
    waited = environ.get(UPSTREAM_SECONDS)
    gateway = None if waited is None else round(max(0.0, record.duration - waited), 6)
    return {
        "event": "slow",
        "method": record.method[:32],
        "path": one_line(path_of(record)),
        "client": one_line(record.client),
        "status": status_of(record.status) or None,
        "duration": round(record.duration, 6),
        "upstream": None if waited is None else round(waited, 6),
        "gateway": gateway,
        "attempts": environ.get(ATTEMPTS),
        "route": record.route,
        "service": record.service,
        "instance": record.instance,
        "request_id": record.request_id,
        "trace_id": record.trace_id,
    }


def slow_text(fields: dict[str, object], limit: float) -> str:
    """Return the line of a slow request, with where its time went.

    :param fields: Those of :func:`slow_fields`.
    :param limit: The seconds after which a request is slow.
    """
    text = (
        f"{fields['method']!r} {fields['path']} of {fields['client']} took"
        f" {fields['duration']:.3f} s, more than {limit:g} s"
    )
    if fields["upstream"] is not None:
        attempts = fields["attempts"] or 1
        text += (
            f": {fields['upstream']:.3f} s for {fields['service']} in {attempts} "
            f"attempt{'s' if attempts != 1 else ''}, {fields['gateway']:.3f} s in the gateway, "
            "the client and the body included"
        )
    known = [
        f"{name} {one_line(fields[key])}"
        for name, key in (
            ("instance", "instance"),
            ("route", "route"),
            ("request", "request_id"),
            ("trace", "trace_id"),
        )
        if fields[key]
    ]
    return f"{text} ({', '.join(known)})" if known else text


def is_tunnel(record: Record) -> bool:
    """Return whether a record is that of a WebSocket, whose duration is no response time."""
    return record.status[:3] == "101" or TUNNELLED in (record.environ or {})
