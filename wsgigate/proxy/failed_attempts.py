"""The log of failed attempts that a retry, or another instance, hides from the client.

The gateway responds as if nothing had failed, so neither the access log nor the error log shows an
instance that is dead while others answer. It is logged here: the first failed attempt at each
instance of a service, once a minute the number of further ones, and the first response after one
that was logged.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple
from wsgiref.types import WSGIEnvironment

from wsgigate.http.problem import event_fields, ids_text
from wsgigate.runtime.logs import EventLog

__all__ = ["FailedAttempts"]

_log = logging.getLogger("wsgigate.pool")


class _Failure(NamedTuple):
    ids: str
    fields: dict[str, Any]


class FailedAttempts:
    """The failed attempts at the instances of a service that another attempt has followed.

    :param service: The name of the service.
    :ivar failing: The addresses whose last failure was logged and that have not answered since.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self.failing: set[str] = set()
        self.log = EventLog(self._write, self._write_end)
        """The failures by instance."""

    def add(self, environ: WSGIEnvironment, address: str, reason: str) -> None:
        """Log a failed attempt, or count it if one at the same instance was just logged.

        :param address: The address of the instance.
        :param reason: Why it failed, for the log only.
        """
        fields = event_fields("attempt.failed", environ, "Forwarder", reason) | {
            "service": self._service,
            "instance": address,
        }
        self.log.add(address, _Failure(ids_text(environ), fields))

    def answered(self, address: str) -> None:
        """Log that an instance has answered, if it is one of :attr:`failing`."""
        try:
            self.failing.remove(address)
        except KeyError:  # not failing, or another thread logs it
            return
        fields = {"event": "attempt.answered", "service": self._service, "instance": address}
        _log.warning(
            "Instance %s of %r answers again", address, self._service, extra={"wsgigate": fields}
        )

    def _write(self, failure: _Failure, held: int) -> None:
        # Failing only where the failure is logged: an instance that fails and answers by turns has
        # no more lines for its responses than for its failures.
        fields = failure.fields
        self.failing.add(fields["instance"])
        _log.warning(
            "An attempt at instance %s of %r failed, and the request was sent again: %s%s%s",
            fields["instance"],
            self._service,
            fields["reason"],
            f" ({held} more since the last warning)" if held else "",
            failure.ids,
            extra={"wsgigate": {**fields, "held_back": held} if held else fields},
        )

    def _write_end(self, failure: _Failure, total: int, lasted: float) -> None:
        fields = failure.fields
        _log.warning(
            "No attempt at instance %s of %r has failed for a minute: %d did in %.0f s; the last:"
            " %s",
            *(fields["instance"], self._service, total, lasted, fields["reason"]),
            extra={"wsgigate": {**fields, "event": "attempt.failed.over", "count": total}},
        )
