"""Several authenticators at once: a request passes that all of them accept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.combining import AuthenticatorFactory, Hiding, made_of
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.outcomes import settled, taken
from wsgigate.http.problem import Refuse, answer_with
from wsgigate.http.wsgi import CLAIMS, IDENTITIES, VERIFYING
from wsgigate.rules.arguments import Range, checked
from wsgigate.telemetry.metrics import CounterSeries

__all__ = ["AllOf"]


class Verifying:
    """The callers that the authenticators of one AllOf have verified so far.

    :ivar outer: Those of an AllOf around this one.
    :ivar found: For each authenticator its caller, the claims of a token, and all its callers.
    :ivar outcomes: What each of them would have counted.
    """

    __slots__ = ("found", "outcomes", "outer")

    def __init__(self, outer: Verifying | None) -> None:
        self.outer = outer
        self.found: list[tuple[Identity | None, Any, tuple[Identity, ...]]] = []
        self.outcomes: list[CounterSeries | None] = []


class Noting:
    """The app behind one authenticator: it notes the caller, and calls *app*.

    A default store belongs to the innermost app, which it finds by the attribute.
    """

    __slots__ = ("app",)

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        identity, claims = environ.pop(IDENTITY, None), environ.pop(CLAIMS, None)
        several = environ.pop(IDENTITIES, None) or (() if identity is None else (identity,))
        verifying: Verifying = environ[VERIFYING]
        verifying.found.append((identity, claims, several))
        verifying.outcomes.append(taken(environ))
        return self.app(environ, start_response)


@checked
class AllOf:
    """Authentication: allow requests that each of several authenticators accepts.

    The authenticators are asked in their order, and the first rejection is the response. The caller
    (``environ["wsgigate.identity"]``) is that of the *primary* authenticator; the callers of all
    are in ``environ["wsgigate.identities"]``, in order.

    If an authenticator lets a request pass without an identity, as it is exempt, a preflight or as
    *required* is false, the others must accept it still. Without an identity of the primary one,
    the caller is the first of the others.

    :param app: The WSGI application to protect.
    :param of: The authenticators: functions that return the authenticator around an app when they
        are called with the app and ``refuse``, such as ``partial(Authenticator, ...)``.
    :param primary: The place of the authenticator in *of* that decides who the caller is, from 0.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        of: Annotated[Sequence[AuthenticatorFactory], Range(1)],
        *,
        primary: Annotated[int, Range(0)] = 0,
        refuse: Refuse = answer_with,
    ) -> None:
        if not isinstance(of, (list, tuple)) or not of:
            # not shown: it may contain a secret
            raise ValueError(f"of: expected a list of authenticators, not {type(of).__name__}")
        if isinstance(primary, bool) or not 0 <= primary < len(of):
            raise ValueError(
                f"primary: the place of an authenticator in of, 0 to {len(of) - 1}, not {primary!r}"
            )
        self.app = app
        self._primary = primary
        self._authenticators: list[Any] = []
        inner: WSGIApplication = self._passed
        for index in reversed(range(len(of))):
            inner = made_of(of, index, Noting(inner), refuse)
            self._authenticators.insert(0, inner)
        self._first = inner
        self._hiding = Hiding(self._authenticators)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.pop(IDENTITY, None)
        environ.pop(IDENTITIES, None)
        environ.pop(CLAIMS, None)
        environ[VERIFYING] = Verifying(environ.get(VERIFYING))
        return self._first(environ, start_response)

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
        """Call the app for a request that every authenticator has let pass."""
        verifying: Verifying = environ.pop(VERIFYING)
        if verifying.outer is not None:
            environ[VERIFYING] = verifying.outer
        found = verifying.found
        everyone = tuple(each for _, _, several in found for each in several)
        deciding = self._primary
        if everyone:
            if found[deciding][0] is None:
                deciding = next(at for at, (who, *_) in enumerate(found) if who is not None)
            identity, claims, _ = found[deciding]
            environ[IDENTITY] = identity
            environ[IDENTITIES] = everyone
            if claims is not None:
                environ[CLAIMS] = claims
        settled(environ, verifying.outcomes[deciding])
        return self.app(environ, start_response)
