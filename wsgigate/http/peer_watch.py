"""Detects that a proxy hides the client addresses, and logs one warning.

A middleware that counts callers by address behind a reverse proxy, without a list of trusted
proxies, counts all clients as one: the proxy. Nothing fails, but all clients share one quota. Which
forwarding fields are trustworthy cannot be detected, as a client can send any. But their presence
can, and that the peer is always a private address. Two situations get a warning:

- werkzeug's ``ProxyFix`` is inside the middleware, which sees the address before it is fixed.
- All peers are private, or have no address, and forward requests of several clients.

A watch inspects the first requests of a middleware; afterwards it costs nothing.
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

INSPECTED = 1000
"""Maximum number of requests that a watch inspects."""


class PeerWatch:
    """Inspects the peers of one middleware's requests until they are known to be proxies or not.

    :param log: A logger's method.
    :param what: The problem: ``the limit 'login' counts all clients as one``.
    :param cure: The solution; ``{peer}`` in it is replaced by the address of the proxy.
    :param app: The wrapped app, which is searched for a ``ProxyFix``.
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
        self._left = INSPECTED
        self._peers: set[str] = set()
        self._forwarded: set[str] = set()
        self._warnings = itertools.count()  # only one thread gets the first number

    @classmethod
    def of_limit(cls, log: Callable[..., object], name: str, app: object) -> PeerWatch:
        """Return a watch for the limit *name* around *app*, which counts by address."""
        return cls(
            log,
            f"the limit {name!r} counts all clients behind the proxy in front as one",
            'put ClientAddress(app, trusted_proxies=["{peer}"]) around the limit'
            " (docs: Behind a proxy)",
            app,
        )

    def inspect(self, environ: WSGIEnvironment) -> bool:
        """Inspect a request; return whether to inspect the next one."""
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
        return self.inspect_fields(environ, peer)

    def inspect_fields(self, environ: WSGIEnvironment, peer: str) -> bool:
        """Inspect the forwarding fields of a request; return whether to inspect the next one."""
        self._left -= 1
        if self._left < 0 or not is_near(peer):
            return False
        clients = [environ[key] for key in _FIELDS if key in environ]
        if not clients:
            return True
        self._peers.add(peer)
        self._forwarded.add("\n".join(clients)[:200])
        if len(self._forwarded) <= len(self._peers):
            return True
        names = ", ".join(
            key.removeprefix("HTTP_").replace("_", "-").title() for key in _FIELDS if key in environ
        )
        self._warn(environ, peer, f"the peer {peer} sends requests of several clients ({names})")
        return False

    def _warn(self, environ: WSGIEnvironment, peer: str, why: str) -> None:
        environ[_WARNED] = True  # so that inner middlewares do not log it again
        if next(self._warnings) == 0:
            cure = self._cure.format(peer=peer)
            self._log("%s: %s; %s", self._what, why, cure)


def proxy_fix_in(app: object) -> bool:
    """Return whether *app* contains werkzeug's ``ProxyFix``."""
    return any(type(each).__name__ == "ProxyFix" for each in _inside(app))


def _inside(app: object) -> Iterator[object]:
    """Yield *app* and the apps that it wraps, outermost first, as found in attributes."""
    seen: set[int] = set()
    left = [app]
    while left and len(seen) < 64:
        one = left.pop()
        if id(one) in seen or isinstance(one, type | str | bytes):
            continue
        seen.add(id(one))
        yield one
        if hasattr(one, "__self__"):
            continue  # a bound method is called directly, not through what wraps its object
        for name in _INNER:
            with contextlib.suppress(Exception):  # a computed attribute may raise any exception
                inner = getattr(one, name, None)
                if callable(inner):
                    left.append(inner)
