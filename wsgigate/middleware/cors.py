"""Cross-origin resource sharing (CORS): which other origins may read the responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from inspect import iscoroutinefunction
from typing import Annotated, Any, TypeAlias, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.fields import is_token
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import ExcInfo, Headers
from wsgigate.rules.arguments import Range, Trait, checked

__all__ = ["Cors"]

_SAFELISTED = frozenset({"accept", "accept-language", "content-language", "content-type", "range"})
"""Request fields that a page may always send, in lower case (Fetch section 2.2.2)."""

_MAX_REQUESTED = 100

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<any>\*\.)?"
    r"(?P<host>[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}|\*))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}

_FORBIDDEN = frozenset({"CONNECT", "TRACE", "TRACK"})
"""Methods that browsers do not allow to pages (Fetch section 2.2.1)."""

_STRANGERS = ("https://wsgigate.invalid", "http://wsgigate.invalid:1234", "null")
"""Origins that a pattern should not match where credentials are allowed."""

Origin: TypeAlias = str | re.Pattern[str] | Callable[[str], object]
"""An origin, a compiled pattern for all of it, or a function that returns whether it is allowed."""

_PREFLIGHT_VARY = ("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")


@checked
class Cors:
    """CORS: answer preflight requests and add the ``Access-Control-*`` fields to responses.

    (The CORS protocol of the Fetch standard.) A preflight never reaches the application: the
    response is 204, or 403 if its origin, method or a field is not allowed. The application's own
    ``Access-Control-*`` fields are replaced, so that there is one policy. A request of an origin
    that is not allowed still reaches the application, as any client that is not a browser could
    send it; without the fields the browser does not let the page read the response.

    :param app: The WSGI application to share.
    :param origins: ``"https://app.example.com"`` exactly, ``"https://*.example.com"`` for one label
        or more in place of the star, ``"http://localhost:*"`` for any port, ``"*"`` for all,
        ``"null"`` for pages without an origin. A compiled regular expression must match the whole
        origin, in lower case as browsers send it; a function is called with the origin and returns
        whether it is allowed. A list of these, or a single pattern or function.
    :param methods: Methods that other origins may use, case-insensitive; ``"*"`` for any.
    :param headers: Request fields that other origins may send besides the CORS-safelisted ones;
        ``"*"`` for any.
    :param expose: Response fields that scripts of other origins may read besides the safelisted
        ones.
    :param credentials: Whether requests may include cookies and client certificates.
    :param max_age: How long a browser may cache the response to a preflight, in seconds.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is malformed, or would expose credentials to any page.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        origins: Sequence[Origin] | re.Pattern[str] | Callable[[str], object],
        methods: Sequence[str] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
        headers: Sequence[str] = (),
        expose: Sequence[str] = (),
        credentials: bool = False,
        max_age: Annotated[int, Trait.SECONDS, Range(0)] = 600,
        refuse: Refuse = answer_with,
    ) -> None:
        for name, tokens in (("methods", methods), ("headers", headers), ("expose", expose)):
            _check_tokens(name, tokens)
        methods = [method.upper() for method in methods]
        never = sorted(_FORBIDDEN.intersection(methods))
        if never:
            raise ValueError(f"methods: no page can use {', '.join(never)}; remove it")
        listed = _listed_origins(origins)
        if max_age.__class__ is not int or not 0 <= max_age <= 86400:
            raise ValueError(f"max_age is 0 to 86400 whole seconds, got {max_age!r}")
        self.app = app
        self._exact, self._pattern = _compile([one for one in listed if isinstance(one, str)])
        self._patterns = [one for one in listed if isinstance(one, re.Pattern)]
        self._functions = [one for one in listed if callable(one)]
        if credentials:
            _check_credentials(listed, expose)
        self._credentials = bool(credentials)
        self._all = "*" in listed
        self._any_method = "*" in methods
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
            ("Access-Control-Max-Age", str(max_age)),
            _PREFLIGHT_VARY,
        ]
        self._allow_methods = ", ".join(methods)
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
            # Sent to every client, so that caches need no Vary: Origin.
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
        if origin in self._exact:
            return True
        if self._pattern is not None and self._pattern.fullmatch(origin) is not None:
            return True
        if self._credentials and origin == "null":  # any page can give itself this origin
            return False
        return any(pattern.fullmatch(origin) for pattern in self._patterns) or any(
            function(origin) for function in self._functions
        )

    def _answer(
        self, origin: str, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        method = environ["HTTP_ACCESS_CONTROL_REQUEST_METHOD"]
        requested = _listed(environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", ""))
        if not (self._all or self._allows(origin)):
            reason = f"origin {origin[:256]!r} is not allowed"
        elif not (method in self._methods or (self._any_method and is_token(method))):
            reason = f"method {method[:64]!r} is not allowed to other origins"
        elif requested is None or not (self._any_header or self._headers.issuperset(requested)):
            reason = "a field of the preflight is not allowed to other origins"
        else:
            fields = [("Access-Control-Allow-Origin", "*" if self._all else origin)]
            # A literal "*" would not cover Authorization, nor anything with credentials.
            allowed = ", ".join(requested) if self._any_header else self._allow_headers
            if allowed:
                fields.append(("Access-Control-Allow-Headers", allowed))
            fields += self._allow_credentials
            allowed = method if self._any_method else self._allow_methods
            fields.append(("Access-Control-Allow-Methods", allowed))
            start_response("204 No Content", fields + self._preflight)
            return []
        refused(environ, "Cors", reason)
        return self._refused(environ, start_response)


def _listed(value: str) -> list[str] | None:
    """Return the field names in *value*, in lower case; ``None`` if one is malformed."""
    names = [name.strip(" \t").lower() for name in value.split(",", _MAX_REQUESTED)]
    names = [name for name in names if name]
    return names if all(map(is_token, names)) else None


def _add_vary(fields: Headers) -> None:
    """Add ``Origin`` to the ``Vary`` field in *fields*."""
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
    if not isinstance(tokens, Sequence | frozenset | set):
        raise ValueError(f"{name} is a list of names, not {tokens!r}")
    for token in tokens:
        if not isinstance(token, str) or not is_token(token):
            raise ValueError(f"{name}: {token!r} is not a name that HTTP allows")


def _check_credentials(origins: Sequence[Origin], expose: Sequence[str]) -> None:
    for word in ("*", "null"):
        if word in origins:
            raise ValueError(
                f'credentials with the origin "{word}" would let any page act for a user; '
                "list the origins that may"
            )
    for pattern in origins:
        if isinstance(pattern, re.Pattern) and any(map(pattern.fullmatch, _STRANGERS)):
            raise ValueError(
                f"credentials with the pattern {pattern.pattern!r}, which matches any origin, "
                "would let any page act for a user; name the hosts that may"
            )
    if "*" in expose:
        raise ValueError('expose: "*" has no effect with credentials; list the fields')


def _listed_origins(origins: Any) -> list[Origin]:
    """Return *origins* as a list.

    :raises ValueError: It is not a list, it is empty, or an item is not an origin.
    """
    if isinstance(origins, str):
        raise ValueError(f'origins is a list, such as ["{origins}"], not a string')
    if isinstance(origins, re.Pattern) or callable(origins):
        origins = [origins]
    if not isinstance(origins, Sequence | frozenset | set):
        raise ValueError(f"origins is a list, a compiled pattern or a function, not {origins!r}")
    if not origins:
        raise ValueError("origins: list at least one origin")
    for origin in origins:
        if isinstance(origin, re.Pattern) and isinstance(origin.pattern, str):
            continue
        if iscoroutinefunction(origin):
            raise ValueError(f"origins: {origin!r} is asynchronous: a plain function is required")
        if not isinstance(origin, str) and not callable(origin):
            raise ValueError(
                f"origins: {origin!r} is not a text, a compiled pattern for text or a function"
            )
    return cast("list[Origin]", list(origins))


def _compile(origins: Sequence[str]) -> tuple[frozenset[str], re.Pattern[str] | None]:
    """Return the exact origins, and one pattern for those with a wildcard."""
    exact = set()
    patterns = []
    for origin in origins:
        if origin.lower() in ("*", "null"):
            exact.add(origin.lower())
            continue
        match = _ORIGIN.fullmatch(origin.lower())
        port = match["port"] if match else None
        if match is None or (port not in (None, "*") and not 0 < int(port or 0) < 65536):
            raise ValueError(
                f'origins: expected "https://HOST[:PORT]", "https://*.DOMAIN", "*" or "null", '
                f"got {origin!r}{_hint(origin)}"
            )
        scheme, host = match["scheme"], match["host"]
        # Browsers leave a default port out.
        tail = f":{port}" if port and port != _DEFAULT_PORTS.get(scheme) else ""
        if match["any"] or port == "*":
            labels = r"(?:[a-z0-9_-]+\.)+" if match["any"] else ""
            end = r"(?::[0-9]{1,5})?" if port == "*" else re.escape(tail)
            patterns.append(f"{re.escape(scheme)}://{labels}{re.escape(host)}{end}")
        else:
            exact.add(f"{scheme}://{host}{tail}")
    return frozenset(exact - {"*"}), re.compile("|".join(patterns)) if patterns else None


def _hint(origin: str) -> str:
    """Return a correction for a text that browsers never send as an origin; empty if unknown."""
    if not origin.isascii():
        try:
            ascii_origin = "://".join(
                part.encode("idna").decode() for part in origin.split("://", 1)
            )
        except UnicodeError:
            return ""
        return f"; browsers send international names as {ascii_origin!r}"
    scheme, separator, rest = origin.partition("://")
    if not separator:
        return f'; browsers send the scheme too: "https://{origin}"'
    if "/" in rest:
        return f'; an origin has no path: "{scheme}://{rest.partition("/")[0]}"'
    return ""
