"""Balancing in the file: who takes the next request, and which clients stay where they are."""

from __future__ import annotations

from typing import Any

from wsgigate.config.kinds import Choice, Duration, Flag, Secret, Text
from wsgigate.config.tables import given, setting, table
from wsgigate.limit_keys import key_of
from wsgigate.proxy.stickiness import Stickiness
from wsgigate.rules.balance import POLICIES
from wsgigate.wsgi import Key

__all__ = ["POLICY", "Balance", "ServiceSticky", "balance_of", "stickiness"]

POLICY = Choice(*POLICIES)


@table
class Balance:
    """Who of a service's instances takes the next request."""

    use: str = setting(POLICY, "The policy.", default="two-choices")
    key: str | None = setting(
        Text('"address", "subject", "header:NAME", "cookie:NAME", "claim:NAME" or "path:NAME"'),
        "What tells requests that belong together, for consistent-hash; the address unless said.",
        default=None,
    )
    slow_start: float | None = setting(
        Duration(zero=True),
        "In which time an instance that has become well gets all of its share.",
        default=None,
    )


@table
class ServiceSticky:
    """How clients stay with the instance that answered them first."""

    secret: str = setting(
        Secret(), "What the cookie is signed with, the same on all gateways.", repr=False
    )
    cookie: str | None = setting(
        Text('a cookie\'s name such as "shop"', pattern=r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"),
        "The cookie's name; \"wsgigate-\" and the service's unless said.",
        default=None,
    )
    max_age: float | None = setting(
        Duration(),
        "How long it is valid, renewed after half of that; as long as a client keeps it.",
        default=None,
    )
    path: str | None = setting(
        Text('a path such as "/shop"', pattern=r"/[^;\x00-\x1f\x7f]*"),
        'The path that clients send it with; "/" unless said.',
        default=None,
    )
    keep_draining: bool | None = setting(
        Flag(), "Whether an instance that drains keeps the clients it has.", default=None
    )


def balance_of(balance: Balance | str | None) -> dict[str, Any]:
    """Return what a pool is told of how requests are spread.

    :raises ValueError: It contradicts itself; says how.
    """
    if not isinstance(balance, Balance):
        balance = Balance() if balance is None else Balance(use=balance)
    told = given(balance, only=("slow_start",))
    if balance.use == "consistent-hash":
        told["key"] = _key(balance.key or "address")
    elif balance.key is not None:
        raise ValueError("key: is for consistent-hash alone")
    return {"balance": balance.use, **told}


def _key(name: str) -> Key:
    try:
        return key_of(name)
    except ValueError as error:
        raise ValueError(f"key: {error}") from None


def stickiness(service: str, options: ServiceSticky) -> Stickiness:
    """Return what has the clients of *service* stay as *options* say.

    :raises ValueError: A setting is not of its form; says which.
    """
    settings = given(options, without=("secret",))
    return Stickiness(service, options.secret.encode("utf-8", "surrogatepass"), **settings)
