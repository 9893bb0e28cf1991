"""A browser's session as the credential of requests to a service. Decisions only, without I/O.

A browser attaches a session cookie to every request by itself, whichever page caused it, and the
service behind is another program than the one that has set the cookie. Three rules follow:

- A request that changes something is allowed only from pages of the site itself; otherwise every
  service behind the session could be forged (cross-site request forgery). A WebSocket handshake
  counts as such a request: browsers send it across sites, with cookies, and let the page read.
- The service never sees the session cookie: it could act as the user everywhere else.
- The service cannot change the session: a cookie of that name, or ``Clear-Site-Data``, would log
  the user out of the application, or in as another user.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIEnvironment

from wsgigate.auth.bearer import from_another_site
from wsgigate.http.fields import cookie_name, is_token, without_cookies
from wsgigate.http.wsgi import ExcInfo, Headers, is_websocket

__all__ = ["SessionGuard"]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class SessionGuard:
    """Protects a session cookie between browsers and a service.

    :param cookies: The names of the cookies that hold the session, or that log the user in again,
        such as Flask-Login's ``remember_token``.
    :param trusted_origins: Other origins whose pages may send requests that change something, such
        as ``"https://www.example.com"``.
    :raises ValueError: A name or an origin is malformed; the message names the argument.
    """

    def __init__(self, cookies: Collection[str], trusted_origins: Sequence[str] = ()) -> None:
        if isinstance(cookies, str) or not all(map(is_token, cookies)):
            raise ValueError(f'cookies: expected names such as "session", not {cookies!r}')
        self._cookies = frozenset(cookies)
        if isinstance(trusted_origins, str):
            raise ValueError(f"trusted_origins: expected a list, not {trusted_origins!r}")
        self._trusted = frozenset(map(_origin, trusted_origins))

    @staticmethod
    def changes_something(environ: WSGIEnvironment) -> bool:
        """Return whether a request is for a WebSocket, or its method not safe (RFC 9110, 9.2.1)."""
        return environ["REQUEST_METHOD"].upper() not in _SAFE or is_websocket(environ)

    def forgery(self, environ: WSGIEnvironment) -> str:
        """Return why a request may be forged by a page of another site; empty if it cannot be.

        ``Sec-Fetch-Site`` and ``Origin`` decide, which scripts of a page cannot set. A request
        without both fields comes from a program, or from a browser too old to send any of them.
        """
        if not self.changes_something(environ):
            return ""
        if environ.get("HTTP_ORIGIN", "").lower() in self._trusted:
            return ""
        if from_another_site(environ):
            return (
                "a page of another site sent it with the browser's session: "
                f"Sec-Fetch-Site {environ.get('HTTP_SEC_FETCH_SITE', '')!r}, Origin "
                f"{environ.get('HTTP_ORIGIN', '')[:200]!r} for Host "
                f"{environ.get('HTTP_HOST', '')[:200]!r}; trusted_origins allows an origin"
            )
        return ""

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove the session's cookies from *environ*; all other cookies stay as they are."""
        field = environ.get("HTTP_COOKIE")
        if field is None:
            return
        kept = without_cookies(field, self._cookies)
        if kept:
            environ["HTTP_COOKIE"] = kept
        else:
            del environ["HTTP_COOKIE"]

    def starting(
        self, start_response: StartResponse, own: Sequence[tuple[str, str]] = ()
    ) -> StartResponse:
        """Return a ``start_response`` for the service's response, which cannot change the session.

        ``Vary: Cookie`` is added, so that no cache serves the response to another user.

        :param own: Fields to add, such as the ``Set-Cookie`` that renews the session.
        """

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            kept = [field for field in headers if not self._changes_session(*field)]
            if not any(_varies_by_cookie(*field) for field in kept):
                kept.append(("Vary", "Cookie"))
            kept += own
            if exc_info:
                return start_response(status, kept, exc_info)
            return start_response(status, kept)

        return start

    def _changes_session(self, name: str, value: str) -> bool:
        lower = name.lower()
        if lower == "clear-site-data":
            return "cookies" in value.lower() or "*" in value
        if lower != "set-cookie":
            return False
        pair = value.partition(";")[0]
        # browsers send a cookie without a name as its value alone: "=session=x" is session=x
        return (cookie_name(pair) or cookie_name(pair.partition("=")[2])) in self._cookies


def _varies_by_cookie(name: str, value: str) -> bool:
    if name.lower() != "vary":
        return False
    return not {"*", "cookie"}.isdisjoint(each.strip().lower() for each in value.split(","))


def _origin(text: object) -> str:
    try:
        parts = urlsplit(text) if isinstance(text, str) else None
        valid = (
            parts is not None
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and text == f"{parts.scheme}://{parts.netloc}"
            and "@" not in parts.netloc
        )
    except ValueError:
        valid = False
    if not valid or not isinstance(text, str):
        raise ValueError(
            f'trusted_origins: expected origins such as "https://www.example.com", not {text!r}'
        )
    return text.lower()
