"""The check of a request against the rules of authorization, and the response if they forbid it.

The :class:`~wsgigate.Authorizer` and the decorators for views of Flask and Django share it, so a
rule means the same around an app and on a view.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.authorization import Authorization, PolicyFailed, RequestFacts
from wsgigate.auth.challenge import bearer_challenge, check_realm, check_resource_metadata
from wsgigate.auth.identity import Identity
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.target import BadTarget, target_of
from wsgigate.http.wsgi import IDENTITY, PARAMS, ROUTE, RULE, peer
from wsgigate.runtime.clocks import wall
from wsgigate.runtime.logs import ThrottledLog

__all__ = ["AccessCheck"]

_log = logging.getLogger("wsgigate.authorizer")


class AccessCheck:
    """Checks whether the verified caller of a request satisfies the rules.

    :param authorization: The rules.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param resource_metadata: The URL of the metadata of this resource (RFC 9728), in
        ``WWW-Authenticate``.
    :param clock: Returns the time in seconds, for the interval between log records.
    :raises ValueError: *realm* or *resource_metadata* is invalid; the message names it.
    """

    def __init__(
        self,
        authorization: Authorization,
        *,
        realm: str = "api",
        resource_metadata: str | None = None,
        clock: Callable[[], float] = wall,
    ) -> None:
        check_realm(realm)
        check_resource_metadata(resource_metadata)
        self._authorization = authorization
        self._challenge = partial(bearer_challenge, realm, resource_metadata=resource_metadata)
        self._failures = ThrottledLog(_log.error, "", clock)  # only counts, for the traceback

    def refusal(self, environ: WSGIEnvironment) -> Refusal | None:
        """Return why the request is rejected, with the response; None if it is allowed.

        A request without a verified caller gets a 401, one that a rule forbids a 403, one whose
        policy failed a 500. The rule that decided is in ``environ["wsgigate.rule"]``.
        """
        environ.pop(RULE, None)
        identity = environ.get(IDENTITY)
        if not isinstance(identity, Identity):
            return self._anonymous(environ)
        try:
            decision = self._authorization.decide(identity, environ, _facts)
        except PolicyFailed as error:
            return self._failed(error, environ)
        except BadTarget as error:
            return Refusal(Problem(400, "Malformed request target."), str(error))
        environ[RULE] = decision.rule
        if decision.allowed:
            return None
        headers: tuple[tuple[str, str], ...] = ()
        detail = "You are not allowed to do this."
        if decision.scopes:
            detail = "Insufficient scope."
            scheme = _CHALLENGED.get(identity.scheme)
            if scheme is not None:
                challenge = partial(self._challenge, scheme=scheme)
                headers = (challenge(error="insufficient_scope", scope=decision.scopes),)
        problem = Problem(403, detail, headers=headers)
        return Refusal(problem, f"{decision.rule}: {decision.reason}")

    def _anonymous(self, environ: WSGIEnvironment) -> Refusal:
        challenge = self._challenge(scope=self._authorization.required_scopes(environ))
        problem = Problem(401, "Authentication required!", headers=(challenge,))
        return Refusal(problem, "no verified caller")

    def _failed(self, error: PolicyFailed, environ: WSGIEnvironment) -> Refusal:
        environ[RULE] = error.rule
        count = self._failures.due()
        if count:
            _log.error(
                "%s decisions failed since the last such message: %s", count, error, exc_info=error
            )
        return Refusal(Problem(500, "The request could not be authorized."), str(error))


_CHALLENGED = {"bearer": "Bearer", "dpop": "DPoP", "introspection": "Bearer"}
"""The schemes of ``Authorization`` by those of the identities that an access token makes."""


def _facts(environ: WSGIEnvironment) -> RequestFacts:
    """Return the facts about a request.

    :raises BadTarget: The request target is ambiguous.
    """
    target = target_of(environ)
    return RequestFacts(
        method=environ["REQUEST_METHOD"].upper(),
        path=target.path,
        query=target.query,
        host=target.host,
        route=environ.get(ROUTE),
        params=environ.get(PARAMS) or {},
        client=peer(environ),
        environ=environ,
    )
