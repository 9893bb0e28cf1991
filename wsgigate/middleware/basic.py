"""HTTP Basic authentication (RFC 7617), with a file of users and argon2 hashes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import Annotated, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.bearer import from_another_site
from wsgigate.auth.challenge import CredentialsMissing, check_realm
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.outcomes import Outcomes
from wsgigate.auth.passwords import (
    BadCredentials,
    Busy,
    Credentials,
    Passwords,
    check_installed,
    credentials_of,
)
from wsgigate.auth.throttle import FailureCounter, GuessRules
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import client_address, is_preflight
from wsgigate.rules.arguments import Range, Seconds, checked
from wsgigate.runtime.clocks import steady
from wsgigate.runtime.files import UnreadableFile
from wsgigate.store import Store
from wsgigate.store.open import Namespaced, OpenedStore

__all__ = ["BasicAuthenticator"]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_LONGEST_ADDRESS = 64


@checked
class BasicAuthenticator:
    """Authentication: allow requests with a user's name and password only (HTTP Basic).

    The caller is in ``environ["wsgigate.identity"]``, with the user as its ``subject``.

    Verifying a password takes a fifth of a second of processor time and 64 MiB of memory, so few
    are verified at a time in each worker, and further requests get a 503 rather than wait for long.
    A valid credential is remembered, and costs microseconds. An address with too many wrong ones
    gets a 429 before anything is verified.

    It requires argon2-cffi: ``pip install "wsgigate[basic]"``.

    :param app: The WSGI application to protect.
    :param users_file: A file with lines ``user:hash``, as of htpasswd, with argon2 hashes;
        ``wsgigate password`` makes a line. It is read again when it changes.
    :param store: Where wrong passwords are counted: a store, or its URL. Default: a directory of
        this machine that all workers of this app share and no other app does.
    :param namespace: Separates apps that share a store. Default: derived from the file and the name
        of the code of *app*.
    :param required: Whether a request without credentials is rejected. Invalid ones always are.
    :param exempt: Requests that pass unchecked and without an identity: a function of ``environ``,
        or a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a
        :class:`Limiter`.
    :param preflights: Whether CORS preflight requests require credentials, which browsers never
        send. Default: they pass without an identity.
    :param cross_site: Whether a page of another site may send requests that change something with
        the credentials that a browser has cached: methods other than GET, HEAD and OPTIONS. By
        default they get a 403 (cross-site request forgery).
    :param realm: The name of the protected area, which browsers show.
    :param hide_credentials: Whether ``Authorization`` is removed before *app* is called.
    :param most_hashes: Maximum number of passwords that are verified at a time in each worker.
    :param remember: Seconds for which a verified credential is remembered.
    :param max_failures: Number of wrong credentials per minute after which a client address is
        rejected, over all workers, 1 to 64.
    :param clock: Returns monotonic seconds.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid, or argon2-cffi is not installed.
    """

    def __init__(
        self,
        app: WSGIApplication,
        users_file: str,
        *,
        store: Store | str | None = None,
        namespace: str | None = None,
        required: bool = True,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        cross_site: bool = False,
        realm: str = "api",
        hide_credentials: bool = True,
        most_hashes: Annotated[int, Range(1, 64)] = 2,
        remember: Annotated[Seconds, Range(0)] = 60.0,
        max_failures: Annotated[int, Range(1, 64)] = 10,
        clock: Callable[[], float] = steady,
        refuse: Refuse = answer_with,
    ) -> None:
        if not isinstance(users_file, str) or not users_file:
            raise ValueError(f"users_file: the name of a file, not {users_file!r}")
        check_realm(realm)
        if isinstance(most_hashes, bool) or not 1 <= most_hashes <= 64:
            raise ValueError(f"most_hashes: 1 to 64, not {most_hashes!r}")
        if not 0 <= remember <= 86_400:
            raise ValueError(f"remember: 0 to 86400 seconds, not {remember!r}")
        try:
            rules = GuessRules(most=max_failures)
        except ValueError as error:
            raise ValueError(f"max_failures: {error}") from None
        check_installed()
        self.app = app
        self._outcomes = Outcomes("basic")
        refuse = self._outcomes.counting(refuse)
        self._passwords = Passwords(users_file, most=most_hashes, remember=remember, clock=clock)
        self._opened = OpenedStore(store, app, namespace=namespace)
        self._failures = FailureCounter(
            Namespaced(self._opened), prefix="basic/", rules=rules, clock=clock
        )
        self._required = required
        self._exempt = exempt_of(exempt)
        self._passes_preflights = required and not preflights
        self._cross_site = cross_site
        self._hides = hide_credentials
        self._identities: dict[str, Identity] = {}
        self._refuse = refuse
        challenge = ("WWW-Authenticate", f'Basic realm="{realm}", charset="UTF-8"')

        def answer(status: int, detail: str, *headers: tuple[str, str]) -> WSGIApplication:
            return refuse(Problem(status, detail, headers=headers))

        self._missing = refuse(
            CredentialsMissing(401, "User name and password required!", headers=(challenge,))
        )
        self._invalid = answer(401, "Wrong user name or password!", challenge)
        self._forgery = answer(403, "Requests from other sites are not allowed.")
        self._busy = answer(503, "Too many logins at the moment.", ("Retry-After", "1"))
        self._unavailable = answer(
            503, "Users cannot be checked at the moment.", ("Retry-After", "5")
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if IDENTITY in environ and (self._required or not isinstance(environ[IDENTITY], Identity)):
            del environ[IDENTITY]
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        value: str = environ.get("HTTP_AUTHORIZATION", "")
        try:
            given = credentials_of(value) if value else None
        except BadCredentials as error:
            return self._rejected(self._invalid, str(error), environ, start_response)
        if given is None:
            if not self._required or (self._passes_preflights and is_preflight(environ)):
                self._outcomes.anonymous(environ)
                return self.app(environ, start_response)
            return self._rejected(self._missing, "no credentials", environ, start_response)
        refusal = self._refusal(given, environ)
        if refusal is not None:
            return self._rejected(*refusal, environ, start_response)
        if self._hides:
            del environ["HTTP_AUTHORIZATION"]
        identity = self._identities.get(given.user)
        if identity is None:  # as many as there are users in the file
            identity = Identity(given.user, "basic", claims={"sub": given.user})
            self._identities[given.user] = identity
        environ[IDENTITY] = identity
        self._outcomes.accepted(environ)
        return self.app(environ, start_response)

    def _refusal(
        self, given: Credentials, environ: WSGIEnvironment
    ) -> tuple[WSGIApplication, str] | None:
        """Return the response to a request with these credentials, and why; None to let it pass."""
        try:
            address = client_address(environ)[:_LONGEST_ADDRESS]
            valid = self._passwords.remembered(given, address)
            if valid is None:
                wait = self._failures.wait(address)
                # Also for a valid credential, or its status would tell a correct guess from the
                # others; except for one that this very address has used before.
                if wait > 0 and not self._passwords.seen(given, address):
                    return self._too_many(ceil(wait)), "too many wrong passwords from this address"
                valid = self._passwords.verify(given, address)
                if not valid:
                    # the mark is random: nothing that depends on a password is stored
                    self._failures.add(address, secrets.token_bytes(4))
        except Busy:
            return self._busy, "too many passwords are being verified"
        except UnreadableFile as error:
            return self._unavailable, str(error)
        if not valid:
            return self._invalid, "the user is unknown or the password is wrong"
        if (
            not self._cross_site
            and environ["REQUEST_METHOD"] not in _SAFE
            and from_another_site(environ)
        ):
            return self._forgery, "a page of another site sent it with the browser's credentials"
        return None

    def _too_many(self, seconds: int) -> WSGIApplication:
        return self._refuse(
            Problem(
                429,
                "Too many wrong passwords.",
                headers=(("Retry-After", str(seconds)),),
                extensions={"retryAfter": seconds},
            )
        )

    def _rejected(
        self,
        response: WSGIApplication,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        refused(environ, "BasicAuthenticator", reason)
        return response(environ, start_response)

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove what no app behind it gets from a client."""
        scheme = environ.get("HTTP_AUTHORIZATION", "").partition(" ")[0].lower()
        if self._hides and scheme == "basic":
            del environ["HTTP_AUTHORIZATION"]

    def close(self) -> None:
        """Close the store, unless it was passed in as an object."""
        self._opened.close()
