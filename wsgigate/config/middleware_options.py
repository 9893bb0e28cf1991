"""The options of each middleware that a file can name.

An option that is left out is None and never passed on, so that every default stands in one place:
the middleware's own constructor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsgigate.auth.jwt import ALGORITHMS as SIGNATURES
from wsgigate.auth.jwt import KINDS
from wsgigate.config.tables import Either, ListOf, MapOf, Table, given, setting, table
from wsgigate.config.types import (
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


# Circuit breakers in the file: around a middleware's app, or before a service.

_RULES = frozenset(CircuitRules.__dataclass_fields__)


@table
class ServiceBreaker:
    """When calls are refused because too many fail, and when they are tried again."""

    consecutive_failures: int | None = setting(
        Integer(0), "Failures in a row that open it; 0 for no such rule.", default=None
    )
    connect_failures: int | None = setting(
        Integer(0), "Failed connections in a row that open it; 0 for no such rule.", default=None
    )
    failure_rate: float | None = setting(
        Number(0, 1), "The share of failures that opens it; 0 for no such rule.", default=None
    )
    minimum_calls: int | None = setting(
        Integer(1), "Calls in the window below which no share counts.", default=None
    )
    window: float | None = setting(Duration(), "The time that shares are taken over.", default=None)
    slow_after: float | None = setting(Duration(), "When a call is slow.", default=None)
    slow_rate: float | None = setting(
        Number(0, 1), "The share of slow calls that opens it.", default=None
    )
    open_for: float | None = setting(
        Duration(), "How long it is open at first; each time again, twice as long.", default=None
    )
    open_at_most: float | None = setting(Duration(), "How long it is open at most.", default=None)
    jitter: float | None = setting(
        Number(0, 1), "By up to which share that is shortened, by chance.", default=None
    )
    probes: int | None = setting(
        Integer(1, 1000), "Calls that must pass before it closes.", default=None
    )
    probe_timeout: float | None = setting(
        Duration(), "When a probe that nothing is heard of is given up.", default=None
    )
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(500, 599), least=1), "The statuses that are failures.", default=None
    )


@table
class BreakerOptions(ServiceBreaker):
    """Refuse at once while what is behind keeps failing."""

    enabled: bool | None = setting(
        Flag(), "Whether it does anything; false passes every request on.", default=None
    )
    name: str | None = setting(
        Text(), "Names the circuit; breakers of one name are one.", default=None
    )


def circuit_rules(options: ServiceBreaker) -> CircuitRules:
    """Return the rules that *options* describe: 0 is no rule.

    :raises ValueError: They contradict each other; says how.
    """
    settings: dict[str, Any] = given(options, only=sorted(_RULES))
    for name in ("consecutive_failures", "connect_failures", "failure_rate"):
        if settings.get(name) == 0:
            settings[name] = None
    return CircuitRules(**settings)


# Load shedding in the file.


@table
class ShedderOptions:
    """Refuse what a worker can not answer in good time."""

    enabled: bool | None = setting(
        Flag(), "Whether it does anything; false passes every request on.", default=None
    )
    least: int | None = setting(
        Integer(1), "Requests that may always be under way in a worker.", default=None
    )
    most: int | None = setting(Integer(1), "Requests that may be under way at most.", default=None)
    tolerance: float | None = setting(
        Number(0, 100),
        "By which share answers may take longer than when there is no load.",
        default=None,
    )
    window: float | None = setting(Duration(), "How often the limit is worked out.", default=None)
    window_requests: int | None = setting(
        Integer(1, 500), "Answers that it takes at least.", default=None
    )
    measure_every: float | None = setting(
        Duration(), "How often it is measured what answers take without load.", default=None
    )
    measure_requests: int | None = setting(
        Integer(1, 500), "Answers that it is measured by.", default=None
    )
    jitter: float | None = setting(
        Number(0, 1), "By up to which share that is put off, by chance.", default=None
    )


def shedding_rules(options: ShedderOptions) -> SheddingRules:
    """Return the rules that *options* describe.

    :raises ValueError: They contradict each other; says how.
    """
    return SheddingRules(**given(options, without=("enabled",)))


_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"

_OBJECT = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"

_ONE = rf"(?:address|subject|route|api-key|(?:header|cookie):{_NAME}|claim:[^|]+|path:[A-Za-z_]\w*)"

_KEY = rf"{_ONE}(?: ?\| ?{_ONE})*(?: ?\| ?exempt)?|{_OBJECT}"


def _listed(value: object) -> bool:
    return isinstance(value, list)


def _counted(value: object) -> bool:
    return not isinstance(value, str) or value.isdigit()


_TEXTS = Either(_listed, ListOf(Text(), least=1), Text("text or a list of texts"))

_SECRETS = Either(_listed, ListOf(Secret(), least=1), Secret())


@table
class RequestIdOptions:
    """Give every request an id, for logs, services and the client."""

    header: str | None = setting(Text(), "The field that carries it.", default=None)
    accept: str | None = setting(
        Choice("trusted", "always", "never"), "Whose id is kept as it came.", default=None
    )


@table
class LoggerOptions:
    """Log one line for each request."""

    format: str | None = setting(
        Choice("auto", "json", "text"), "JSON, or text for people.", default=None
    )
    stream: str | None = setting(Choice("stdout", "stderr"), "Where it goes.", default=None)
    queue_size: int | None = setting(
        Integer(1), "Lines kept for a slow reader; more are dropped and counted.", default=None
    )


_QUOTAS = Either(_listed, ListOf(QuotaText(), least=1), QuotasText())

_KEYS = Either(
    _listed,
    ListOf(Text('a key such as "address"', pattern=_KEY), least=1),
    Text(
        '"address", "subject", "route", "api-key", "header:NAME", "cookie:NAME", "claim:NAME", '
        '"path:NAME", several with "|" between them, or "package.module:function"',
        pattern=_KEY,
    ),
)

_KEY_DOC = (
    "Who is counted: address, subject (of the token), route, api-key, header:NAME, cookie:NAME, "
    'claim:NAME, path:NAME, or package.module:function; "subject|address" is the first that is '
    'known, "subject|exempt" exempts the others; a list counts each combination.'
)

_ON_STORE_ERROR = Choice("allow", "refuse")


@table
class ExemptOptions:
    """Requests that are not counted: those of which any key says so."""

    addresses: tuple[str, ...] | None = setting(
        ListOf(Text()), 'Of clients: addresses and networks, "10.0.0.0/8".', default=None
    )
    paths: tuple[str, ...] | None = setting(
        ListOf(Text('a path such as "/health" or "/static/*"', pattern=r"/.*")),
        'Paths; "/static/*" is all below.',
        default=None,
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(Text('a method such as "OPTIONS"', pattern="[A-Z]+")), "Methods.", default=None
    )
    rule: str | None = setting(
        ImportPath("a function"), "A function that tells of anything else.", default=None
    )


@table
class OnlyOptions:
    """The requests that are counted: those of which every key says so."""

    paths: tuple[str, ...] | None = setting(
        ListOf(Text('a path such as "/login" or "/auth/*"', pattern=r"/.*"), least=1),
        'Paths, in every spelling that an app may serve: "/login" is "/login/" and "//login" as '
        'well; "/auth/*" is "/auth" and all below; * and {name} stand for one segment.',
        default=None,
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(Text('a method such as "POST"', pattern="[A-Z]+"), least=1),
        "Methods; GET includes HEAD.",
        default=None,
    )
    ignore_case: bool | None = setting(
        Flag(), "Whether /LOGIN is /login, for an app that serves both.", default=None
    )
    rule: str | None = setting(
        ImportPath("a function"), "A function that must return true as well.", default=None
    )


@table
class LimiterOptions:
    """Refuse a caller that has used up its quota."""

    quota: tuple[Quota, ...] | Quota = setting(
        _QUOTAS,
        'How many requests in what time: "100 per 15 minutes"; of several, a list or '
        '"10/h; 100/d", all must allow one.',
    )
    algorithm: str | None = setting(Choice(*ALGORITHMS), "How they are counted.", default=None)
    key: tuple[str, ...] | str | None = setting(_KEYS, _KEY_DOC, default=None)
    cost: int | str | None = setting(
        Either(_counted, Integer(1), ImportPath("a number, or a function")),
        "As how many requests a request counts: a number, or package.module:function.",
        default=None,
    )
    plans: Mapping[str, tuple[Quota, ...] | Quota] | None = setting(
        MapOf(_QUOTAS), "Other quotas by the name of a plan.", default=None
    )
    plan: str | None = setting(
        Text(
            '"claim:NAME", "header:NAME" or "package.module:function"',
            pattern=rf"claim:.+|header:{_NAME}|{_OBJECT}",
        ),
        "What tells the plan: claim:NAME of the token, header:NAME that no client can set, or "
        "package.module:function. Who has none of the plans has the quota.",
        default=None,
    )
    only: OnlyOptions | None = setting(
        Table(OnlyOptions), "Requests that are counted, if not all.", default=None
    )
    exempt: ExemptOptions | None = setting(
        Table(ExemptOptions), "Requests that are not counted.", default=None
    )
    preflights: bool | None = setting(
        Flag(), "Whether CORS preflight requests are counted too.", default=None
    )
    enabled: bool | None = setting(
        Flag(), "Whether it does anything; false passes every request on.", default=None
    )
    observe: bool | None = setting(
        Flag(), "Only count and log what would be refused.", default=None
    )
    name: str | None = setting(
        Text(),
        "Names the policy in RateLimit fields; limiters of one name count together.",
        default=None,
    )
    fields: tuple[str, ...] | None = setting(
        ListOf(Choice(*FAMILIES)),
        "The response fields that tell; x-ratelimit-epoch and x-ratelimit-seconds are x-ratelimit "
        "with X-RateLimit-Reset in seconds, since 1970 or from now.",
        default=None,
    )
    on_store_error: str | None = setting(
        _ON_STORE_ERROR, "What happens while the store fails.", default=None
    )


@table
class ConcurrencyOptions:
    """Refuse a caller that has too many requests under way."""

    limit: int = setting(Integer(1, LARGEST), "How many a caller may have under way.")
    key: tuple[str, ...] | str | None = setting(_KEYS, _KEY_DOC, default=None)
    only: OnlyOptions | None = setting(
        Table(OnlyOptions), "Requests that are counted, if not all.", default=None
    )
    exempt: ExemptOptions | None = setting(
        Table(ExemptOptions), "Requests that are not counted.", default=None
    )
    preflights: bool | None = setting(
        Flag(), "Whether CORS preflight requests are counted too.", default=None
    )
    lease: float | None = setting(
        Duration(),
        "After how long the places of a worker that died are free again.",
        default=None,
    )
    enabled: bool | None = setting(
        Flag(), "Whether it does anything; false passes every request on.", default=None
    )
    observe: bool | None = setting(
        Flag(), "Only count and log what would be refused.", default=None
    )
    name: str | None = setting(
        Text(),
        "Names the policy in RateLimit fields; limiters of one name count together.",
        default=None,
    )
    fields: tuple[str, ...] | None = setting(
        ListOf(Choice("ratelimit")), "The response fields that tell.", default=None
    )
    on_store_error: str | None = setting(
        _ON_STORE_ERROR, "What happens while the store fails.", default=None
    )


@table
class AuthenticatorOptions:
    """Let pass those with a valid token (JWT) only."""

    algorithms: tuple[str, ...] = setting(
        ListOf(Choice(*SIGNATURES), least=1), "How tokens may be signed; one family."
    )
    secret: tuple[str, ...] | str | None = setting(
        _SECRETS,
        "What HS tokens are signed with; several while one replaces another.",
        default=None,
    )
    secret_file: str | None = setting(Text(), "A file that holds the secret.", default=None)
    public_key: tuple[str, ...] | str | None = setting(
        _TEXTS, "The PEM key that RS, PS, ES and EdDSA tokens are verified with.", default=None
    )
    public_key_file: tuple[str, ...] | str | None = setting(
        _TEXTS, "Files that hold public keys.", default=None
    )
    issuer: str | None = setting(Text(), "Who must have issued it.", default=None)
    audience: tuple[str, ...] | str | None = setting(
        _TEXTS, "Whom it must be meant for.", default=None
    )
    required: bool | None = setting(Flag(), "Whether to refuse without a token.", default=None)
    exempt: ExemptOptions | None = setting(
        Table(ExemptOptions), "Requests that pass unchecked, without claims.", default=None
    )
    preflights: bool | None = setting(
        Flag(), "Whether CORS preflight requests need a token too.", default=None
    )
    scopes: tuple[str, ...] | None = setting(
        ListOf(Text()), "The scopes a token must have, all of them.", default=None
    )
    invalid_token_status: int | None = setting(
        Integer(401, 403), "The answer to a bad token: 401, or 403.", default=None
    )
    leeway: float | None = setting(
        Duration(zero=True), "How far clocks may be apart.", default=None
    )
    max_lifetime: float | None = setting(
        Duration(), "Refuse tokens that are valid for longer.", default=None
    )
    typ: str | None = setting(
        Text(), 'What its header must say it is: "at+jwt" for access tokens.', default=None
    )
    required_claims: tuple[str, ...] | Mapping[str, Any] | None = setting(
        Either(
            _listed,
            ListOf(Text()),
            MapOf(Either(_listed, ListOf(Scalar(), least=1), Scalar())),
        ),
        "Claims that a token must have: a list of names, or a table of names and the value, or one "
        'of the values, that each must be: { token_type = "access" }.',
        default=None,
    )
    also_accept: tuple[str, ...] | None = setting(
        ListOf(Choice(*KINDS)),
        'Kinds of tokens to accept although they are marked as no access tokens: ["refresh"] on '
        "the route where tokens are refreshed.",
        default=None,
    )
    realm: str | None = setting(Text(), "Names the protected area.", default=None)
    cache_size: int | None = setting(Integer(0), "How many verified tokens are kept.", default=None)
    deny_list: bool | None = setting(
        Flag(),
        "Whether tokens can be denied before they end; the store of the gateway has the list.",
        default=None,
    )
    on_store_error: str | None = setting(
        Choice("refuse", "allow"),
        "What happens while the store of the denied tokens fails.",
        default=None,
    )


@table
class BodyLimitOptions:
    """Refuse request bodies that are too large."""

    limit: int | None = setting(Size(), "The largest body allowed.", default=None)


@table
class CorsOptions:
    """Tell browsers which other sites' pages may call."""

    origins: tuple[str, ...] = setting(
        ListOf(Text(), least=1),
        'The sites: "https://shop.example", "https://*.shop.example", "http://localhost:*" for any '
        'port, "*", or "package.module:function", called with the origin.',
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(Text()), 'Allowed methods; "*" for any.', default=None
    )
    headers: tuple[str, ...] | None = setting(ListOf(Text()), "Allowed fields.", default=None)
    expose: tuple[str, ...] | None = setting(
        ListOf(Text()), "Response fields that scripts may read.", default=None
    )
    credentials: bool | None = setting(Flag(), "Whether cookies may come along.", default=None)
    max_age: float | None = setting(
        Duration(zero=True), "How long browsers keep the answer.", default=None
    )
