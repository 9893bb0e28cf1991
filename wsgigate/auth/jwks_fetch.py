"""Fetching the keys that an issuer publishes: a JWK set, or a discovery document that names one.

The endpoint may be broken or hostile. Redirects are not followed, every answer is bounded in size
and time, connections are made with TLS (plain http within this machine only), and addresses that no
instance may have, such as those of metadata services, are rejected. Of the keys, only the members
that verification needs are used.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from urllib.parse import urlsplit

from wsgigate.auth.jwk import Jwk, OtherUse, public_members, read_jwk, read_jwks
from wsgigate.auth.jwks_record import JwksAnswer
from wsgigate.client import endpoint
from wsgigate.client.destinations import Destinations
from wsgigate.client.dial import Check
from wsgigate.client.exchange import HttpClient, reason_for
from wsgigate.http.bodies import InvalidJson, read_object, shown
from wsgigate.http.fields import unix_time
from wsgigate.http.forwarded import IPAddress
from wsgigate.runtime.clocks import wall
from wsgigate.runtime.logs import one_line
from wsgigate.runtime.tls import context_for

__all__ = ["MOST_BYTES", "FetchFailed", "check_url", "fetch", "usable_keys"]

MOST_BYTES = 256 * 1024
"""Maximum size of a JWK set and of a discovery document."""

TIMEOUT = 5.0
"""Maximum seconds for fetching one document."""


class FetchFailed(Exception):
    """There is no answer; the message does not name a host."""


def check_url(url: str, setting: str) -> None:
    """Check that keys may be fetched from *url*.

    :raises ValueError: They may not; the message begins with *setting*.
    """
    endpoint.check_url(
        url,
        setting,
        example="https://id.example.com/keys",
        plain=", as an attacker who changes the keys on the way can sign tokens; http is allowed "
        "for this machine only. Keys that cannot be fetched by https can be given as jwks_file",
    )


_EVERYWHERE = Destinations(["0.0.0.0/0", "::/0"])
"""Issuers are at any address that instances may have in any network."""


def _loopback_only(address: IPAddress, port: int) -> None:
    if not address.is_loopback:
        raise ValueError("plain http is allowed for this machine only")


def fetch(
    url: str,
    *,
    discovers: bool,
    ca: str | None = None,
    stopping: threading.Event | None = None,
    now: Callable[[], float] = wall,
) -> JwksAnswer:
    """Return the keys that the issuer at *url* publishes.

    :param url: The URL of its JWK set, or the issuer to discover.
    :param discovers: Whether it is an issuer: its discovery document names the URL of its keys.
    :param ca: A file of trusted certificate authorities.
    :param stopping: When it is set, the call ends within half a second.
    :param now: Returns the Unix time.
    :raises FetchFailed: There is no usable answer.
    :raises Stopped: *stopping* was set.
    """
    get = partial(_get, ca=ca, stopping=stopping)
    if discovers:
        url = _discovered(url, get)
    body, fields = get(url)
    try:
        keys, left_out = usable_keys(read_jwks(body))
    except ValueError as error:
        raise FetchFailed(f"its answer is no set of keys: {one_line(error)}") from None
    if not keys:
        why = f": {left_out[0]}" if left_out else ""
        raise FetchFailed(f"its set has no key that verifies signatures{why}")
    return JwksAnswer(keys, _made(fields, now()), _max_age(fields), left_out)


def _discovered(issuer: str, get: Callable[[str], tuple[bytes, Mapping[str, str]]]) -> str:
    """Return the URL of the keys of *issuer*, by OpenID Connect Discovery 1.0 or RFC 8414."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    try:
        body, _ = get(f"{origin}{path}/.well-known/openid-configuration")
    except _Missing:
        body, _ = get(f"{origin}/.well-known/oauth-authorization-server{path}")
    try:
        document = read_object(body, "discovery document")
    except InvalidJson as error:
        raise FetchFailed(f"its answer is not usable: {one_line(error)}") from None
    named, url = document.get("issuer"), document.get("jwks_uri")
    if named != issuer:
        raise FetchFailed(
            f"its discovery document is that of the issuer {shown(named)}, not {shown(issuer)}; "
            "both must be the same text"
        )
    if not isinstance(url, str):
        raise FetchFailed("its discovery document has no jwks_uri")
    try:
        check_url(url, "jwks_uri")
    except ValueError as error:
        raise FetchFailed(one_line(error)) from None
    if url.lower().startswith("http:") and parts.scheme.lower() != "http":
        raise FetchFailed(f"jwks_uri: {shown(url)} must begin with https://")
    return url


class _Missing(FetchFailed):
    """There is no such document."""


def _get(
    url: str, *, ca: str | None, stopping: threading.Event | None
) -> tuple[bytes, Mapping[str, str]]:
    parts = urlsplit(url)
    check: Check = _EVERYWHERE.check if parts.scheme.lower() == "https" else _loopback_only
    client = HttpClient(
        f"{parts.scheme.lower()}://{parts.netloc}", lambda: context_for(ca or True), check=check
    )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = {
        "Accept": "application/jwk-set+json, application/json",
        "Accept-Encoding": "identity",  # without it, any coding is acceptable (RFC 9110, 12.5.3)
        "User-Agent": "wsgigate",
    }
    try:
        with client.send("GET", target, fields, timeout=TIMEOUT, stopping=stopping) as reply:
            if reply.status in (404, 410):
                raise _Missing(f"it answered {reply.status}: there is no such document")
            if 300 <= reply.status < 400:
                raise FetchFailed(f"it answered {reply.status}: redirects are not followed")
            if reply.status != 200:
                raise FetchFailed(f"it answered {reply.status}")
            body = reply.body(MOST_BYTES + 1)
            found = reply.fields
    except PermissionError as error:  # an address that is not allowed
        raise FetchFailed(str(error).replace("an instance", "an issuer")) from None
    except (OSError, ValueError) as error:
        raise FetchFailed(reason_for(error)) from None
    if len(body) > MOST_BYTES:
        raise FetchFailed(f"its answer is larger than {MOST_BYTES} bytes")
    return body, found


def usable_keys(keys: Sequence[Jwk]) -> tuple[tuple[Jwk, ...], tuple[str, ...]]:
    """Return the public members of those *keys* that can be used, and why others cannot.

    Keys for another purpose are left out silently.
    """
    usable: list[Jwk] = []
    left_out: list[str] = []
    for number, jwk in enumerate(keys):
        try:
            read_jwk(jwk)
        except OtherUse:
            continue
        except ValueError as error:
            left_out.append(one_line(f"keys[{number}]: {error}"))
            continue
        usable.append(public_members(jwk))
    return tuple(usable), tuple(left_out)


def _made(fields: Mapping[str, str], now: float) -> float | None:
    date = unix_time(fields.get("date", ""))
    if date is None:
        return None
    age = fields.get("age", "").strip()
    seconds = float(age) if age.isascii() and age.isdigit() and len(age) <= 10 else 0.0
    return min(date - seconds, now)  # a date in the future would make all later answers old


_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=\"?([0-9]{1,10})\"?(?=$|[\s,;])", re.IGNORECASE)


def _max_age(fields: Mapping[str, str]) -> float | None:
    found = _MAX_AGE.search(fields.get("cache-control", ""))
    return None if found is None else float(found[1])
