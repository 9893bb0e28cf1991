"""The options of each middleware that a file can name.

An option that is left out is None and never passed on, so that every default stands in one place:
the middleware's own constructor.
"""

from __future__ import annotations

from wsgigate.config.kinds import Choice, Duration, Flag, Integer, Secret, Size, Text
from wsgigate.config.tables import Either, ListOf, setting, table
from wsgigate.config.texts import QuotaText
from wsgigate.middleware.limiter import FAMILIES
from wsgigate.rules.algorithms import ALGORITHMS
from wsgigate.rules.quota import Quota
from wsgigate.tokens import ALGORITHMS as SIGNATURES

__all__ = [
    "AuthenticatorOptions",
    "BodyLimitOptions",
    "CorsOptions",
    "LimiterOptions",
    "LoggerOptions",
    "RequestIdOptions",
]

_KEY = r"address|subject|route|api-key|header:[A-Za-z0-9!#$%&'*+.^_`|~-]+|path:[A-Za-z_]\w*"


def _listed(value: object) -> bool:
    return isinstance(value, list)


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


@table
class LimiterOptions:
    """Refuse a caller that has used up its quota."""

    quota: Quota = setting(QuotaText(), 'How many requests in what time: "100 per 15 minutes".')
    algorithm: str | None = setting(Choice(*ALGORITHMS), "How they are counted.", default=None)
    key: tuple[str, ...] | str | None = setting(
        Either(
            _listed,
            ListOf(Text('a key such as "address"', pattern=_KEY), least=1),
            Text(
                '"address", "subject", "route", "api-key", "header:NAME" or "path:NAME"',
                pattern=_KEY,
            ),
        ),
        "Who is counted: address, subject (of the token), route, api-key, header:NAME, path:NAME; "
        "a list counts each combination.",
        default=None,
    )
    name: str | None = setting(
        Text(),
        "Names the policy in RateLimit fields; limiters of one name count together.",
        default=None,
    )
    fields: tuple[str, ...] | None = setting(
        ListOf(Choice(*FAMILIES)), "The response fields that tell.", default=None
    )
    on_store_error: str | None = setting(
        Choice("allow", "refuse"), "What happens while the store fails.", default=None
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
        ListOf(Text(), least=1), 'The sites: "https://shop.example", or "*".'
    )
    methods: tuple[str, ...] | None = setting(ListOf(Text()), "Allowed methods.", default=None)
    headers: tuple[str, ...] | None = setting(ListOf(Text()), "Allowed fields.", default=None)
    expose: tuple[str, ...] | None = setting(
        ListOf(Text()), "Response fields that scripts may read.", default=None
    )
    credentials: bool | None = setting(Flag(), "Whether cookies may come along.", default=None)
    max_age: float | None = setting(
        Duration(zero=True), "How long browsers keep the answer.", default=None
    )
