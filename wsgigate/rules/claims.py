"""What the claims of a token must say to be believed (RFC 7519), and which scopes they grant."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wsgigate.rules.compact import TokenRejected, shown

__all__ = ["ClaimRules", "granted_scopes"]

_LARGEST = 2.0**53  # of a moment; beyond it seconds are no longer told apart
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class ClaimRules:
    """Whom a token must come from, whom it must be for, and when.

    ``exp`` is required and ``sub``, where there is one, must be a text. A token is good from
    ``nbf - leeway`` on and until right before ``exp + leeway`` (RFC 7519 sections 4.1.4, 4.1.5). A
    token for an audience is refused when none is expected (section 4.1.3).

    :param issuer: What ``iss`` must be, to the letter; None asks for nothing.
    :param audience: One or several names of this gateway: ``aud`` must hold one of them.
    :param leeway: How many seconds clocks may differ.
    :param max_lifetime: How many seconds may lie between ``iat`` and ``exp``; None is no limit.
    :param typ: What the header's ``typ`` must be, such as ``at+jwt``; None asks for nothing.
    :raises ValueError: One of these cannot be.
    """

    def __init__(
        self,
        *,
        issuer: str | None = None,
        audience: str | Sequence[str] | None = None,
        leeway: float = 30.0,
        max_lifetime: float | None = None,
        typ: str | None = None,
    ) -> None:
        self.issuer = None if issuer is None else _text("issuer", issuer)
        names = [audience] if isinstance(audience, str) else audience
        if names is not None and not names:
            raise ValueError("audience: an empty list would refuse every token")
        self.audience = frozenset(_text("audience", name) for name in names or ())
        if not (_is_number(leeway) and leeway >= 0):
            raise ValueError(f"leeway: seconds, 0 or more, not {leeway!r}")
        self.leeway = float(leeway)
        if max_lifetime is not None and not (_is_number(max_lifetime) and max_lifetime > 0):
            raise ValueError(f"max_lifetime: seconds, more than 0, not {max_lifetime!r}")
        self.max_lifetime = max_lifetime
        self.typ = None if typ is None else _media_type(_text("typ", typ))

    def check_header(self, header: Mapping[str, Any]) -> None:
        """Refuse a header that asks for something else than a plain signed token.

        Keys that the token brings along, or points to (``jwk``, ``jku``, ``x5c``, ``x5u``), are
        not even looked at.

        :raises TokenRejected: It does; says what.
        """
        for name in ("crit", "b64"):
            if name in header:
                raise TokenRejected(f"a header with {name}")
        kid = header.get("kid", "")
        if not isinstance(kid, str) or len(kid) > 256 or _CONTROL.search(kid):
            raise TokenRejected(f"a kid that is no short text: {shown(kid)}")
        if self.typ is not None:
            typ = header.get("typ")
            if not isinstance(typ, str) or _media_type(typ) != self.typ:
                raise TokenRejected(f"typ is {shown(typ)}")

    def check(self, claims: Mapping[str, Any], now: float) -> float:
        """Return when the verified *claims* end, the leeway included.

        :param now: Unix time in seconds.
        :raises TokenRejected: They are not to be believed now; says why.
        """
        exp = _moment(claims, "exp")
        if exp is None:
            raise TokenRejected("no exp")
        until = exp + self.leeway
        if now >= until:
            raise TokenRejected(f"expired {now - exp:.0f} s ago")
        nbf, iat = _moment(claims, "nbf"), _moment(claims, "iat")
        if nbf is not None and nbf - self.leeway > now:
            raise TokenRejected(f"not good for another {nbf - now:.0f} s")
        if iat is not None and iat - self.leeway > now:
            raise TokenRejected(f"issued {iat - now:.0f} s in the future")
        if self.max_lifetime is not None:
            if iat is None:
                raise TokenRejected("no iat, and there is a longest lifetime")
            if exp - iat > self.max_lifetime:
                raise TokenRejected(f"good for {exp - iat:.0f} s, longer than allowed")
        self._check_names(claims)
        return until

    def _check_names(self, claims: Mapping[str, Any]) -> None:
        if self.issuer is not None and claims.get("iss") != self.issuer:
            raise TokenRejected(f"issued by {shown(claims.get('iss'))}")
        if self.audience or "aud" in claims:
            aud = claims.get("aud")
            names = [aud] if isinstance(aud, str) else aud
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise TokenRejected(f"aud is {shown(aud)}")
            if self.audience.isdisjoint(names):
                raise TokenRejected(f"meant for {shown(aud)}")
        if "sub" in claims:
            sub = claims["sub"]
            if not isinstance(sub, str) or not sub or _CONTROL.search(sub):
                raise TokenRejected(f"sub is {shown(sub)}")


def granted_scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes in ``scope`` (RFC 8693 section 4.2), ``scp`` or ``scopes``.

    Each is a text of names with spaces between, or a list of names; anything else grants nothing.
    """
    granted: set[str] = set()
    for name in ("scope", "scp", "scopes"):
        value = claims.get(name)
        if isinstance(value, str):
            granted.update(value.split(" "))
        elif isinstance(value, list):
            granted.update(item for item in value if isinstance(item, str))
    return frozenset(granted - {""})


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if not _is_number(value) or abs(value) > _LARGEST:
        raise TokenRejected(f"{name} is {shown(value)}")
    return float(value)


def _is_number(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
    )


def _text(setting: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{setting}: expected a text, not {value!r}")
    return value


def _media_type(typ: str) -> str:
    return typ.lower().removeprefix("application/")
