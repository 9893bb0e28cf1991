"""The audit log: one record for each administrative change, and for each that was denied.

An operation makes its change in a context::

    with audited("maintenance.on", scope, by=requester(request.environ)) as change:
        change.before = notices()
        switch.on(scope)
        change.after = notices()

The logger ``wsgigate.audit`` receives them at WARNING. A record says who (the role of the token and
the client address, or the user of the command line), what (an operation such as
``maintenance.on``, and its target), the state before and after, and the result. Its attribute
``wsgigate`` has these as a mapping, for handlers that store them.

A registration is no administrative change: services send them all the time, and the registry's own
log has them. That an instance is removed at the registry from another address than its own is one.
"""

from __future__ import annotations

import json
import logging
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import SysLogHandler
from typing import Any, Literal, NamedTuple
from wsgiref.types import WSGIEnvironment

from wsgigate.http.problem import Refusal
from wsgigate.http.wsgi import REQUEST_ID, address_key, peer
from wsgigate.runtime.logs import EventLog, one_line
from wsgigate.telemetry.redaction import masked

__all__ = [
    "Actor",
    "AuditedChange",
    "Result",
    "audit",
    "audit_denied",
    "audited",
    "command_line",
    "denied_log",
    "requester",
]

_log = logging.getLogger("wsgigate.audit")

Result = Literal["done", "failed", "denied"]
"""``failed``: it is unknown whether the change took effect, or it did not."""

_LONGEST = 1500
"""Maximum characters of a state in the text of a record."""


class Actor(NamedTuple):
    """Who changes something.

    :ivar role: What vouches for the actor, such as ``admin token`` or ``command line``.
    :ivar client: The client address, or the user of a command.
    :ivar request_id: The request id, if it is a request.
    """

    role: str
    client: str = ""
    request_id: str = ""

    def __str__(self) -> str:
        text = self.role
        if self.client:
            text += f" from {one_line(self.client)}"
        return f"{text} (request {one_line(self.request_id)})" if self.request_id else text


def requester(environ: WSGIEnvironment, role: str = "admin token") -> Actor:
    """Return the actor of a request, whose token has been verified.

    :param role: The role of its token.
    """
    return Actor(role, peer(environ), environ.get(REQUEST_ID) or "")


def command_line() -> Actor:
    """Return the user that runs this command; with ``sudo`` also the one that called it.

    The audit log of a command goes to the machine's syslog, if it has one and the application has
    set up no handler: not to the terminal of the user, whose output is not kept.
    """
    if not _log.hasHandlers():
        _log.addHandler(_syslog())
    number = os.getuid()
    try:
        user = pwd.getpwuid(number).pw_name
    except KeyError:  # a container may run as a user that it does not know
        user = str(number)
    caller = os.environ.get("SUDO_USER", "")
    return Actor("command line", f"user {user}" + (f" (sudo by {caller})" if caller else ""))


@dataclass
class AuditedChange:
    """A change in progress: an operation sets what it learns.

    :ivar target: What is changed.
    :ivar before: The state before, as a document of JSON.
    :ivar after: The state after.
    :ivar failed: Why the change has failed, or is known to this worker only; empty if it has not.
    """

    target: str
    before: object = None
    after: object = None
    failed: str = ""


@contextmanager
def audited(operation: str, target: str, *, by: Actor) -> Iterator[AuditedChange]:
    """Log a change when the block has ended; ``failed`` if an exception ends it.

    A ``ValueError`` or a Refusal is a request that was invalid: nothing was changed, nothing is
    logged.

    :param operation: See :func:`audit`.
    """
    change = AuditedChange(target)
    try:
        yield change
    except (ValueError, Refusal):
        raise
    except BaseException as error:
        _audit_change(operation, change, by, f"{type(error).__name__}: {error}")
        raise
    _audit_change(operation, change, by, change.failed)


def _audit_change(operation: str, change: AuditedChange, by: Actor, failure: str) -> None:
    audit(
        operation,
        change.target,
        by=by,
        before=change.before,
        after=change.after,
        result="failed" if failure else "done",
        reason=failure,
    )


def _syslog() -> logging.Handler:
    for path in ("/dev/log", "/var/run/syslog"):
        if os.path.exists(path):
            try:
                handler = SysLogHandler(path, SysLogHandler.LOG_AUTHPRIV)
            except OSError:
                continue
            handler.setFormatter(logging.Formatter(f"wsgigate[{os.getpid()}]: %(message)s"))
            return handler
    return logging.NullHandler()


def audit(
    operation: str,
    target: str,
    *,
    by: Actor,
    before: object = None,
    after: object = None,
    result: Result = "done",
    reason: str = "",
) -> None:
    """Log an administrative change, after it was made or has failed.

    :param operation: The object and the verb: ``maintenance.on``, ``circuit.reset``.
    :param target: What is changed: the name of a service, of a key. Never a secret.
    :param by: Who changes it: :func:`requester` or :func:`command_line`.
    :param before: The state before the change, if it is known: a document of JSON.
    :param after: The state after it. Members with names such as ``token`` are masked in both.
    :param reason: Why it was denied or has failed.
    """
    fields: dict[str, Any] = {
        "event": "audit",
        "operation": operation,
        "target": one_line(target),
        "role": by.role,
        "client": one_line(by.client) or None,
        "request_id": one_line(by.request_id) or None,
        "from": masked(before),
        "to": masked(after),
        "result": result,
    }
    if reason:
        fields["reason"] = one_line(reason)
    states = ""
    if before is not None or after is not None:
        states = f", from {_text(fields['from'])} to {_text(fields['to'])}"
    _log.warning(
        "%s of %s by %s: %s%s%s",
        operation,
        fields["target"],
        by,
        result,
        states,
        f": {fields['reason']}" if reason else "",
        extra={"wsgigate": fields},
    )


def _text(state: object) -> str:
    text = json.dumps(state, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _write_denied(fields: dict[str, Any], held: int) -> None:
    _log.warning(
        "%s of %s by %s: denied: %s%s",
        fields["operation"],
        fields["target"],
        Actor(fields["role"], fields["client"], fields["request_id"] or ""),
        fields["reason"],
        f" ({held} more were denied since the last such line)" if held else "",
        extra={"wsgigate": {**fields, "held_back": held} if held else fields},
    )


def _denied_over(fields: dict[str, Any], total: int, lasted: float) -> None:
    _log.warning(
        "No request from %s is denied any more: %d were in %.0f s",
        fields["client"],
        total,
        lasted,
        extra={"wsgigate": {**fields, "event": "audit.denied.over", "count": total}},
    )


denied_log = EventLog(_write_denied, _denied_over, most=64)
"""The denied attempts by client address."""


def audit_denied(environ: WSGIEnvironment, reason: str, *, role: str = "no valid token") -> None:
    """Log that a request for an administrative change was denied.

    A client that guesses tokens has one record a minute, with the number of its denied requests, so
    that it cannot fill a disk.

    :param reason: Why, such as ``the admin token is missing or wrong``.
    """
    client = one_line(peer(environ))
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    denied_log.add(
        address_key(client),
        {
            "event": "audit",
            "operation": one_line(environ.get("REQUEST_METHOD", "")),
            "target": one_line(path),
            "role": role,
            "client": client,
            "request_id": one_line(environ.get(REQUEST_ID) or "") or None,
            "from": None,
            "to": None,
            "result": "denied",
            "reason": one_line(reason),
        },
    )
