"""Find out that a proxy hides the clients, and log it once.

A middleware that counts callers by address behind a reverse proxy, and is not given the proxies to
trust, counts all clients as one: the proxy. Nothing fails, but the whole world shares one quota.
Which fields to believe cannot be guessed, as a client can send any. That such fields are there, and
that the peer is always the same private one, can be seen. Two situations are told apart:

- werkzeug's ``ProxyFix`` is inside of the middleware, which sees the address before it is fixed.
- All peers are private, or have no address, and forward requests for several clients.

A watch looks at a middleware's first requests and then ends: afterwards it costs nothing.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from wsgiref.types import WSGIEnvironment

from wsgigate.http.forwarded import ADDRESS_FIELDS, is_near
from wsgigate.http.wsgi import CLIENT, environ_key

__all__ = ["PeerWatch", "proxy_fix_in"]


_FIELDS = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", *map(environ_key, ADDRESS_FIELDS))

_WARNED = "wsgigate.peer_warned"

_INNER = ("app", "application", "wsgi_app", "_app", "__wrapped__", "func")

LOOKED_AT = 1000
"""Requests that are looked at before the peers count as what they seem."""


class PeerWatch:
    """Looks at the peers of one middleware's requests until it is clear who they are.

    :param log: A logger's method.
    :param what: The subject of the message: ``the limit 'login' counts all clients as one``.
    :param cure: What to do; ``{peer}`` in it is the address of the proxy.
    :param app: What the middleware wraps, in which a ``ProxyFix`` is looked for.
    """

    def __init__(
        self,
        log: Callable[..., object],
        what: str,
        cure: str,
        app: object = None,
    ) -> None:
        self._log = log
        self._what = what
        self._cure = cure
        self._app = app
        self._first = True
        self._left = LOOKED_AT
        self._peers: set[str] = set()
        self._told: set[str] = set()
        self._turns = itertools.count()  # its first number is one thread's alone

    @classmethod
    def of_limit(cls, log: Callable[..., object], name: str, app: object) -> PeerWatch:
        """Return the watch of the limit *name* around *app*, which counts by address."""
        return cls(
            log,
            f"the limit {name!r} counts all clients behind the proxy in front as one",
            'put ClientAddress(app, trusted_proxies=["{peer}"]) around the limit'
            " (docs: Behind a proxy)",
            app,
        )

    def look(self, environ: WSGIEnvironment) -> bool:
        """Look at a request; return whether the watch goes on."""
        if CLIENT in environ or _WARNED in environ:
            return False
        peer: str = environ.get("REMOTE_ADDR") or "unix"
        if self._first:
            self._first = False
            if self._app is not None and proxy_fix_in(self._app):
                self._warn(
                    environ,
                    peer,
                    "ProxyFix is inside of it and replaces the peer's address only afterwards",
                )
                return False
        return self.forwarded(environ, peer)

    def forwarded(self, environ: WSGIEnvironment, peer: str) -> bool:
        """Look at the forwarded fields of a request of *peer*; return whether the watch goes on."""
        self._left -= 1
        if self._left < 0 or not is_near(peer):
            return False
        clients = [environ[key] for key in _FIELDS if key in environ]
        if not clients:
            return True
        self._peers.add(peer)
        self._told.add("\n".join(clients)[:200])
        if len(self._told) <= len(self._peers):
            return True
        names = ", ".join(
            key.removeprefix("HTTP_").replace("_", "-").title() for key in _FIELDS if key in environ
        )
        self._warn(environ, peer, f"the peer {peer} sends requests of several clients ({names})")
        return False

    def _warn(self, environ: WSGIEnvironment, peer: str, why: str) -> None:
        environ[_WARNED] = True  # middlewares further in need not say it again
        if next(self._turns) == 0:
            cure = self._cure.format(peer=peer)
            self._log("%s: %s; %s", self._what, why, cure)


def proxy_fix_in(app: object) -> bool:
    """Return whether a request for *app* comes by werkzeug's ``ProxyFix``."""
    return any(type(each).__name__ == "ProxyFix" for each in _inside(app))


def _inside(app: object) -> Iterator[object]:
    """Yield what *app* wraps, from outside, as far as attributes tell."""
    seen: set[int] = set()
    left = [app]
    while left and len(seen) < 64:
        one = left.pop()
        if id(one) in seen or isinstance(one, type | str | bytes):
            continue
        seen.add(id(one))
        yield one
        if hasattr(one, "__self__"):
            continue  # a bound method is called as it is, whatever stands around its object by now
        for name in _INNER:
            with contextlib.suppress(Exception):  # what computes an attribute may fail in any way
                inner = getattr(one, name, None)
                if callable(inner):
                    left.append(inner)
