"""The options of each middleware of the package, as tables of the file.

An omitted option is None and not passed on, so that each default is defined in one place: the
middleware's constructor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsgigate.auth.jwt import ALGORITHMS as SIGNATURES
from wsgigate.auth.jwt import KINDS
from wsgigate.config.tables import Either, ListOf, MapOf, Table, given, is_list, setting, table
from wsgigate.config.types import (
    FIELD_NAME,
    Choice,
    Duration,
    Flag,
    ImportPath,
    Integer,
    Number,
    QuotasText,
    QuotaText,
    Scalar,
    Secret,
    Size,
    Text,
)
from wsgigate.http.rate_limit_fields import FAMILIES
from wsgigate.middleware.concurrency import LARGEST
from wsgigate.middleware.shedder import SheddingRules
from wsgigate.rules.algorithms import ALGORITHMS
from wsgigate.rules.circuit import CircuitRules
from wsgigate.rules.quota import Quota

__all__ = [
    "AuthenticatorOptions",
    "BodyLimitOptions",
    "BreakerOptions",
    "ConcurrencyOptions",
    "CorsOptions",
    "ExemptOptions",
    "LimiterOptions",
    "LoggerOptions",
    "OnlyOptions",
    "RequestIdOptions",
    "ServiceBreaker",
    "ShedderOptions",
    "circuit_rules",
    "shedding_rules",
]


# Circuit breakers: of a middleware, or of a service.

_RULES = frozenset(CircuitRules.__dataclass_fields__)


@table
class ServiceBreaker:
    """Circuit breaker: when failures open the circuit, and when it closes again."""

    consecutive_failures: int | None = setting(
        Integer(0),
        "Consecutive failures that open the circuit; 0 disables this rule.",
        default=None,
    )
    connect_failures: int | None = setting(
        Integer(0),
        "Consecutive failed connections that open the circuit; 0 disables this rule.",
        default=None,
    )
    failure_rate: float | None = setting(
        Number(0, 1),
        "The fraction of failures that opens the circuit; 0 disables this rule.",
        default=None,
    )
    minimum_calls: int | None = setting(
        Integer(1), "The minimum number of calls in the window to evaluate rates.", default=None
    )
    window: float | None = setting(
        Duration(), "The window over which rates are computed.", default=None
    )
    slow_after: float | None = setting(
        Duration(), "The duration from which a call is slow.", default=None
    )
    slow_rate: float | None = setting(
        Number(0, 1), "The fraction of slow calls that opens the circuit.", default=None
    )
    open_for: float | None = setting(
        Duration(),
        "How long the circuit is open at first; doubles each time it opens again.",
        default=None,
    )
    open_at_most: float | None = setting(
        Duration(), "The maximum time the circuit is open.", default=None
    )
    jitter: float | None = setting(
        Number(0, 1), "The maximum random shortening of the open time, as a fraction.", default=None
    )
    probes: int | None = setting(
        Integer(1, 1000),
        "The number of probes that must succeed before the circuit closes.",
        default=None,
    )
    probe_timeout: float | None = setting(
        Duration(), "The time after which a probe without a result is abandoned.", default=None
    )
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(500, 599), least=1),
        "The response statuses that count as failures.",
        default=None,
    )


@table
class BreakerOptions(ServiceBreaker):
    """Reject requests at once while the app behind keeps failing."""

    enabled: bool | None = setting(
        Flag(), "Whether the middleware is active; false passes every request on.", default=None
    )
    name: str | None = setting(
        Text(), "The circuit's name; breakers with the same name share one circuit.", default=None
    )


def circuit_rules(options: ServiceBreaker) -> CircuitRules:
    """Return the rules that *options* describe: 0 disables a rule.

    :raises ValueError: An option is invalid; the message names it.
    """
    settings: dict[str, Any] = given(options, only=sorted(_RULES))
    for name in ("consecutive_failures", "connect_failures", "failure_rate"):
        if settings.get(name) == 0:
            settings[name] = None
    return CircuitRules(**settings)


# Load shedding.


@table
class ShedderOptions:
    """Load shedding: reject requests that a worker cannot answer in time."""

    enabled: bool | None = setting(
        Flag(), "Whether the middleware is active; false passes every request on.", default=None
    )
    least: int | None = setting(
        Integer(1),
        "The minimum concurrency limit: requests that are always allowed in flight per worker.",
        default=None,
    )
    most: int | None = setting(
        Integer(1), "The maximum concurrency limit: requests in flight per worker.", default=None
    )
    tolerance: float | None = setting(
        Number(0, 100),
        "The fraction by which response times may exceed those without load.",
        default=None,
    )
    window: float | None = setting(Duration(), "How often the limit is computed.", default=None)
    window_requests: int | None = setting(
        Integer(1, 500), "The minimum number of responses to compute the limit.", default=None
    )
    measure_every: float | None = setting(
        Duration(), "How often the response time without load is measured.", default=None
    )
    measure_requests: int | None = setting(
        Integer(1, 500), "The number of responses in a measurement.", default=None
    )
    jitter: float | None = setting(
        Number(0, 1), "The maximum random delay of a measurement, as a fraction.", default=None
    )


def shedding_rules(options: ShedderOptions) -> SheddingRules:
    """Return the rules that *options* describe.

    :raises ValueError: An option is invalid; the message names it.
    """
    return SheddingRules(**given(options, without=("enabled",)))


_OBJECT = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"

_ONE = (
    rf"(?:address|subject|route|api-key|(?:header|cookie):{FIELD_NAME}|claim:[^|]+"
    r"|path:[A-Za-z_]\w*)"
)

_KEY = rf"{_ONE}(?: ?\| ?{_ONE})*(?: ?\| ?exempt)?|{_OBJECT}"


def _counted(value: object) -> bool:
    return not isinstance(value, str) or value.isdigit()


_TEXTS = Either(is_list, ListOf(Text(), least=1), Text("text or a list of texts"))

_SECRETS = Either(is_list, ListOf(Secret(), least=1), Secret())


@table
class RequestIdOptions:
    """Give every request an id, for logs, services and the client."""

    header: str | None = setting(Text(), "The header field that carries the id.", default=None)
    accept: str | None = setting(
        Choice("trusted", "always", "never"),
        "Which clients' ids are kept: trusted proxies', every client's or none.",
        default=None,
    )


@table
class LoggerOptions:
    """Log one line per request."""

    format: str | None = setting(
        Choice("auto", "json", "text"),
        "JSON, or text for people; auto picks text on a terminal.",
        default=None,
    )
    stream: str | None = setting(Choice("stdout", "stderr"), "The output stream.", default=None)
    queue_size: int | None = setting(
        Integer(1),
        "Lines buffered for a slow reader; further lines are dropped and counted.",
        default=None,
    )


_QUOTAS = Either(is_list, ListOf(QuotaText(), least=1), QuotasText())

_KEYS = Either(
    is_list,
    ListOf(Text('a key such as "address"', pattern=_KEY), least=1),
    Text(
        '"address", "subject", "route", "api-key", "header:NAME", "cookie:NAME", "claim:NAME", '
        '"path:NAME", several with "|" between them, or "package.module:function"',
        pattern=_KEY,
    ),
)

_KEY_DOC = (
    "The caller to count: address, subject (of the token), route, api-key, header:NAME, "
    'cookie:NAME, claim:NAME, path:NAME, or package.module:function. "subject|address" uses the '
    'first key the request has, "subject|exempt" exempts requests without the others; a list '
    "counts each combination."
)

_ON_STORE_ERROR = Choice("allow", "refuse")


@table
class ExemptOptions:
    """Exempt requests: a request is exempt if any key matches."""

    addresses: tuple[str, ...] | None = setting(
        ListOf(Text()), 'Client addresses and networks, such as "10.0.0.0/8".', default=None
    )
    paths: tuple[str, ...] | None = setting(
        ListOf(Text('a path such as "/health" or "/static/*"', pattern=r"/.*")),
        'Paths; "/static/*" matches all paths below.',
        default=None,
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(Text('a method such as "OPTIONS"', pattern="[A-Z]+")), "Methods.", default=None
    )
    rule: str | None = setting(
        ImportPath("a function"), "A function that returns true for exempt requests.", default=None
    )


@table
class OnlyOptions:
    """The requests that are counted: a request counts if every key matches."""

    paths: tuple[str, ...] | None = setting(
        ListOf(Text('a path such as "/login" or "/auth/*"', pattern=r"/.*"), least=1),
        'Paths, in every spelling that an app may serve: "/login" also matches "/login/" and '
        '"//login"; "/auth/*" matches "/auth" and all paths below; * and {name} match one '
        "segment.",
        default=None,
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(Text('a method such as "POST"', pattern="[A-Z]+"), least=1),
        "Methods; GET includes HEAD.",
        default=None,
    )
    ignore_case: bool | None = setting(
        Flag(), "Ignore case in paths, for an app that serves /LOGIN as /login.", default=None
    )
    rule: str | None = setting(
        ImportPath("a function"), "A function that must return true as well.", default=None
    )


@table
class LimiterOptions:
    """Rate limiting: reject callers that have used up their quota."""

    quota: tuple[Quota, ...] | Quota = setting(
        _QUOTAS,
        'Requests per period: "100 per 15 minutes". Several quotas are a list or "10/h; 100/d"; '
        "all must allow a request.",
    )
    algorithm: str | None = setting(
        Choice(*ALGORITHMS), "The rate-limiting algorithm.", default=None
    )
    key: tuple[str, ...] | str | None = setting(_KEYS, _KEY_DOC, default=None)
    cost: int | str | None = setting(
        Either(_counted, Integer(1), ImportPath("a number, or a function")),
        "The quota units that a request consumes: a number, or package.module:function.",
        default=None,
    )
    plans: Mapping[str, tuple[Quota, ...] | Quota] | None = setting(
        MapOf(_QUOTAS), "Quotas by the name of a plan.", default=None
    )
    plan: str | None = setting(
        Text(
            '"claim:NAME", "header:NAME" or "package.module:function"',
            pattern=rf"claim:.+|header:{FIELD_NAME}|{_OBJECT}",
        ),
        "The source of the caller's plan: claim:NAME of the token, header:NAME that clients "
        "cannot set, or package.module:function. Callers without one of the plans get quota.",
        default=None,
    )
    only: OnlyOptions | None = setting(
        Table(OnlyOptions), "The requests that are counted. Default: all requests.", default=None
    )
    exempt: ExemptOptions | None = setting(
        Table(ExemptOptions), "Requests that are not counted.", default=None
    )
    preflights: bool | None = setting(Flag(), "Count CORS preflight requests too.", default=None)
    enabled: bool | None = setting(
        Flag(), "Whether the middleware is active; false passes every request on.", default=None
    )
    observe: bool | None = setting(
        Flag(), "Dry run: only count and log what would be rejected.", default=None
    )
    name: str | None = setting(
        Text(),
        "The policy's name in RateLimit fields; limiters with the same name share their counts.",
        default=None,
    )
    fields: tuple[str, ...] | None = setting(
        ListOf(Choice(*FAMILIES)),
        "The response fields that report the quota; x-ratelimit-epoch and x-ratelimit-seconds "
        "are x-ratelimit with X-RateLimit-Reset in seconds, since 1970 or from now.",
        default=None,
    )
    on_store_error: str | None = setting(
        _ON_STORE_ERROR, "What to do with requests while the store fails.", default=None
    )


@table
class ConcurrencyOptions:
    """Concurrency limiting: reject callers with too many requests in flight."""

    limit: int = setting(
        Integer(1, LARGEST), "The maximum number of requests in flight per caller."
    )
    key: tuple[str, ...] | str | None = setting(_KEYS, _KEY_DOC, default=None)
    only: OnlyOptions | None = setting(
        Table(OnlyOptions), "The requests that are counted. Default: all requests.", default=None
    )
    exempt: ExemptOptions | None = setting(
        Table(ExemptOptions), "Requests that are not counted.", default=None
    )
    preflights: bool | None = setting(Flag(), "Count CORS preflight requests too.", default=None)
    lease: float | None = setting(
        Duration(),
        "The time after which the slots of a crashed worker are free again.",
        default=None,
    )
    enabled: bool | None = setting(
        Flag(), "Whether the middleware is active; false passes every request on.", default=None
    )
    observe: bool | None = setting(
        Flag(), "Dry run: only count and log what would be rejected.", default=None
    )
    name: str | None = setting(
        Text(),
        "The policy's name in RateLimit fields; limiters with the same name share their counts.",
        default=None,
    )
    fields: tuple[str, ...] | None = setting(
        ListOf(Choice("ratelimit")), "The response fields that report the limit.", default=None
    )
    on_store_error: str | None = setting(
        _ON_STORE_ERROR, "What to do with requests while the store fails.", default=None
    )


@table
class AuthenticatorOptions:
    """Authentication: allow requests with a valid token (JWT) only."""

    algorithms: tuple[str, ...] = setting(
        ListOf(Choice(*SIGNATURES), least=1),
        'Signature algorithms, all of one family, e.g. ["RS256"].',
    )
    secret: tuple[str, ...] | str | None = setting(
        _SECRETS,
        "The secret of HS256, HS384 and HS512 tokens; several during rotation.",
        default=None,
    )
    secret_file: str | None = setting(Text(), "A file that contains the secret.", default=None)
    public_key: tuple[str, ...] | str | None = setting(
        _TEXTS,
        "The PEM public key that verifies RS, PS, ES and EdDSA tokens; several during rotation.",
        default=None,
    )
    public_key_file: tuple[str, ...] | str | None = setting(
        _TEXTS, "Files that contain public keys.", default=None
    )
    issuer: str | None = setting(Text(), 'Expected issuer ("iss").', default=None)
    audience: tuple[str, ...] | str | None = setting(
        _TEXTS, 'Expected audience ("aud").', default=None
    )
    required: bool | None = setting(Flag(), "Reject requests without a token.", default=None)
    exempt: ExemptOptions | None = setting(
        Table(ExemptOptions), "Requests that pass unverified, without claims.", default=None
    )
    preflights: bool | None = setting(
        Flag(), "Require a token for CORS preflight requests too.", default=None
    )
    scopes: tuple[str, ...] | None = setting(
        ListOf(Text()), "The scopes a token must have, all of them.", default=None
    )
    invalid_token_status: int | None = setting(
        Integer(401, 403), "The response status for an invalid token: 401 or 403.", default=None
    )
    leeway: float | None = setting(Duration(zero=True), "The tolerated clock skew.", default=None)
    max_lifetime: float | None = setting(
        Duration(), "Reject tokens with a longer lifetime.", default=None
    )
    typ: str | None = setting(
        Text(),
        'The expected type in the token\'s header: "at+jwt" for access tokens.',
        default=None,
    )
    required_claims: tuple[str, ...] | Mapping[str, Any] | None = setting(
        Either(
            is_list,
            ListOf(Text()),
            MapOf(Either(is_list, ListOf(Scalar(), least=1), Scalar())),
        ),
        "Claims that a token must have: a list of names, or a table of names and the value, or "
        'list of allowed values, that each must have: { token_type = "access" }.',
        default=None,
    )
    also_accept: tuple[str, ...] | None = setting(
        ListOf(Choice(*KINDS)),
        'Kinds of tokens to accept although they are marked as no access tokens: ["refresh"] on '
        "the route where tokens are refreshed.",
        default=None,
    )
    realm: str | None = setting(Text(), "The name of the protected area.", default=None)
    cache_size: int | None = setting(
        Integer(0), "The number of verified tokens that are cached.", default=None
    )
    deny_list: bool | None = setting(
        Flag(),
        "Check tokens against the deny list, which is in the gateway's store, so that tokens "
        "can be revoked before they expire.",
        default=None,
    )
    on_store_error: str | None = setting(
        Choice("refuse", "allow"),
        "What to do with requests while the store of the deny list fails.",
        default=None,
    )


@table
class BodyLimitOptions:
    """Reject request bodies that are too large."""

    limit: int | None = setting(Size(), "The maximum size of a request body.", default=None)


@table
class CorsOptions:
    """CORS: allow browsers to call from other origins' pages."""

    origins: tuple[str, ...] = setting(
        ListOf(Text(), least=1),
        'The allowed origins: "https://shop.example", "https://*.shop.example", '
        '"http://localhost:*" for any port, "*", or "package.module:function", called with the '
        "origin.",
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(Text()), 'Allowed methods; "*" for any.', default=None
    )
    headers: tuple[str, ...] | None = setting(
        ListOf(Text()), "Allowed request fields.", default=None
    )
    expose: tuple[str, ...] | None = setting(
        ListOf(Text()), "Response fields that scripts may read.", default=None
    )
    credentials: bool | None = setting(Flag(), "Allow credentials, such as cookies.", default=None)
    max_age: float | None = setting(
        Duration(zero=True), "How long browsers cache a preflight response.", default=None
    )
