"""Alternatives of authentication: a request passes that one of several authenticators accepts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.challenge import CredentialsMissing
from wsgigate.auth.combining import (
    AuthenticatorFactory,
    Hiding,
    decisive,
    is_final,
    joined_reasons,
    made_of,
    merged,
)
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.outcomes import settled, taken
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import ATTEMPT, CLAIMS, IDENTITIES, LOGGED, REASON, close_body
from wsgigate.rules.arguments import Range, checked
from wsgigate.telemetry.metrics import CounterSeries

__all__ = ["AnyOf"]

_OF_BODY = ("wsgi.input", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "wsgi.input_terminated")


class Alternatives:
    """What became of one request at the authenticators that were asked so far.

    :ivar before: ``environ`` as the request came.
    :ivar outer: The attempt of an AnyOf around this one.
    :ivar index: The place of the authenticator that is asked.
    :ivar problem: Its rejection.
    :ivar unidentified: Whether it let the request pass without an identity.
    """

    __slots__ = ("before", "index", "outer", "problem", "unidentified")

    def __init__(self, before: WSGIEnvironment, outer: Alternatives | None) -> None:
        self.before = before
        self.outer = outer
        self.index = 0
        self.problem: Problem | None = None
        self.unidentified = False


@checked
class AnyOf:
    """Authentication: allow requests that one of several authenticators accepts.

    The authenticators are asked in their order. The first that accepts the request decides who the
    caller is (``environ["wsgigate.identity"]``); each of them gets the request as it came. If all
    reject it, there is one response: a 401 with the challenges of all, or what the one credential
    of the request was rejected with. One that could not be checked (503) comes before one that has
    to wait (429), that does not suffice (403), whose proof lacks a nonce and that is invalid (401).
    The reasons of all are in ``environ["wsgigate.reason"]``.

    A rejection with another status, such as 413, is about the request itself, and the others are
    not asked. Nor are they if an authenticator responds by itself, as with the redirect to a login.

    If an authenticator lets a request pass without an identity, as it is exempt, a preflight or as
    *required* is false, the others are asked for one; without any, the request passes unless
    another credential in it is invalid.

    :param app: The WSGI application to protect.
    :param of: The authenticators: functions that return the authenticator around an app when they
        are called with the app and ``refuse``, such as ``partial(Authenticator, ...)``.
    :param anonymous: Whether a request without any credential passes, without an identity. An
        invalid credential is always rejected.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        of: Annotated[Sequence[AuthenticatorFactory], Range(1)],
        *,
        anonymous: bool = False,
        refuse: Refuse = answer_with,
    ) -> None:
        if not isinstance(of, (list, tuple)) or not of:
            # not shown: it may contain a secret
            raise ValueError(f"of: expected a list of authenticators, not {type(of).__name__}")
        self.app = app
        self._refuse = refuse
        self._anonymous = anonymous
        made = [made_of(of, index, self._passed, _recording) for index in range(len(of))]
        self._authenticators: list[Any] = made
        self._hiding = Hiding(made)
        self._hiding_others = [Hiding(each for each in made if each is not one) for one in made]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        caller, claims = environ.pop(IDENTITY, None), environ.pop(CLAIMS, None)
        callers = environ.pop(IDENTITIES, None)
        outer = environ.pop(ATTEMPT, None)
        attempt = Alternatives(environ.copy(), outer)
        refusals: list[Problem] = []
        reasons: list[str | None] = []
        outcomes: list[CounterSeries | None] = []
        anonymous: CounterSeries | None = None
        passes = self._anonymous
        for attempt.index, authenticator in enumerate(self._authenticators):
            environ[ATTEMPT], environ[LOGGED] = attempt, True  # what is rejected may yet pass
            body = authenticator(environ, start_response)
            problem, unidentified = attempt.problem, attempt.unidentified
            if problem is None and not unidentified:
                return body  # type: ignore[no-any-return]
            close_body(body)
            if problem is None:
                passes, anonymous = True, taken(environ)
            else:
                refusals.append(problem)
                reasons.append(environ.get(REASON))
                outcomes.append(taken(environ))
            attempt.problem, attempt.unidentified = None, False
            _restore(environ, attempt.before)
            if problem is not None and is_final(problem):
                return self._rejected(
                    problem, outcomes[-1], reasons[-1:], attempt, environ, start_response
                )
        if passes and all(isinstance(each, CredentialsMissing) for each in refusals):
            self._hiding.hide(environ)
            start_response = self._hiding.starting(environ, start_response)
            if isinstance(caller, Identity):  # that of an authenticator around this one
                environ[IDENTITY] = caller
                if claims is not None:
                    environ[CLAIMS] = claims
                if callers is not None:
                    environ[IDENTITIES] = callers
            if outer is not None:
                environ[ATTEMPT] = outer
            settled(environ, anonymous)
            return self.app(environ, start_response)
        outcome = outcomes[decisive(refusals)]
        return self._rejected(merged(refusals), outcome, reasons, attempt, environ, start_response)

    @property
    def guards_routes(self) -> bool:
        """Whether one of the authenticators hides a session from the app it belongs to."""
        return self._hiding.guards_routes

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove what no app behind it gets from a client."""
        self._hiding.hide(environ)

    def starting(self, environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
        """Return a ``start_response`` by which the app behind cannot change a credential."""
        return self._hiding.starting(environ, start_response)

    def close(self) -> None:
        """Close the authenticators."""
        for each in self._authenticators:
            if hasattr(each, "close"):
                each.close()

    def _passed(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the app for a request that an authenticator has let pass."""
        attempt: Alternatives = environ.pop(ATTEMPT)
        if IDENTITY not in environ:
            attempt.unidentified = True
            return ()
        if attempt.outer is not None:
            environ[ATTEMPT] = attempt.outer
        settled(environ, taken(environ))
        if LOGGED not in attempt.before:
            del environ[LOGGED]
        others = self._hiding_others[attempt.index]
        others.hide(environ)
        return self.app(environ, others.starting(environ, start_response))

    def _rejected(
        self,
        problem: Problem,
        outcome: CounterSeries | None,
        reasons: Iterable[str | None],
        attempt: Alternatives,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        if attempt.outer is not None:
            environ[ATTEMPT] = attempt.outer
        settled(environ, outcome)
        refused(environ, "AnyOf", joined_reasons(reasons))
        return self._refuse(problem)(environ, start_response)


def _recording(problem: Problem) -> WSGIApplication:
    """Return the app that an authenticator responds with: it records *problem* instead."""
    return partial(_record, problem)


def _record(
    problem: Problem, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    attempt: Alternatives = environ[ATTEMPT]
    attempt.problem = problem
    return ()


def _restore(environ: WSGIEnvironment, before: WSGIEnvironment) -> None:
    """Make *environ* what it was before an attempt, except for a body that has been read."""
    body = environ.get("wsgi.input")
    kept: WSGIEnvironment = {}
    if body is not before.get("wsgi.input"):
        kept = {key: environ[key] for key in _OF_BODY if key in environ}
        before = {key: value for key, value in before.items() if key not in _OF_BODY}
        rewind = getattr(body, "rewind", None)
        if callable(rewind):
            rewind()
    environ.clear()
    environ.update(before)
    environ.update(kept)
