"""Counts what authenticators decide: one outcome for each request, whichever were asked.

An authenticator passes the *refuse* that it was given through :meth:`Outcomes.counting`, as every
rejection of it goes there, and calls :meth:`Outcomes.accepted` or :meth:`Outcomes.anonymous` where
it lets a request pass. Within an AnyOf or an AllOf the outcome is not counted but left in
``environ``, for :func:`settled` to count the one that decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.challenge import CredentialsMissing
from wsgigate.http.problem import Problem, Refuse
from wsgigate.http.wsgi import ATTEMPT, VERIFYING
from wsgigate.telemetry.metrics import Counter, CounterSeries

__all__ = ["Outcomes", "settled", "taken"]

AUTHENTICATION = Counter(
    "wsgigate_authentication",
    "Requests by scheme and result: accepted, rejected, anonymous (no credential, and none "
    "required), or unavailable (the credential could not be checked).",
    ("scheme", "result", "reason"),
)

_OUTCOME = "wsgigate.authentication"

_REASONS = {
    400: "malformed",
    401: "invalid",
    403: "forbidden",
    408: "body",
    409: "replayed",
    413: "body",
    429: "throttled",
}


def reason_of(problem: Problem) -> tuple[str, str]:
    """Return the result and the reason, each one of a few words, of a rejection by *problem*."""
    if isinstance(problem, CredentialsMissing):
        return "rejected", "missing"
    if problem.status >= 500:
        return "unavailable", "unavailable"
    return "rejected", _REASONS.get(problem.status, "other")


class Outcomes:
    """Counts the outcomes of one authenticator.

    :param scheme: How it authenticates, such as ``bearer``.
    """

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._accepted = AUTHENTICATION.labels(scheme, "accepted", "")

    def counting(self, refuse: Refuse) -> Refuse:
        """Return a function that does what *refuse* does; the responses count a rejection."""

        def counted(problem: Problem) -> WSGIApplication:
            app, labels = refuse(problem), (self._scheme, *reason_of(problem))

            def respond(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
                series = AUTHENTICATION.labels(*labels)
                if ATTEMPT in environ:
                    environ[_OUTCOME] = series
                else:
                    series.add()
                return app(environ, start_response)

            return respond

        return counted

    def accepted(self, environ: WSGIEnvironment) -> None:
        """Count a request whose credential is valid."""
        if ATTEMPT in environ or VERIFYING in environ:
            environ[_OUTCOME] = self._accepted
        else:
            self._accepted.add()

    def anonymous(self, environ: WSGIEnvironment) -> None:
        """Count a request that passes without a credential."""
        environ[_OUTCOME] = AUTHENTICATION.labels(self._scheme, "anonymous", "")
        settled(environ, taken(environ))


def taken(environ: WSGIEnvironment) -> CounterSeries | None:
    """Remove and return the outcome that an authenticator has left, if any."""
    outcome: CounterSeries | None = environ.pop(_OUTCOME, None)
    return outcome


def settled(environ: WSGIEnvironment, outcome: CounterSeries | None) -> None:
    """Count the outcome that decided, unless authenticators around these decide still."""
    if outcome is None:
        return
    if ATTEMPT in environ or VERIFYING in environ:
        environ[_OUTCOME] = outcome
    else:
        outcome.add()
