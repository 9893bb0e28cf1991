"""The protected resources of a file (RFC 9728), derived from its routes and middlewares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wsgigate.auth.challenge import checked_scopes
from wsgigate.auth.dpop import DEFAULT_ALGORITHMS
from wsgigate.auth.jwk import ASYMMETRIC
from wsgigate.auth.resource import ProtectedResource, check_url
from wsgigate.config.middlewares import Middleware
from wsgigate.config.model import Config

__all__ = ["Resources"]


class Resources:
    """The protected resources of a gateway; none without ``gateway.resource``.

    Each route with an authenticator or authorizer of its own is a resource, whose URL is that of
    the gateway and the path up to its first parameter. Everything else is the gateway's.

    :raises ValueError: ``gateway.resource`` is no URL of a resource.
    """

    def __init__(self, config: Config) -> None:
        self._of_lists: dict[str, ProtectedResource] = {}
        base = config.gateway.resource
        if base is None:
            self.all: tuple[ProtectedResource, ...] = ()
            return
        check_url("resource", base)
        base = base.removesuffix("/")
        lists = dict(config.middleware_lists())
        everywhere = lists.pop("middleware")
        by_url: dict[str, list[Middleware]] = {base: [*everywhere]}
        urls = {"middleware": base}
        for (path, entries), route in zip(lists.items(), config.routes, strict=True):
            own = any(map(_protects, entries))
            pattern = route.path or next(iter(route.paths), "")
            url = urls[path] = base + _literal(pattern) if own else base
            if own:
                by_url.setdefault(url, []).extend([*everywhere, *entries])
            if not any(map(_protects, everywhere)):
                by_url[base] += entries
        made = {
            url: _resource(url, config.gateway.name, entries) for url, entries in by_url.items()
        }
        self.all = tuple(made.values())
        self._of_lists = {path: made[url] for path, url in urls.items()}

    def metadata_url(self, path: str) -> str | None:
        """Return the URL for the challenges of a list of middlewares.

        :param path: The key path of the list.
        """
        resource = self._of_lists.get(path)
        return None if resource is None else resource.metadata_url


def _resource(url: str, name: str, entries: Sequence[Middleware]) -> ProtectedResource:
    """Return the resource that all of *entries* protect, on one route or another."""
    tokens = [each.options or {} for each in _flat(entries) if each.use in _TOKENS]
    with_proofs = [each for each in tokens if each.get("dpop", "off") != "off"]
    algorithms = [name for each in with_proofs for name in _proof_algorithms(each)]
    return ProtectedResource(
        url,
        tuple(dict.fromkeys(_issuers(entries))),
        frozenset(_scopes(entries)),
        name,
        dpop_algorithms=tuple(dict.fromkeys(algorithms)),
        dpop_required=bool(algorithms) and all(each.get("dpop") == "required" for each in tokens),
        certificate_bound=any(each.get("certificate_bound", "off") != "off" for each in tokens),
    )


_TOKENS = ("authenticator", "introspection")
"""The middlewares that accept access tokens."""


def _proof_algorithms(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the algorithms of proofs; the middleware reports one that is not supported."""
    for name in options.get("dpop_algorithms", DEFAULT_ALGORITHMS):
        if name in ASYMMETRIC:
            yield name


def _protects(entry: Middleware) -> bool:
    return any(each.use in (*_TOKENS, "authorizer") for _, each in entry.flat())


def _flat(entries: Sequence[Middleware]) -> Iterator[Middleware]:
    return (each for entry in entries for _, each in entry.flat())


def _literal(pattern: str) -> str:
    """Return the path up to its first parameter, without a trailing slash."""
    segments: list[str] = []
    for segment in pattern.split("/"):
        if "{" in segment or "*" in segment:
            break
        segments.append(segment)
    return "/".join(segments).rstrip("/")


def _issuers(entries: Sequence[Middleware]) -> Iterator[str]:
    """Yield the issuers that are URLs; others are no authorization servers."""
    for entry in _flat(entries):
        options = entry.options or {}
        for each in (options, *options.get("issuers", ())):
            issuer = each.get("issuer") if isinstance(each, Mapping) else None
            try:
                check_url("issuer", issuer)
            except ValueError:
                continue
            yield str(issuer)


def _scopes(entries: Sequence[Middleware]) -> Iterator[str]:
    """Yield the scopes that are required; the middleware reports one that is malformed."""
    for entry in _flat(entries):
        options: Mapping[str, Any] = entry.options or {}
        for each in (options, *options.get("rules", ())) if _protects(entry) else ():
            try:
                yield from checked_scopes(each.get("scopes", ()))
            except ValueError:
                continue
