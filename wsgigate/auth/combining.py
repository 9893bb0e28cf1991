"""Authenticators side by side: how they are made, and the one response if all reject a request.

An authenticator that is combined with others is a middleware with two habits. It passes each
rejection to the *refuse* that it was made with, when it is called and before it starts a response
(a generator decides too late); and it passes a
:class:`~wsgigate.auth.challenge.CredentialsMissing` if the request has no credential for it, and
another problem if the credential is invalid. An authenticator that reads the body leaves one in
``environ["wsgi.input"]`` that can be read from its beginning.

It may have a method ``hide``, called with ``environ``: it removes what no app behind it gets from
a client, such as the credential. That is how this is removed from a request that another
authenticator accepted. What the gateway has set (``environ["wsgigate.set_fields"]``) stays.

It may have a method ``starting``, called with ``environ`` and ``start_response``: it returns the
``start_response`` of the app behind it, whose response may not change the credential, such as the
cookie of a session. That, too, is called if another authenticator accepted the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.challenge import CredentialsMissing
from wsgigate.http.problem import Problem, Refuse
from wsgigate.http.wsgi import SET_FIELDS

__all__ = [
    "AuthenticatorFactory",
    "Hiding",
    "decisive",
    "is_final",
    "joined_reasons",
    "made_of",
    "merged",
]

AuthenticatorFactory = Callable[..., WSGIApplication]
"""Called with the app and ``refuse``: an authenticator's class with ``functools.partial``."""

_CHALLENGE, _NONCE = "WWW-Authenticate", "DPoP-Nonce"


def made_of(
    of: Sequence[AuthenticatorFactory], index: int, app: WSGIApplication, refuse: Refuse
) -> Any:
    """Return the authenticator that the factory at *index* makes around *app*.

    :raises ValueError: It cannot be made; the message begins with its place, ``of[0]``.
    """
    place, factory = f"of[{index}]", of[index]
    if not callable(factory):
        raise ValueError(  # without the value, which may be or contain a secret
            f"{place}: expected a factory such as partial(Authenticator, ...), "
            f"not {type(factory).__name__}"
        )
    try:
        made = factory(app, refuse=refuse)
    except ValueError as error:
        text = str(error)
        raise ValueError(f"{place}{'.' if _KEYED.match(text) else ': '}{text}") from error
    except TypeError as error:
        raise ValueError(
            f"{place}: a factory is called with the app and refuse=, a function that turns a "
            f"Problem into the response: {error}"
        ) from error
    if not callable(made):
        raise ValueError(f"{place} returned no WSGI application, but {type(made).__name__}")
    return made


class Hiding:
    """What several authenticators keep from the app behind them, by ``hide`` and ``starting``."""

    def __init__(self, authenticators: Iterable[object]) -> None:
        made = list(authenticators)
        self._hide: list[Any] = [each.hide for each in made if hasattr(each, "hide")]
        self._starting: list[Any] = [each.starting for each in made if hasattr(each, "starting")]
        self.guards_routes = any(getattr(each, "guards_routes", False) is True for each in made)
        """Whether one of them cannot stand around the app whose session it hides."""

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove what they hide from *environ*, except for what the gateway has set."""
        kept = {key: environ[key] for key in environ.get(SET_FIELDS, ()) if key in environ}
        for hide in self._hide:
            hide(environ)
        environ.update(kept)

    def starting(self, environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
        """Return a ``start_response`` by which the app cannot change any of the credentials."""
        for starting in self._starting:
            start_response = starting(environ, start_response)
        return start_response


_KEYED = re.compile(r"\w+(?:\[\d+\])?(?:\.\w+(?:\[\d+\])?)*: ")


def is_final(problem: Problem) -> bool:
    """Return whether a rejection is about the request, so that no other authenticator is asked.

    Such a one is a malformed or too large body. 401, 403 and 429 are about the credential, and a
    5xx says that it could not be checked.
    """
    return problem.status not in (401, 403, 407, 429) and problem.status < 500


def merged(refusals: Sequence[Problem]) -> Problem:
    """Return the one problem of a request that every authenticator has rejected.

    A missing credential never hides what is wrong with the one that was sent. Of several wrong
    ones, the most useful for the client is reported: first one that could not be checked (5xx),
    then one that has to wait (429), one that does not suffice (403), one whose proof lacks a nonce,
    and an invalid one (401). A 401 has the challenges of all authenticators, and the fields by
    which they name what is missing (``Accept-Signature``, ``DPoP-Nonce``).

    :param refusals: One of each authenticator, in their order; at least one.
    """
    found = refusals[decisive(refusals)]
    if found.status != 401 or len(refusals) == 1:
        return found
    others = [each for each in refusals if each.status == 401 and each is not found]
    challenges = _distinct(
        value
        for problem in refusals
        if problem.status == 401
        for name, value in problem.headers
        if name == _CHALLENGE
    )
    headers = tuple((_CHALLENGE, value) for value in challenges)
    for problem in (found, *others):
        there = {name for name, _ in headers}
        headers += tuple(field for field in problem.headers if field[0] not in there)
    if isinstance(found, CredentialsMissing):
        return CredentialsMissing(401, "Authentication required!", headers=headers)
    return Problem(
        found.status, found.detail, found.type, found.title, found.extensions, headers=headers
    )


def decisive(refusals: Sequence[Problem]) -> int:
    """Return the place of the rejection that :func:`merged` reports."""
    return min(range(len(refusals)), key=lambda place: _rank(refusals[place]))


def _rank(problem: Problem) -> int:
    if isinstance(problem, CredentialsMissing):
        return 6 if problem.status == 401 else 7
    if any(name == _NONCE for name, _ in problem.headers):  # the token itself is valid
        return 3
    return 0 if problem.status >= 500 else {429: 1, 403: 2}.get(problem.status, 4)


def _distinct(challenges: Iterable[str]) -> list[str]:
    """Return each challenge once, and none of which another one says more: with an error."""
    found: list[str] = []
    for challenge in challenges:
        if not any(each == challenge or each.startswith(challenge + ",") for each in found):
            found = [each for each in found if not challenge.startswith(each + ",")]
            found.append(challenge)
    return found


_LONGEST_REASON = 160


def joined_reasons(reasons: Iterable[str | None]) -> str:
    """Return the reasons of all rejections as one, each of a bounded length."""
    given = [reason for reason in reasons if reason]
    return "; ".join(
        each if len(each) <= _LONGEST_REASON else each[:_LONGEST_REASON] + "..." for each in given
    )
