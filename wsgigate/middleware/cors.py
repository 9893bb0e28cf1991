"""Cross-origin resource sharing: which web pages of other origins may call the application."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.fields import is_token
from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.wsgi import REASON, ExcInfo, Headers

__all__ = ["Cors"]

_SAFELISTED = frozenset({"accept", "accept-language", "content-language", "content-type", "range"})
"""Request fields that a page may always send, lower case (Fetch section 2.2.2)."""

_MAX_REQUESTED = 100

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<any>\*\.)?"
    r"(?P<host>[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}

_PREFLIGHT_VARY = ("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")


class Cors:
    """Answer preflight requests, and tell browsers which origins may read the responses.

    (The CORS protocol of the Fetch standard.) A preflight never reaches the application: it is
    answered with 204, or with 403 when its origin, method or a field is not allowed. The
    application's own ``Access-Control-*`` fields are replaced: there is one policy. A request of an
    origin that is not allowed is still passed on, as any client without a browser could send it;
    the browser is not told that its page may read the answer.

    :param app: The WSGI application to share.
    :param origins: ``"https://app.example.com"`` exactly, ``"https://*.example.com"`` for one label
        or more in the place of the star, ``"*"`` for all, ``"null"`` for pages without an origin.
    :param methods: What other origins may use.
    :param headers: Request fields they may send besides the harmless ones; ``"*"`` for any.
    :param expose: Response fields their scripts may read besides the harmless ones.
    :param credentials: Whether cookies and client certificates may come along.
    :param max_age: How many seconds a browser may remember the answer to a preflight.
    :param refuse: Turns a problem into the app that answers with it.
    :raises ValueError: A setting is malformed, or would hand a user's credentials to any page.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        origins: Sequence[str],
        methods: Sequence[str] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
        headers: Sequence[str] = (),
        expose: Sequence[str] = (),
        credentials: bool = False,
        max_age: int = 600,
        refuse: Refuse = answer_with,
    ) -> None:
        for name, tokens in (("methods", methods), ("headers", headers), ("expose", expose)):
            _check_tokens(name, tokens)
        if credentials:
            _check_credentials(origins, expose)
        if isinstance(max_age, bool) or not 0 <= max_age <= 86400:
            raise ValueError(f"max_age is 0 to 86400 seconds, got {max_age!r}")
        self.app = app
        self._exact, self._pattern = _compile(origins)
        self._all = "*" in origins
        self._methods = frozenset(methods)
        self._any_header = "*" in headers
        self._headers = _SAFELISTED | {name.lower() for name in headers}
        self._refused = refuse(
            Problem(403, "This cross-origin request is not allowed.", headers=(_PREFLIGHT_VARY,))
        )
        self._allow_credentials: Headers = (
            [("Access-Control-Allow-Credentials", "true")] if credentials else []
        )
        self._preflight: Headers = [
            *self._allow_credentials,
            ("Access-Control-Allow-Methods", ", ".join(methods)),
            ("Access-Control-Max-Age", str(max_age)),
            _PREFLIGHT_VARY,
        ]
        self._allow_headers = ", ".join(headers)
        self._actual: Headers = [
            *self._allow_credentials,
            *([("Access-Control-Expose-Headers", ", ".join(expose))] if expose else []),
        ]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        if (
            origin is not None
            and environ["REQUEST_METHOD"] == "OPTIONS"
            and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        ):
            return self._answer(origin, environ, start_response)

        added: Headers = []
        if self._all:
            # Told to everybody, pages or not, so that no cache needs to tell them apart.
            added = [("Access-Control-Allow-Origin", "*"), *self._actual]
        elif origin is not None and self._allows(origin):
            added = [("Access-Control-Allow-Origin", origin), *self._actual]
        vary = not self._all

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            fields = [each for each in headers if not each[0].lower().startswith("access-control-")]
            if vary:
                _add_vary(fields)
            fields += added
            if exc_info:
                return start_response(status, fields, exc_info)
            return start_response(status, fields)

        return self.app(environ, start)

    def _allows(self, origin: str) -> bool:
        return origin in self._exact or (
            self._pattern is not None and self._pattern.fullmatch(origin) is not None
        )

    def _answer(
        self, origin: str, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        method = environ["HTTP_ACCESS_CONTROL_REQUEST_METHOD"]
        requested = _listed(environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", ""))
        if not (self._all or self._allows(origin)):
            reason = f"origin {origin[:256]!r} is not allowed"
        elif method not in self._methods:
            reason = f"method {method[:64]!r} is not allowed to other origins"
        elif requested is None or not (self._any_header or self._headers.issuperset(requested)):
            reason = "a field of the preflight is not allowed to other origins"
        else:
            fields = [("Access-Control-Allow-Origin", "*" if self._all else origin)]
            # A literal "*" would not cover Authorization, nor anything with credentials.
            allowed = ", ".join(requested) if self._any_header else self._allow_headers
            if allowed:
                fields.append(("Access-Control-Allow-Headers", allowed))
            start_response("204 No Content", fields + self._preflight)
            return []
        environ[REASON] = reason
        return self._refused(environ, start_response)


def _listed(value: str) -> list[str] | None:
    """Return the field names that *value* lists, lower case; ``None`` if they are not names."""
    names = [name.strip(" \t").lower() for name in value.split(",", _MAX_REQUESTED)]
    names = [name for name in names if name]
    return names if all(map(is_token, names)) else None


def _add_vary(fields: Headers) -> None:
    """Say in *fields* that the response depends on the request's origin, beside what else does."""
    where = -1
    for index, (name, value) in enumerate(fields):
        if name.lower() == "vary":
            where = index
            if any(token.strip().lower() in ("*", "origin") for token in value.split(",")):
                return
    if where < 0:
        fields.append(("Vary", "Origin"))
    else:
        name, value = fields[where]
        fields[where] = (name, f"{value}, Origin" if value.strip() else "Origin")


def _check_tokens(name: str, tokens: Sequence[str]) -> None:
    if isinstance(tokens, str):
        raise ValueError(f'{name} is a list, such as ["{tokens}"], not a string')
    for token in tokens:
        if not is_token(token):
            raise ValueError(f"{name}: {token!r} is not a name that HTTP allows")


def _check_credentials(origins: Sequence[str], expose: Sequence[str]) -> None:
    for word in ("*", "null"):
        if word in origins:
            raise ValueError(
                f'credentials with the origin "{word}" would let any page act for a user; '
                "list the origins that may"
            )
    if "*" in expose:
        raise ValueError('expose: "*" says nothing where there are credentials; list the fields')


def _compile(origins: Sequence[str]) -> tuple[frozenset[str], re.Pattern[str] | None]:
    """Return the exact origins, and one pattern for those with a star in them."""
    if isinstance(origins, str):
        raise ValueError(f'origins is a list, such as ["{origins}"], not a string')
    if not origins:
        raise ValueError("origins: list at least one origin")
    exact = set()
    patterns = []
    for origin in origins:
        if origin in ("*", "null"):
            exact.add(origin)
            continue
        match = _ORIGIN.fullmatch(origin.lower())
        if match is None:
            raise ValueError(
                f'origins: expected "https://HOST[:PORT]", "https://*.DOMAIN", "*" or "null", '
                f"got {origin!r}"
            )
        scheme, port = match["scheme"], match["port"]
        # Browsers leave a default port out.
        tail = f":{port}" if port and port != _DEFAULT_PORTS.get(scheme) else ""
        if match["any"]:
            host = re.escape(match["host"] + tail)
            patterns.append(rf"{re.escape(scheme)}://(?:[a-z0-9_-]+\.)+{host}")
        else:
            exact.add(f"{scheme}://{match['host']}{tail}")
    return frozenset(exact - {"*"}), re.compile("|".join(patterns)) if patterns else None
