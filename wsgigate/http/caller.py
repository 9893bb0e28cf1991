"""Functions of ``environ`` that select and identify requests: keys, paths, exemptions, plans.

Files name these functions by text, such as ``header:X-Client``. Values of header fields and cookies
are hashed: the store and the log see neither a secret nor its length.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID
from wsgiref.types import WSGIEnvironment

from wsgigate.http import wsgi
from wsgigate.http.fields import is_token
from wsgigate.http.forwarded import AddressList
from wsgigate.http.target import BadTarget, canonical_path, target_of
from wsgigate.http.wsgi import (
    CLAIMS,
    IDENTITY,
    Key,
    combined,
    environ_key,
    header,
    path_parameter,
    peer,
)
from wsgigate.rules.claims import CallerValue, VerifiedCaller

__all__ = [
    "OTHERWISE",
    "CallerKey",
    "ClaimOrAddress",
    "Exempt",
    "KeyNames",
    "PathPatterns",
    "PlanFunction",
    "alternatives",
    "by_address",
    "claim",
    "cookie",
    "exempt_of",
    "exemption",
    "first_of",
    "key_of",
    "listed_path",
    "matching",
    "only_of",
    "plan_of",
    "store_key",
    "text_of",
    "verified_caller",
]


KeyNames: TypeAlias = Key | str | Sequence[Key | str]
"""A key function, its name, or several of these that are combined."""

Exempt: TypeAlias = Callable[[WSGIEnvironment], object]
"""Returns whether a request is exempt (or, for *only*, selected)."""

PlanFunction: TypeAlias = Callable[[WSGIEnvironment], str | None]
"""Returns the name of a request's plan."""

LONGEST_KEY = 128  # a longer key is hashed; the store accepts at most 480 bytes

_PLAIN: dict[str, Key] = {
    "address": wsgi.client_address,
    "api-key": wsgi.api_key,
    "route": wsgi.route,
    "subject": wsgi.subject,
}

_OF_CALLER = {"client": "client", "issuer": "issuer", "plan": "claim:plan"}
"""Further names, and the value of the verified caller that each stands for."""

_BAR = re.compile(r'\|(?=(?:[^"]*"[^"]*")*[^"]*$)')
"""A bar outside of double quotes."""

_PARAMETER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def cookie(name: str) -> Key:
    """Return a key function that identifies the caller by its cookie *name*, hashed.

    :raises ValueError: *name* is not a valid cookie name.
    """
    if not is_token(name):
        raise ValueError(f"{name!r} is not a valid cookie name")
    begins = name + "="

    def key(environ: WSGIEnvironment) -> str | None:
        for pair in environ.get("HTTP_COOKIE", "").split(";"):
            pair = pair.strip(" \t")
            if pair.startswith(begins) and len(pair) > len(begins):
                value = pair[len(begins) :].encode("utf-8", "replace")
                return sha256(value).hexdigest()[:32]
        return None

    return key


class CallerKey:
    """A key function that returns a value of the verified caller, None without one.

    :param text: ``client`` or ``issuer``, or ``claim:PATH``, a claim whose values are texts or
        whole numbers.
    :raises ValueError: The path is malformed.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = text.removeprefix("claim:")
        self._value = CallerValue(text)

    def __call__(self, environ: WSGIEnvironment) -> str | None:
        caller = verified_caller(environ)
        value = None if caller is None else self._value.find(caller)
        if isinstance(value, str):
            return value or None
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


class _Claimant(NamedTuple):
    """A caller of whom a middleware of the user's has set the claims only."""

    claims: Mapping[str, Any]
    subject: str | None
    scheme: str = ""
    issuer: str | None = None
    client: str | None = None
    scopes: frozenset[str] = frozenset()


def verified_caller(environ: WSGIEnvironment) -> VerifiedCaller | None:
    """Return the verified caller of a request; None without one."""
    identity: VerifiedCaller | None = environ.get(IDENTITY)
    if identity is not None:
        return identity
    claims: Mapping[str, Any] | None = environ.get(CLAIMS)
    return None if claims is None else _Claimant(claims, wsgi.subject(environ))


def claim(name: str) -> Key:
    """Return a key function that identifies the caller by a claim of its token.

    :param name: The path of the claim, such as ``org`` or ``realm.name``.
    :raises ValueError: The path is malformed.
    """
    return CallerKey(f"claim:{name}")


def first_of(*keys: Key) -> Key:
    """Return a key function with the value of the first of *keys* that does not exempt the request.

    Equal values of two of *keys* are different callers.
    """

    def key(environ: WSGIEnvironment) -> str | None:
        for place, one in enumerate(keys):
            value = one(environ)
            if value is not None:
                return f"{place}.{value}"
        return None

    return key


def key_of(key: KeyNames, *, claimed: Callable[[Key], Key] = lambda key: key) -> Key:
    """Return the key function for *key*.

    :param key: A key function, or its name: ``address``, ``subject``, ``route``, ``api-key``,
        ``client``, ``issuer``, ``plan``, ``header:NAME``, ``cookie:NAME``, ``claim:PATH``,
        ``path:NAME``. ``subject|address`` is the first of them that has a value, and
        ``subject|exempt`` exempts requests without a subject. A list combines several.
    :param claimed: Wraps ``subject``, ``client``, ``issuer``, ``plan`` and ``claim:PATH`` if they
        are not part of an alternative. Default: they exempt a token without the value.
    :raises ValueError: *key* is none of these.
    """
    if callable(key):
        return claimed(key) if key is wsgi.subject or isinstance(key, CallerKey) else key
    if isinstance(key, str):
        names = alternatives(key)
        if len(names) == 1:
            return key_of(_named(names[0]), claimed=claimed)
        if names[-1] == "exempt":
            names.pop()
        return first_of(*map(_named, names))
    if not isinstance(key, Sequence) or not key:
        raise ValueError(f"key is a function, the name of one, or a list of them, not {key!r}")
    keys = [key_of(one, claimed=claimed) for one in key]
    return keys[0] if len(keys) == 1 else combined(*keys)


def alternatives(key: str) -> list[str]:
    """Return the names of *key*, such as ``subject`` and ``address`` of ``subject|address``."""
    return [name.strip() for name in _BAR.split(key)]


OTHERWISE = "\x1f"
"""The first character of a key for a missing claim; a claim that begins with it is none."""

_SUBJECT_CLAIMS = ("user_id", "uid", "user", "client_id", "azp", "email")


class ClaimOrAddress:
    """A key function by a verified value, or by address if a verified caller lacks it.

    The tokens of some issuers identify the user by another claim; if they were exempt, the limit
    would not apply. A request without a verified caller is exempt.

    :param key: ``wsgi.subject`` or a :class:`CallerKey`.
    :param warn: A logger's method, for one message about tokens without the claim.
    :param what: The subject of that message, such as ``the limit 'user'``.
    """

    def __init__(self, key: Key, *, warn: Callable[..., object], what: str) -> None:
        self._key = key
        self._name = key.name if isinstance(key, CallerKey) else "sub"
        self._written = key.text if isinstance(key, CallerKey) else "subject"
        self._warn = warn
        self._what = what
        self._warnings = itertools.count()  # only one thread gets the first number
        self._warned = False

    def __call__(self, environ: WSGIEnvironment) -> str | None:
        value = self._key(environ)
        if value is not None and value[:1] != OTHERWISE:
            return value
        caller = verified_caller(environ)
        if caller is None or (environ.get(IDENTITY) is None and not caller.claims):
            return None
        if not self._warned:
            self._warn_once(
                '%s counts callers by "%s", and a token has no %s: such callers are counted by '
                'address. Set key="claim:%s" to a claim that the tokens have, or "%s|address", '
                'or "%s|exempt" to count only tokens with a %s',
                self._what,
                self._written,
                self._name,
                next((name for name in _SUBJECT_CLAIMS if name in caller.claims), "NAME"),
                self._written,
                self._written,
                self._name,
            )
        return f"{OTHERWISE}address {wsgi.client_address(environ)}"

    def missed(self, environ: WSGIEnvironment) -> None:
        """Check *environ* after the app was called for an exempt request."""
        if not self._warned and (environ.get(IDENTITY) is not None or environ.get(CLAIMS)):
            self._warn_once(
                '%s counts callers by "%s" outside of the Authenticator, where no request has '
                "one, so it limits nothing: put it inside",
                self._what,
                self._written,
            )

    def _warn_once(self, message: str, *arguments: object) -> None:
        self._warned = True
        if next(self._warnings) == 0:
            self._warn(message, *arguments)


def text_of(key: object) -> str:
    """Return the value of a key function as text.

    :raises TypeError: It is neither a text, a whole number nor a UUID.
    """
    if isinstance(key, str):
        return str(key)
    if isinstance(key, (int, UUID)) and not isinstance(key, bool):
        return str(key)
    raise TypeError(
        f"a key function returns a text, a whole number, a UUID or None, not {type(key).__name__}"
    )


def _named(name: str) -> Key:
    kind, _, argument = name.partition(":")
    if name in _PLAIN:
        return _PLAIN[name]
    if kind == "header" and is_token(argument):
        return header(argument)
    if kind == "cookie" and is_token(argument):
        return cookie(argument)
    if name in _OF_CALLER:
        return CallerKey(_OF_CALLER[name])
    if kind == "claim":
        try:
            return claim(argument)
        except ValueError as error:
            raise ValueError(f"key: {error}") from None
    if kind == "path" and _PARAMETER.fullmatch(argument):
        return path_parameter(argument)
    known = ", ".join((*_PLAIN, *_OF_CALLER))
    raise ValueError(
        f"key is one of {known}, header:NAME, cookie:NAME, claim:PATH or path:NAME, not {name!r}"
    )


def plan_of(plan: PlanFunction | str) -> PlanFunction:
    """Return the function that returns a request's plan.

    :param plan: A function, or ``claim:PATH`` of the verified caller, or ``header:NAME``, which is
        safe only for a field that clients cannot set.
    :raises ValueError: *plan* is none of these.
    """
    if callable(plan):
        return plan
    kind, _, name = plan.partition(":") if isinstance(plan, str) else ("", "", "")
    if kind == "claim":
        try:
            return claim(name)
        except ValueError as error:
            raise ValueError(f"plan: {error}") from None
    if kind == "header" and is_token(name):
        key_name = environ_key(name)
        return lambda environ: environ.get(key_name)
    raise ValueError(f"plan is a function, claim:PATH or header:NAME, not {plan!r}")


def exemption(
    *,
    addresses: Iterable[str] = (),
    paths: Iterable[str] = (),
    methods: Iterable[str] = (),
    rule: Exempt | None = None,
) -> Exempt:
    """Return a function that returns whether a request is exempt: one argument must match.

    :param addresses: Addresses and networks of clients, such as ``"10.0.0.0/8"``.
    :param paths: ``/health`` is that path, ``/static/*`` all below it. They are compared with the
        canonical form of the request's target; a target without one does not match.
    :param methods: Methods in upper case.
    :param rule: A function of ``environ``.
    :raises ValueError: An argument is invalid; the message names it.
    """
    try:
        listed = AddressList(addresses)
    except ValueError as error:
        raise ValueError(f"addresses: {error}") from None
    if isinstance(paths, str) or isinstance(methods, str):
        raise ValueError('paths and methods are lists, such as ["/health"]')
    exact, below = set(), []
    for path in paths:
        try:
            whole = canonical_path(path.removesuffix("*"))
        except ValueError as error:
            raise ValueError(f"paths: {path!r}: {error}") from None
        if "*" in whole or (path.endswith("*") and not whole.endswith("/")):
            raise ValueError(f"paths: {path!r} is neither a path nor /a/path/*")
        if path.endswith("*"):
            below.append(whole)
        else:
            exact.add(whole)
    exempted = frozenset(methods)
    for method in exempted:
        if not is_token(method) or method != method.upper():
            raise ValueError(f'methods: {method!r} is not a method in upper case, such as "GET"')
    if rule is not None and not callable(rule):
        raise ValueError(f"rule is a function, not {rule!r}")
    prefixes, by_path = tuple(below), bool(exact or below)

    def exempt(environ: WSGIEnvironment) -> bool:
        if exempted and environ["REQUEST_METHOD"] in exempted:
            return True
        if listed and peer(environ) in listed:
            return True
        if by_path:
            try:
                path = target_of(environ).path
            except BadTarget:
                return False
            if path in exact or path.startswith(prefixes):
                return True
        return rule is not None and bool(rule(environ))

    return exempt


def matching(
    *,
    paths: Iterable[str] = (),
    methods: Iterable[str] = (),
    ignore_case: bool = False,
    rule: Exempt | None = None,
) -> Exempt:
    """Return a function that returns whether a request matches all of the arguments.

    Use it if a limit, a cost or a check applies to some paths only. A comparison of ``PATH_INFO``
    with a text can be evaded by other spellings of the path that the application serves as well.

    :param paths: ``/login`` is that path in every spelling: ``/login/``, ``//login``,
        ``/login;x=1``; ``/auth/*`` is ``/auth`` and all below it; ``*`` and ``{name}`` stand for
        one segment. Relative to where the middleware is mounted. Default: any path.
    :param methods: Methods in upper case; ``GET`` includes ``HEAD``. Default: any method.
    :param ignore_case: Whether ``/LOGIN`` matches ``/login``, for an application that serves
        both.
    :param rule: A function of ``environ`` that must return true as well.
    :raises ValueError: An argument is malformed, or none is given; the message names it.
    """
    try:
        patterns = PathPatterns(paths, ignore_case=ignore_case)
    except ValueError as error:
        raise ValueError(f"paths: {error}") from None
    if isinstance(methods, str):
        raise ValueError('methods is a list, such as ["POST"]')
    named = frozenset(methods)
    for method in named:
        if not isinstance(method, str) or not is_token(method) or method != method.upper():
            raise ValueError(f'methods: {method!r} is not a method in upper case, such as "GET"')
    if "GET" in named:
        named |= {"HEAD"}
    if ignore_case not in (True, False):
        raise ValueError(f"ignore_case is True or False, not {ignore_case!r}")
    if rule is not None and not callable(rule):
        raise ValueError(f"rule is a function, not {rule!r}")
    if not (patterns or named or rule):
        raise ValueError("paths, methods or a rule is required")
    by_path, find = bool(patterns), patterns.find

    def matches(environ: WSGIEnvironment) -> bool:
        if named:
            method = environ["REQUEST_METHOD"]
            if method not in named and method.upper() not in named:  # Flask takes "post" for POST
                return False
        if by_path and find(environ.get("PATH_INFO", "")) is None:
            return False
        return rule is None or bool(rule(environ))

    return matches


def listed_path(paths: Iterable[str], *, ignore_case: bool = False) -> Key:
    """Return a key function with the one of *paths* that a request matches, else ``other``.

    Other paths share one key, as clients can invent any number of them.

    :param paths: As for :func:`matching`.
    :param ignore_case: As for :func:`matching`.
    :raises ValueError: A path is malformed; the message names it.
    """
    patterns = PathPatterns(paths, ignore_case=ignore_case)
    return lambda environ: patterns.find(environ.get("PATH_INFO", "")) or "other"


def only_of(only: Exempt | Mapping[str, Any] | None) -> Exempt | None:
    """Return the function that returns whether a request is counted; None if all are.

    :raises ValueError: *only* is neither a function nor the arguments of :func:`matching`.
    """
    return _of_table(
        "only", only, matching, {"paths", "methods", "ignore_case", "rule"}, "what is counted"
    )


def exempt_of(exempt: Exempt | Mapping[str, Any] | None) -> Exempt | None:
    """Return the function that returns whether a request is exempt; None if none is.

    :raises ValueError: *exempt* is neither a function nor the arguments of :func:`exemption`.
    """
    return _of_table(
        "exempt", exempt, exemption, {"addresses", "paths", "methods", "rule"}, "what is exempt"
    )


def _of_table(
    called: str,
    given: Exempt | Mapping[str, Any] | None,
    make: Callable[..., Exempt],
    known: set[str],
    what: str,
) -> Exempt | None:
    if given is None or callable(given):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"{called} is a function, or a table of {what}, not {given!r}")
    unknown = given.keys() - known
    if unknown:
        raise ValueError(
            f"{called} has no {', '.join(sorted(map(str, unknown)))}; "
            f"its keys are {', '.join(sorted(known))}"
        )
    try:
        return make(**given)
    except ValueError as error:
        raise ValueError(f"{called}: {error}") from None


def by_address(key: KeyNames) -> bool:
    """Return whether *key*, an argument of :func:`key_of`, counts callers by their address."""
    if isinstance(key, str):
        return "address" in alternatives(key)
    if callable(key):
        return key is wsgi.client_address
    return any(by_address(one) for one in key)


def store_key(key: object) -> str:
    """Return the store key of *key*: ``=`` and the key if it is short ASCII, else ``#`` and a hash.

    :raises TypeError: A key function may not return such a value.
    """
    if key.__class__ is not str:
        key = text_of(key)
    if len(key) > LONGEST_KEY or not key.isascii():
        return "#" + sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return "=" + key


# Path patterns.
#
# Applications differ in the spellings of a path that they serve: one serves /login only, another
# /login/ and //login as well. A rule for /login must hold for every spelling that some application
# may serve as it, or an attacker bypasses the rule. These patterns therefore match more than routes
# do: a path matches if one of its interpretations does.
#
# - Trailing and repeated slashes are ignored.
# - Parameters of a segment (/login;x=1), dot segments, backslashes and escaped slashes are tried
#   both literally and resolved.
# - With *ignore_case* the case is ignored.

_SLASHES = re.compile(r"//+")
_PARAMETERS = re.compile(r";[^/]*")
_ODD = re.compile(r"[;\\]|/\.|%2[fF]")
_DOTTED_I = {0x130: "i", 0x131: "i"}  # to re.IGNORECASE they are an i, to str.casefold not
_VARIABLE = re.compile(r"\*|\{[A-Za-z_][A-Za-z0-9_]*\}")


class PathPatterns:
    """A set of path patterns.

    :param patterns: ``/login`` is that path, ``/static/*`` that path and all below it; within a
        path ``*`` and ``{name}`` stand for one segment. Not percent-encoded.
    :param ignore_case: Whether ``/LOGIN`` matches ``/login``.
    :raises ValueError: A pattern is malformed; the message names it.
    """

    def __init__(self, patterns: Iterable[str], *, ignore_case: bool = False) -> None:
        if isinstance(patterns, str):
            raise ValueError(f"a list of paths is expected, not the text {patterns!r}")
        self._ignore_case = ignore_case
        self._exact: dict[str, str] = {}
        self._below: list[tuple[str, str]] = []
        self._variable: list[tuple[re.Pattern[str], str]] = []
        for pattern in patterns:
            self._add(pattern)

    def __bool__(self) -> bool:
        return bool(self._exact or self._below or self._variable)

    def find(self, path: str) -> str | None:
        """Return the first pattern that *path* matches, exact ones first; ``None`` if none does.

        :param path: Decoded, as ``PATH_INFO`` is (PEP 3333).
        """
        plain = self._normal(path)
        found = self._look(plain)
        if found is None and _ODD.search(path) is not None:
            found = self._look(self._normal(_resolved(path)))
        return found

    def _add(self, pattern: object) -> None:
        if not isinstance(pattern, str) or not pattern.startswith("/"):
            raise ValueError(f'{pattern!r}: expected a path such as "/login" or "/static/*"')
        if "%" in pattern or "?" in pattern or "#" in pattern:
            raise ValueError(f"{pattern!r}: a path is written without escapes and without a query")
        below = pattern.endswith("/*")
        raw = pattern[:-1] if below else pattern
        path = self._normal(raw.encode("utf-8").decode("latin-1"))
        if any(segment in (".", "..") for segment in path.split("/")):
            raise ValueError(f"{pattern!r}: a path has no dot segments")
        segments = path.split("/")[1:]
        variable = [_VARIABLE.fullmatch(segment) is not None for segment in segments]
        for segment, varies in zip(segments, variable, strict=True):
            if not varies and ("*" in segment or "{" in segment or "}" in segment):
                raise ValueError(f"{pattern!r}: * and {{name}} stand for a whole segment")
        if any(variable):
            parts = [
                "[^/]+" if v else re.escape(s) for s, v in zip(segments, variable, strict=True)
            ]
            end = "(?:/.*)?" if below else ""
            compiled = re.compile("/" + "/".join(parts) + end, re.DOTALL)
            self._variable.append((compiled, pattern))
        elif below:
            self._below.append((path + "/", pattern))
        else:
            self._exact.setdefault(path, pattern)

    def _normal(self, path: str) -> str:
        path = path.rstrip("/")
        if path[:1] != "/":  # werkzeug's server passes "POST login", and Flask serves it as /login
            path = "/" + path if path else path
        if "//" in path:
            path = _SLASHES.sub("/", path)
        if self._ignore_case:
            if not path.isascii():
                path = path.encode("latin-1", "replace").decode("utf-8", "replace")
            path = path.translate(_DOTTED_I).casefold()
        return path

    def _look(self, path: str) -> str | None:
        found = self._exact.get(path)
        if found is not None:
            return found
        if self._below:
            whole = path + "/"
            for prefix, pattern in self._below:
                if whole.startswith(prefix):
                    return pattern
        for compiled, pattern in self._variable:
            if compiled.fullmatch(path) is not None:
                return pattern
        return None


def _resolved(path: str) -> str:
    """Return *path* with parameters, dot segments, backslashes and escaped slashes resolved."""
    path = path.replace("\\", "/").replace("%2f", "/").replace("%2F", "/")
    path = _PARAMETERS.sub("", path)
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if segments:
                segments.pop()
        elif segment not in (".", ""):
            segments.append(segment)
    return "/" + "/".join(segments)
