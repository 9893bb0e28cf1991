"""Middlewares in the file: an entry is read, and its middleware is built around an app.

An entry's ``use`` is a name of :data:`MIDDLEWARES`, or ``package.module:factory``; either is
imported when it is used. The keys of a middleware of the package are the arguments of its
constructor that a file can give; the gateway provides its store and a name. Only what differs in
the file is declared here: a function by its name, the content of a file, the gateway's deny list.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from wsgiref.types import WSGIApplication

from wsgigate.auth.authorization import AuthorizationRule
from wsgigate.auth.endpoints import RemoteEndpoints
from wsgigate.auth.jwks import KeySources
from wsgigate.config.errors import MISSING, Errors, at, shown
from wsgigate.config.tables import (
    Arguments,
    ArgumentTable,
    ListOf,
    MapOf,
    TableKey,
    UnionOf,
    is_list,
    suggestion,
)
from wsgigate.config.types import (
    Boolean,
    Enumeration,
    ImportPath,
    Integer,
    Kind,
    QuotasText,
    QuotaText,
    Schema,
    Text,
    error_text,
    import_app,
    import_function,
)
from wsgigate.coordination.api_keys import ApiKeys
from wsgigate.coordination.denylist import DenyList
from wsgigate.http import wsgi
from wsgigate.http.caller import exemption, key_of, matching
from wsgigate.http.problem import Refuse, answer_with
from wsgigate.rules.arguments import FIELD_NAME
from wsgigate.store import Store

__all__ = [
    "MIDDLEWARES",
    "VERIFIERS",
    "App",
    "BuildContext",
    "Middleware",
    "MiddlewareEntry",
    "key_named",
    "made_by",
    "wrap",
]


def made_by(name: str, app: WSGIApplication, options: dict[str, Any]) -> WSGIApplication:
    """Return the app that the factory *name* makes of *app* and *options*.

    :raises ValueError: The factory cannot be imported, fails, or returns nothing callable.
    """
    factory = import_app(name)
    try:
        made: WSGIApplication = factory(app, **options)  # type: ignore[call-arg, assignment, arg-type]
    except Exception as error:  # a factory is arbitrary code, which may raise anything
        raise ValueError(f"{name} failed: {error_text(error)}") from error
    if not callable(made):
        raise ValueError(f"{name} returned no WSGI application, but {type(made).__name__}")
    return made


App: TypeAlias = WSGIApplication


@dataclass(frozen=True)
class Middleware:
    """One entry of a ``middleware`` list.

    :param use: A name of :data:`MIDDLEWARES`, or ``package.module:factory``.
    :param options: Its other keys; None for an invalid entry.
    """

    use: str
    options: Arguments | None = dataclasses.field(repr=False)

    @property
    def keys(self) -> list[str]:
        """The keys that an error of its middleware may begin with."""
        known = MIDDLEWARES.get(self.use)
        return [] if known is None else list(known.table.keys)

    @property
    def verifies(self) -> bool:
        """Whether it verifies callers, or may: that of a factory is unknown."""
        return self.use in VERIFIERS or self.use not in MIDDLEWARES

    @property
    def requires_caller(self) -> bool:
        """Whether it verifies callers, and no request passes without one.

        Of a factory this is unknown; one that is combined with others is expected to.
        """
        options = self.options or {}
        inner = [each.use not in MIDDLEWARES or each.requires_caller for each in self.of]
        if self.use == "all-of":
            return any(inner)
        if self.use == "any-of":
            return all(inner) and not options.get("anonymous")
        return self.use in VERIFIERS and bool(options.get("required", True))

    @property
    def of(self) -> Sequence[Middleware]:
        """The entries that it combines, if it is ``any-of`` or ``all-of``."""
        return (self.options or {}).get("of", ()) if self.use in COMBINING else ()

    def flat(self, path: str = "") -> Iterator[tuple[str, Middleware]]:
        """Yield the entry and those that it combines, each with its key path.

        :param path: The key path of the entry itself.
        """
        yield path, self
        for number, each in enumerate(self.of):
            yield from each.flat(at(at(path, "of"), number))


class BuildContext(NamedTuple):
    """What building a middleware requires besides its options.

    :ivar store: The store that the gateway's workers share.
    :ivar name: The name of a limiter or breaker without one; unique in the gateway.
    :ivar folder: The folder that relative file names refer to.
    :ivar deny_list: The list of denied tokens.
    :ivar keys: The API keys.
    :ivar key_sources: The keys of the issuers of tokens, which all authenticators share.
    :ivar endpoints: The endpoints that middlewares ask about requests.
    :ivar faults: Whether faults may be injected.
    :ivar resource_metadata: The URL of the protected resource's metadata, for challenges.
    :ivar refuse: Returns the WSGI app that responds with a given problem.
    """

    store: Store
    name: str
    folder: Path
    deny_list: DenyList
    keys: ApiKeys
    key_sources: KeySources
    endpoints: RemoteEndpoints
    faults: bool = False
    resource_metadata: str | None = None
    refuse: Refuse = answer_with


def wrap(app: App, middleware: Middleware, context: BuildContext) -> App:
    """Return *app* wrapped in *middleware*.

    :raises ValueError: An option is invalid, or the factory fails.
    """
    options = dict(middleware.options or {})
    if ":" in middleware.use:
        return made_by(middleware.use, app, options)
    return MIDDLEWARES[middleware.use].wrap(app, options, context)


class MiddlewareEntry(Kind[Middleware]):
    """A table whose ``use`` names a middleware, and whose other keys are its options.

    :param example: The name of a middleware that can be in the list.
    """

    def __init__(self, example: str = "logger") -> None:
        self.expected = f'a table such as {{ use = "{example}" }}'
        self._factory = ImportPath("a factory")

    def blank(self) -> Middleware:
        return Middleware("", None)

    def _read(self, value: object, path: str, errors: Errors) -> Middleware | None:
        if not isinstance(value, dict):
            return self._wrong(value, path, errors)
        options = {key: item for key, item in value.items() if key != "use"}
        use, path_of_use = value.get("use"), at(path, "use")
        if use is MISSING:
            return self.blank()
        if not isinstance(use, str):
            problem = (
                "is required: the middleware's name"
                if use is None
                else f"expected a middleware's name, got {shown(use)}"
            )
            errors.add(path_of_use, problem)
            return self.blank()
        if ":" in use:
            factory = self._factory.read(use, path_of_use, errors)
            return Middleware(str(use), None if factory is None else _plain(options))
        if use not in MIDDLEWARES:
            names = list(MIDDLEWARES)
            near = suggestion(use, names) or f"; known middlewares: {', '.join(names)}"
            module, dot, name = use.rpartition(".")
            if dot:  # as a setting of Django has it
                near = f'; write a class of your own as "{module}:{name}"'
            errors.add(path_of_use, f"{shown(use)} is not a middleware{near}")
            return self.blank()
        return Middleware(str(use), MIDDLEWARES[use].table.read(options, path, errors))

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        if "middleware" not in definitions:
            choices: list[Schema] = []
            definitions["middleware"] = {
                "description": "One middleware: its name and its options.",
                "type": "object",
                "required": ["use"],
                "oneOf": choices,
            }
            for use, known in MIDDLEWARES.items():
                known.table.schema(definitions)
                shape = definitions.pop(known.table.name)
                shape["title"] = use
                shape["properties"] = {"use": {"const": use}, **shape["properties"]}
                shape["required"] = ["use", *shape.get("required", [])]
                choices.append(shape)
            factory = self._factory.schema(definitions)
            choices.append(
                {
                    "title": "package.module:factory",
                    "description": "A custom middleware: factory(app, **options).",
                    "properties": {"use": factory},
                }
            )
        return {"$ref": "#/$defs/middleware"}


def _plain(value: Any) -> Any:
    """Return *value* converted to the plain types of the file's format."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


# The middlewares of the package.

Options: TypeAlias = dict[str, Any]

_PROVIDED = frozenset(
    {"endpoints", "key_sources", "keys", "name", "refuse", "resource_metadata", "store"}
)
"""Arguments that the gateway provides; an option of the file comes first."""

_NOT_IN_FILES = frozenset({"keys", "store", "namespace", "sync_interval"})


class KnownMiddleware:
    """One middleware of the package: its keys in the file, and how it is built from them.

    :param make: The class, as ``package.module:Class``.
    :param keys: What differs in the file, as for an :class:`ArgumentTable`.
    :param prepare: Changes the options to those of the class, where one key depends on another.
    """

    def __init__(
        self,
        make: str,
        *,
        keys: Mapping[str, TableKey | str] | None = None,
        prepare: Callable[[Options, BuildContext], Options] = lambda options, context: options,
    ) -> None:
        self.table = ArgumentTable(
            make, without=_NOT_IN_FILES, keys=keys, name=f"middleware.{make}"
        )
        self._prepare = prepare

    def wrap(self, app: App, options: Options, context: BuildContext) -> App:
        """Return *app* in the middleware.

        :raises ValueError: An option is invalid; the message names it.
        """
        arguments = self.table.arguments(self._prepare(options, context))
        for name in _PROVIDED & self.table.parameters:
            arguments.setdefault(name, getattr(context, name))
        made: App = self.table.make(app, **arguments)
        return made


def key_named(name: str) -> wsgi.Key:
    """Return the key function of the key *name* in a file.

    :raises ValueError: *name* is not a known key, and no function that can be imported.
    """
    try:
        return key_of(name)
    except ValueError:
        if not _IS_OBJECT.fullmatch(name):
            raise
        found: wsgi.Key = import_function(name)
        return found


_OBJECT = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"

_ONE = (
    rf"(?:address|subject|client|issuer|plan|route|api-key|(?:header|cookie):{FIELD_NAME}"
    r'|claim:(?:[^|"]|"[^"]*")+|path:[A-Za-z_]\w*)'
)

_KEY = rf"{_ONE}(?: ?\| ?{_ONE})*(?: ?\| ?exempt)?|{_OBJECT}"

_IS_OBJECT = re.compile(rf"(?!claim:|header:){_OBJECT}")


def _function_or_value(value: Any) -> Any:
    """Return the function that *value* names, or else *value*."""
    named = isinstance(value, str) and _IS_OBJECT.fullmatch(value)
    return import_function(value) if named else value


def _keys_named(names: str | tuple[str, ...]) -> list[wsgi.Key]:
    return [key_named(name) for name in ((names,) if isinstance(names, str) else names)]


def _selection(table: ArgumentTable, doc: str) -> TableKey:
    """Return the key for a selection of requests by the arguments of a function."""
    return TableKey(table, doc, None, convert=table.arguments)


_QUOTAS = UnionOf(is_list, ListOf(QuotaText(), least=1), QuotasText())

_CALLER = TableKey(
    UnionOf(
        is_list,
        ListOf(Text('a key such as "address"', pattern=_KEY), least=1),
        Text(
            '"address", "subject", "client", "issuer", "plan", "claim:PATH", "route", "api-key", '
            '"header:NAME", "cookie:NAME", "path:NAME", several with "|" between them, or '
            '"package.module:function"',
            pattern=_KEY,
        ),
    ),
    "The caller to count: address; subject, client, issuer or plan of the verified caller, or one "
    "of its claims, claim:PATH; route, api-key, header:NAME, cookie:NAME, path:NAME, or "
    'package.module:function. "subject|address" uses the first key the request has, '
    '"subject|exempt" exempts requests without the others; a list counts each combination.',
    "address",
    convert=_keys_named,
)

_PATHS = ListOf(Text('a path such as "/login" or "/auth/*"', pattern=r"/.*"), least=1)

_METHODS = ListOf(Text('a method such as "POST"', pattern="[A-Z]+"), least=1)

_ONLY = ArgumentTable(
    matching,
    name="Only",
    doc="The requests that are counted: a request counts if every key matches.",
    keys={
        "paths": TableKey(
            _PATHS,
            'Paths, in every spelling that an app may serve: "/login" also matches "/login/" and '
            '"//login"; "/auth/*" matches "/auth" and all paths below; * and {name} match one '
            "segment.",
            (),
        ),
        "methods": TableKey(_METHODS, "Methods; GET includes HEAD.", ()),
        "rule": TableKey(
            ImportPath("a function"),
            "A function that must return true as well.",
            None,
            convert=import_function,
        ),
    },
)

_EXEMPT = ArgumentTable(
    exemption,
    name="Exempt",
    doc="Exempt requests: a request is exempt if any key matches.",
    keys={
        "paths": TableKey(
            ListOf(Text('a path such as "/health" or "/static/*"', pattern=r"/.*")),
            'Paths; "/static/*" matches all paths below.',
            (),
        ),
        "methods": TableKey(
            ListOf(Text('a method such as "OPTIONS"', pattern="[A-Z]+")), "Methods.", ()
        ),
        "rule": TableKey(
            ImportPath("a function"),
            "A function that returns true for exempt requests.",
            None,
            convert=import_function,
        ),
    },
)

_COUNTED = {
    "key": _CALLER,
    "only": _selection(_ONLY, "The requests that are counted. Default: all requests."),
    "exempt": _selection(_EXEMPT, "Requests that are not counted."),
}


_POLICY = TableKey(
    ImportPath("a function"),
    "A function package.module:function of the identity and the request's facts, which returns "
    "ALLOW or deny(reason) of wsgigate.auth.authorization.",
    None,
    convert=import_function,
)

_RULE = ArgumentTable(
    AuthorizationRule,
    keys={
        "paths": TableKey(_PATHS, "Paths, as for only.paths of a limiter.", ()),
        "policy": _POLICY,
    },
)

_KEY_FILES = {
    "secret_file": TableKey(Text(), "A file that contains the secret.", None),
    "public_key_file": TableKey(
        UnionOf(is_list, ListOf(Text(), least=1), Text("text or a list of texts")),
        "Files that contain public keys or certificates (PEM or DER).",
        None,
    ),
}

_JWKS = (
    'The URL of the issuer\'s keys (JWK set), "https://...", or a JWK or JWK set as JSON text. '
    "Plain http is allowed for this machine only."
)

_REQUIRED_CLAIMS = (
    "Claims that a token must have: a list of paths, or a table of paths and values, "
    '{ token_type = "access", "realm_access.roles" = "clerk" }: the claim must equal the value, or '
    "one of a list of values; a claim that is a list must contain one of them."
)

_ISSUER = ArgumentTable(
    "wsgigate.auth.issuers:TokenIssuer",
    name="Issuer",
    keys={**_KEY_FILES, "jwks": _JWKS, "required_claims": _REQUIRED_CLAIMS},
)


def _with_contents(options: Options, context: BuildContext) -> Options:
    """Return the options of an authenticator with its keys read and the gateway's deny list."""
    if options.pop("deny_list", False):
        options["deny_list"] = context.deny_list
    elif "on_store_error" in options and options.get("dpop", "off") == "off":
        raise ValueError('on_store_error: requires deny_list = true, or dpop = "required"')
    with_files = _with_files(options, context)
    issuers = with_files.get("issuers")
    if issuers is None:
        return with_files
    made = []
    for number, each in enumerate(issuers):
        try:
            made.append(_ISSUER.arguments(_with_files(dict(each), context)))
        except ValueError as error:
            raise ValueError(f"issuers[{number}].{error}") from None
    return {**with_files, "issuers": made}


def _with_files(options: Options, context: BuildContext) -> Options:
    """Return the options of an issuer with its keys read; names of files are relative no more."""
    for kind in ("jwks_file", "ca"):
        if kind in options:
            options[kind] = str(context.folder / options[kind])
    return _with_contents_of(("secret", "public_key"), options, context)


def _with_contents_of(kinds: tuple[str, ...], options: Options, context: BuildContext) -> Options:
    """Return *options* with the contents of the files that ``KIND_file`` names, for each kind."""
    for kind in kinds:
        files = options.pop(f"{kind}_file", ())
        if files and kind in options:
            raise ValueError(f"{kind} and {kind}_file are mutually exclusive; give one of them")
        contents = [
            _content(context.folder / file, f"{kind}_file")
            for file in ((files,) if isinstance(files, str) else files)
        ]
        if contents:
            options[kind] = contents
    return options


def _with_client_secrets(options: Options, context: BuildContext) -> Options:
    """Return the options of a middleware that asks an endpoint, with its secrets read."""
    if "ca" in options:
        options["ca"] = str(context.folder / options["ca"])
    return _with_content_of(("client_secret", "bearer_token"), options, context)


def _with_introspection(options: Options, context: BuildContext) -> Options:
    """Return the options of token introspection, with its secrets read."""
    if "on_store_error" in options and options.get("dpop", "off") == "off":
        raise ValueError('on_store_error: requires dpop = "optional" or "required"')
    return _with_client_secrets(options, context)


def _with_content_of(kinds: tuple[str, ...], options: Options, context: BuildContext) -> Options:
    """Return *options* with the content of the one file that ``KIND_file`` names, for each kind."""
    with_contents = _with_contents_of(kinds, options, context)
    for kind in kinds:
        if isinstance(with_contents.get(kind), list):
            [with_contents[kind]] = with_contents[kind]
    return with_contents


_SIGNER = ArgumentTable(
    "wsgigate.auth.message_signature:Signer",
    name="Signer",
    keys={
        "secret_file": _KEY_FILES["secret_file"],
        "public_key_file": TableKey(
            Text(), "A file that contains a public key or a certificate (PEM).", None
        ),
        "jwks": "A JWK or JWK set as JSON text, instead of these.",
        "jwks_file": TableKey(Text(), "A file that contains a JWK or a JWK set.", None),
    },
)


def _with_signers(options: Options, context: BuildContext) -> Options:
    """Return the options of a verifier of signatures with the keys of its signers read."""
    made = []
    for number, each in enumerate(options["signers"]):
        try:
            signer = _with_content_of(("secret", "public_key", "jwks"), dict(each), context)
            made.append(_SIGNER.make(**_SIGNER.arguments(signer)))
        except ValueError as error:
            raise ValueError(f"signers[{number}].{error}") from None
    return {**options, "signers": made}


def _with_users_file(options: Options, context: BuildContext) -> Options:
    return {**options, "users_file": str(context.folder / options["users_file"])}


def _with_ca(options: Options, context: BuildContext) -> Options:
    return {**options, **({"ca": str(context.folder / options["ca"])} if "ca" in options else {})}


def _with_factories(options: Options, context: BuildContext) -> Options:
    """Return the options of a middleware that combines others, with the factories of these."""
    return {**options, "of": [partial(_made, entry, context) for entry in options["of"]]}


def _made(entry: Middleware, context: BuildContext, app: App, *, refuse: Refuse) -> App:
    """Return *app* in the authenticator of *entry*, which rejects by *refuse*."""
    if ":" in entry.use:
        return made_by(entry.use, app, {**(entry.options or {}), "refuse": refuse})
    return wrap(app, entry, context._replace(refuse=refuse))


def _content(file: Path, key: str) -> str | bytes:
    """Return the content of *file*: text, or of a public key the bytes of a DER file."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{key}: {file} cannot be read: {error.strerror}") from error
    try:
        content = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        if key == "public_key_file":
            return data
        raise ValueError(f"{key}: {file} cannot be read: it is not UTF-8 text") from None
    if not content:
        raise ValueError(f"{key}: {file} is empty")
    return content


def _with_log_output(options: Options, context: BuildContext) -> Options:
    """Return the options of a logger with its handler made; a file's name is relative no more."""
    if "file" in options:
        options = {**options, "file": str(context.folder / options["file"])}
    if options.get("handler") is not None:
        made = options["handler"]()
        if not isinstance(made, logging.Handler):
            raise ValueError(f"handler: the function returned no handler, but {made!r:.100}")
        options = {**options, "handler": made}
    return options


class _FaultInjection(KnownMiddleware):
    """Faults, which only a gateway with ``fault_injection`` injects."""

    def wrap(self, app: App, options: Options, context: BuildContext) -> App:
        enabled = options.get("enabled", False) and context.faults
        made = super().wrap(app, {**options, "enabled": enabled}, context)
        return made if enabled else app  # an inactive one is only validated


COMBINING = ("all-of", "any-of")
"""The middlewares of the package that combine others that verify callers."""

VERIFIERS = (
    *COMBINING,
    "api-key",
    "authenticator",
    "basic",
    "client-certificate",
    "forward-auth",
    "introspection",
    "message-signature",
    "webhook",
)
"""The middlewares of the package that verify callers."""

_OF = TableKey(
    ListOf(MiddlewareEntry("api-key"), least=1),
    'The authenticators, in the order in which they are asked, such as { use = "api-key" }. A '
    "factory of yours is called with refuse as well, by which it must reject requests.",
)

MIDDLEWARES: dict[str, KnownMiddleware] = {
    "all-of": KnownMiddleware(
        "wsgigate.middleware.all_of:AllOf", keys={"of": _OF}, prepare=_with_factories
    ),
    "any-of": KnownMiddleware(
        "wsgigate.middleware.any_of:AnyOf", keys={"of": _OF}, prepare=_with_factories
    ),
    "api-key": KnownMiddleware(
        "wsgigate.middleware.api_key:ApiKeyAuthenticator",
        keys={"exempt": _selection(_EXEMPT, "Requests that pass unchecked, without an identity.")},
    ),
    "authenticator": KnownMiddleware(
        "wsgigate.middleware.authenticator:Authenticator",
        keys={
            **_KEY_FILES,
            "issuers": TableKey(
                ListOf(_ISSUER, least=1),
                "Several issuers, each with its own keys, algorithms, audience and claim rules, "
                "instead of these keys. The token's iss selects the issuer, by whose rules alone "
                "the token is then verified.",
                None,
            ),
            "exempt": _selection(_EXEMPT, "Requests that pass unverified, without claims."),
            "required_claims": _REQUIRED_CLAIMS,
            "jwks": _JWKS,
            "deny_list": TableKey(
                Boolean(),
                "Check tokens against the deny list, which is in the gateway's store, so that "
                "tokens can be revoked before they expire.",
                False,
            ),
        },
        prepare=_with_contents,
    ),
    "authorizer": KnownMiddleware(
        "wsgigate.middleware.authorizer:Authorizer",
        keys={
            "policy": _POLICY,
            "rules": TableKey(
                ListOf(_RULE),
                "Rules for some methods and paths. All rules that match a request must be "
                "satisfied; a request that none matches is rejected.",
                (),
                convert=lambda rules: [_RULE.arguments(rule) for rule in rules],
            ),
            "exempt": _selection(_EXEMPT, "Requests that pass unchecked."),
        },
    ),
    "basic": KnownMiddleware(
        "wsgigate.middleware.basic:BasicAuthenticator",
        keys={"exempt": _selection(_EXEMPT, "Requests that pass unchecked, without an identity.")},
        prepare=_with_users_file,
    ),
    "body-limit": KnownMiddleware("wsgigate.middleware.body_limit:BodyLimit"),
    "breaker": KnownMiddleware("wsgigate.middleware.breaker:Breaker"),
    "client-certificate": KnownMiddleware(
        "wsgigate.middleware.client_certificate:ClientCertificate",
        keys={"exempt": _selection(_EXEMPT, "Requests that pass unchecked, without an identity.")},
        prepare=_with_ca,
    ),
    "concurrency-limiter": KnownMiddleware(
        "wsgigate.middleware.concurrency:ConcurrencyLimiter", keys=_COUNTED
    ),
    "cors": KnownMiddleware(
        "wsgigate.middleware.cors:Cors",
        keys={
            "origins": TableKey(
                ListOf(Text(), least=1),
                'The allowed origins: "https://shop.example", "https://*.shop.example", '
                '"http://localhost:*" for any port, "*", or "package.module:function", called '
                "with the origin.",
                convert=lambda origins: [_function_or_value(origin) for origin in origins],
            )
        },
    ),
    "faults": _FaultInjection(
        "wsgigate.middleware.faults:Faults",
        keys={"enabled": "Inject faults; requires gateway.fault_injection = true as well."},
    ),
    "forward-auth": KnownMiddleware(
        "wsgigate.middleware.forward_auth:ForwardAuth",
        keys={
            "exempt": _selection(_EXEMPT, "Requests that pass unasked, without an identity."),
        },
        prepare=_with_client_secrets,
    ),
    "introspection": KnownMiddleware(
        "wsgigate.middleware.introspection:IntrospectionAuthenticator",
        keys={
            "client_secret_file": TableKey(Text(), "A file that contains the client secret.", None),
            "bearer_token_file": TableKey(Text(), "A file that contains the bearer token.", None),
            "exempt": _selection(_EXEMPT, "Requests that pass unchecked, without an identity."),
            "required_claims": _REQUIRED_CLAIMS,
        },
        prepare=_with_introspection,
    ),
    "limiter": KnownMiddleware(
        "wsgigate.middleware.limiter:Limiter",
        keys={
            **_COUNTED,
            "quota": TableKey(
                _QUOTAS,
                'Requests per period: "100 per 15 minutes". Several quotas are a list or "10/h; '
                '100/d"; all must allow a request.',
            ),
            "cost": TableKey(
                UnionOf(
                    lambda value: not isinstance(value, str) or value.isdigit(),
                    Integer(1),
                    ImportPath("a number, or a function"),
                ),
                "The quota units that a request consumes: a number, or package.module:function.",
                1,
                convert=_function_or_value,
            ),
            "plans": TableKey(MapOf(_QUOTAS), "Quotas by the name of a plan.", None),
            "plan": TableKey(
                Text(
                    '"claim:PATH", "header:NAME" or "package.module:function"',
                    pattern=rf"claim:.+|header:{FIELD_NAME}|{_OBJECT}",
                ),
                "The source of the caller's plan: claim:PATH of the verified caller, header:NAME "
                "that clients cannot set, or package.module:function. Callers without one of the "
                "plans get quota.",
                None,
                convert=_function_or_value,
            ),
        },
    ),
    "logger": KnownMiddleware(
        "wsgigate.middleware.logger:Logger",
        keys={
            "stream": TableKey(
                Enumeration("stdout", "stderr"),
                "The output stream.",
                "stdout",
                convert=lambda name: sys.stderr if name == "stderr" else None,
            ),
            "exempt": _selection(_EXEMPT, "Requests that are not logged, such as probes."),
            "handler": TableKey(
                ImportPath("a function"),
                "A function package.module:function without arguments that returns a handler of "
                "Python's logging to write to.",
                None,
                convert=import_function,
            ),
        },
        prepare=_with_log_output,
    ),
    "message-signature": KnownMiddleware(
        "wsgigate.middleware.message_signature:SignatureAuthenticator",
        keys={
            "signers": TableKey(
                ListOf(_SIGNER, least=1), "The callers and their keys, each a table."
            ),
            "exempt": _selection(_EXEMPT, "Requests that pass unchecked, without an identity."),
        },
        prepare=_with_signers,
    ),
    "request-id": KnownMiddleware("wsgigate.middleware.request_id:RequestId"),
    "shedder": KnownMiddleware("wsgigate.middleware.shedder:Shedder"),
    "webhook": KnownMiddleware(
        "wsgigate.middleware.webhooks:WebhookVerifier",
        keys={
            "secret_file": _KEY_FILES["secret_file"],
            "exempt": _selection(_EXEMPT, "Requests that pass unchecked, without an identity."),
        },
        prepare=_with_files,
    ),
}
"""The middlewares of the package, by ``use``; each is imported when it is first used."""
