"""Checks across keys: whether the parts of a file are consistent with each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from wsgigate.config.errors import Errors, at, shown
from wsgigate.config.middlewares import MIDDLEWARES, VERIFIERS, Middleware
from wsgigate.config.model import Config, FallbackTable, GatewayTable, RouteTable
from wsgigate.config.tables import suggestion
from wsgigate.config.types import is_loopback
from wsgigate.http.caller import alternatives
from wsgigate.http.forwarded import UNIX
from wsgigate.store import NETWORKED

__all__ = ["check_across"]

_OF_SERVICES = (
    *("strip_prefix", "add_prefix", "request_fields", "response_fields"),
    *("preserve_host", "rewrite_location", "rewrite_cookies", "forward_authorization"),
    "websocket",
)

_WAYS = ("service", "services", "app")

Warnings = list[tuple[str, str]]


def check_across(
    config: Config, errors: Errors, warnings: Warnings, *, mounted: bool = False
) -> None:
    """Add contradictions to *errors*, and probable mistakes to *warnings*.

    :param mounted: Whether the gateway wraps an app, which is its fallback.
    """
    _check_gateway(config, errors, warnings, mounted)
    falls_back = mounted or config.gateway.fallback is not None
    for index, route in enumerate(config.routes):
        _check_route(route, at("routes", index), config, errors, falls_back)
    _check_services(config, errors, warnings)
    _check_faults(config, warnings)
    _check_api_keys(config, errors, warnings)
    _check_client_certificates(config, errors, warnings)
    _check_registry(config, errors)
    _check_metrics(config, errors, warnings)
    _warn_of_guarded_health(config, warnings)
    certificates = False
    for path, entries in config.middleware_lists():
        outside = () if path == "middleware" else config.middleware
        verified = _warn_of_unverified_certificates(entries, path, certificates, warnings)
        certificates = verified if path == "middleware" else certificates
        _check_keys(entries, outside, path, errors, warnings)
        _check_combined(entries, path, errors, warnings)


def _check_gateway(config: Config, errors: Errors, warnings: Warnings, mounted: bool) -> None:
    gateway = config.gateway
    if mounted and gateway.fallback is not None:
        errors.add("gateway.fallback", "the fallback is the app that the gateway wraps; remove it")
    if gateway.bind.startswith("unix:") and UNIX.isdisjoint(gateway.trusted_proxies):
        errors.add(
            "gateway.bind",
            'the peers of a Unix socket have no address; add "unix" to gateway.trusted_proxies, '
            "so that the proxy in front can tell the clients apart",
        )
    if gateway.http2 and gateway.tls is None and not errors.under("gateway.tls"):
        errors.add("gateway.http2", "requires TLS: set gateway.tls.cert")
    if gateway.identity and not any(entry.verifies for entry in config.middlewares()):
        warnings.append(
            ("gateway.identity", "no middleware verifies tokens, so these fields are never sent")
        )
    if gateway.internal_token and not any(entry.verifies for entry in config.middlewares()):
        warnings.append(
            ("gateway.internal_token", "no middleware verifies callers, so no token is ever signed")
        )
    scheme, _, rest = config.store.url.partition(":")
    if scheme in NETWORKED and gateway.name == GatewayTable().name and "prefix=" not in rest:
        warnings.append(
            (
                "gateway.name",
                "all gateways without a name that use this store share their counts; "
                "set gateway.name, or add ?prefix= to store.url",
            )
        )
    served = config.routes or config.admin or config.registry or gateway.fallback or mounted
    if not (served or errors):
        warnings.append(("routes", "no routes, so every request gets a 404"))


def _check_route(
    route: RouteTable, path: str, config: Config, errors: Errors, falls_back: bool
) -> None:
    if errors.exactly(path):  # not a table
        return
    if route.path and route.paths:
        errors.add(path, "path and paths are mutually exclusive; give one of them")
    elif not (
        route.path
        or route.paths
        or errors.under(at(path, "path"))
        or errors.under(at(path, "paths"))
    ):
        errors.add(path, "requires path or paths")
    ways = [key for key in _WAYS if getattr(route, key)]
    if len(ways) > 1:
        errors.add(path, f"{' and '.join(ways)} are mutually exclusive; give one of them")
    elif route.app is not None:
        for key in _OF_SERVICES:
            if getattr(route, key):
                errors.add(at(path, key), "applies to routes with a service only, not with an app")
    elif not ways and not any(errors.under(at(path, key)) for key in _WAYS):
        errors.add(path, "requires service, services or app")
    _check_shaping(route, path, config, errors)
    if route.percent is not None and not falls_back:
        errors.add(
            at(path, "percent"),
            "requires gateway.fallback, the app that gets the other requests of this path",
        )
    if isinstance(route.strip_prefix, str):
        for pattern in route.paths or ((route.path,) if route.path else ()):
            if not _begins(pattern, route.strip_prefix):
                errors.add(
                    at(path, "strip_prefix"),
                    f"the path {shown(pattern)} does not begin with {shown(route.strip_prefix)}",
                )


def _check_shaping(route: RouteTable, path: str, config: Config, errors: Errors) -> None:
    _check_service(route.service, at(path, "service"), config.services, errors)
    names = [share.service for share in route.services]
    for index, name in enumerate(names):
        where = at(at(at(path, "services"), index), "service")
        _check_service(name, where, config.services, errors)
        if name is not None and name in names[:index]:
            errors.add(where, f"{shown(name)} is listed twice")
    weightless = names and not any(share.weight for share in route.services)
    if weightless and not errors.under(at(path, "services")):
        errors.add(at(path, "services"), "at least one service needs a weight above 0")
    if route.split is not None and not names and route.percent is None:
        errors.add(at(path, "split"), "requires services or percent, by which it divides requests")
    if route.fallback is not None:
        _check_fallback(route.fallback, at(path, "fallback"), config.services, errors)
    if route.mirror is not None:
        where = at(at(path, "mirror"), "service")
        _check_service(route.mirror.get("service"), where, config.services, errors)


def _check_service(name: object, path: str, services: Collection[str], errors: Errors) -> None:
    """Add an error at *path* unless *name* is one of *services*."""
    known = isinstance(name, str) and name in services
    if not known and name is not None and not errors.under(at("services", str(name))):
        near = suggestion(str(name), list(services))
        errors.add(path, f"there is no service {shown(name)}{near}")


def _check_fallback(
    fallback: FallbackTable, path: str, services: Collection[str], errors: Errors
) -> None:
    """Add the contradictions in *fallback* to *errors*."""
    if errors.under(path):
        return
    kinds = [
        key for key in ("service", "app", "body", "file") if getattr(fallback, key) is not None
    ]
    if len(kinds) > 1:
        errors.add(path, f"{' and '.join(kinds)} are mutually exclusive; give one of them")
    elif not kinds and not fallback.stale:
        errors.add(path, "requires one of stale, service, app, body and file")
    if not {"body", "file"} & set(kinds):
        for key in ("status", "content_type"):
            if getattr(fallback, key) is not None:
                errors.add(at(path, key), "applies to a fixed response only: set body or file")
    _check_service(fallback.service, at(path, "service"), services, errors)


def _begins(pattern: str, prefix: str) -> bool:
    parts, wanted = pattern.split("/"), prefix.rstrip("/").split("/")
    return len(parts) >= len(wanted) and all(
        have == want or (_any(have) and _any(want))
        for have, want in zip(parts, wanted, strict=False)
    )


def _any(segment: str) -> bool:
    return segment == "*" or segment.startswith("{")


def _check_registry(config: Config, errors: Errors) -> None:
    registry = config.registry
    if registry is None:
        return
    if registry.open and not is_loopback(config.gateway.bind):
        errors.add(
            "registry.open",
            "requires a gateway that listens on loopback, "
            f"but gateway.bind is {shown(config.gateway.bind)}",
        )
    if config.admin is not None and config.admin.prefix == registry.prefix:
        errors.add("registry.prefix", "is also admin.prefix; the two must differ")


def _check_metrics(config: Config, errors: Errors, warnings: Warnings) -> None:
    bind, own = config.metrics_bind, config.gateway.bind
    if config.metrics is None or bind is None:
        return
    if bind.endswith(":0"):
        errors.add(
            "metrics.bind", "requires a port above 0, which Prometheus can be configured with"
        )
    elif bind.rpartition(":")[2] == own.rpartition(":")[2]:
        errors.add(
            "metrics.bind",
            f"must have another port than gateway.bind, which is {shown(own)}: the port tells the "
            "listeners apart",
        )
    elif not is_loopback(bind):
        warnings.append(
            (
                "metrics.bind",
                f"everyone who can reach {bind} can read the metrics; "
                "listen on an address of the monitoring network only",
            )
        )


def _warn_of_guarded_health(config: Config, warnings: Warnings) -> None:
    """Warn where a middleware of all requests may reject a balancer that probes /health."""
    if config.admin is None:
        return
    prefix = config.admin.prefix
    path = f"{prefix}/health"
    for index, entry in enumerate(config.middleware):
        options = entry.options or {}
        if entry.use in _LIMITERS and not options.get("observe"):
            answer = "429"
        elif entry.requires_caller:
            answer = "401"
        else:
            continue
        exempt, only = options.get("exempt"), options.get("only")
        if _may_select(exempt, path) or (only is not None and not _may_select(only, path)):
            continue
        warnings.append(
            (
                at("middleware", index),
                f"may answer {answer} to a balancer that probes {path}; probe {prefix}/readyz, "
                f'which passes no middleware, or add exempt = {{ paths = ["{path}"] }}',
            )
        )


_LIMITERS = ("limiter", "concurrency-limiter")


def _may_select(selection: Any, path: str) -> bool:
    """Return whether a table of paths, methods and others, or a function, may select *path*."""
    if not isinstance(selection, Mapping):
        return selection is not None  # a function, whose choice is unknown
    paths = selection.get("paths")
    if not paths:
        return True  # by other criteria
    return any(
        _begins(path, each.removesuffix("/*")) and (each.endswith("/*") or _begins(each, path))
        for each in paths
    )


def _check_services(config: Config, errors: Errors, warnings: Warnings) -> None:
    routed = {name for route in config.routes for name in route.service_names()}
    routed |= {each.fallback.service for each in config.services.values() if each.fallback}
    for name, service in config.services.items():
        path = at("services", name)
        if name not in routed:
            warnings.append((path, "no route leads to it"))
        if service.fallback is not None:
            _check_fallback(service.fallback, at(path, "fallback"), config.services, errors)
        if service.tls is not None:
            if service.tls.ca is not None and not service.tls.verify:
                errors.add(at(path, "tls"), "verify = false ignores ca; remove one of them")
            urls = [i if isinstance(i, str) else i.get("url") for i in service.instances or ()]
            if urls and not any(url and url.startswith("https:") for url in urls):
                warnings.append((at(path, "tls"), "none of its instances is https://"))
        hosts = config.preserved_hosts(name)
        health = service.health
        if (
            health is not None
            and health.get("type") != "tcp"
            and any(hosts)
            and not (health.get("host") or service.host or config.virtual_host(name))
        ):
            warnings.append(
                (
                    at(path, "health"),
                    "has no host, while clients use several hosts (preserve_host); a virtual "
                    "host may respond to none of them; set health.host",
                )
            )
        several = len(service.instances) > 1 or service.discover is not None
        if service.breaker is not None and service.outlier is None and several:
            warnings.append(
                (
                    at(path, "breaker"),
                    "without outlier, one failing instance of several opens the circuit for all of "
                    "them; add outlier = {}",
                )
            )
        if service.tls is not None and not service.tls.verify:
            warnings.append(
                (
                    at(at(path, "tls"), "verify"),
                    "certificates are not verified, so any server can impersonate this service",
                )
            )


def _check_api_keys(config: Config, errors: Errors, warnings: Warnings) -> None:
    """Add warnings for API keys that nothing accepts, or that may be lost."""
    if errors.under("api_keys"):
        return
    if not config.uses_api_keys():
        if config.api_keys is not None and not errors:  # as an invalid entry may accept them
            warnings.append(
                ("api_keys", 'no middleware accepts them; add one with use = "api-key"')
            )
        return
    if config.api_keys is not None and config.api_keys.file is not None:
        return
    kind = config.store.url.partition(":")[0]
    if kind == "memory":
        lost = "API keys in memory: are lost when the process ends"
    elif kind == "lmdb":
        lost = "API keys in lmdb: may be lost at a power failure, as it is not written through"
    else:
        return
    warnings.append(("store.url", f'{lost}; set api_keys.file, such as "keys.json", or use redis:'))


def _check_client_certificates(config: Config, errors: Errors, warnings: Warnings) -> None:
    """Check that certificates can arrive where they are expected from."""
    gateway, tls = config.gateway, config.gateway.tls
    if tls is not None and tls.client_cert == "required" and tls.client_ca is None:
        errors.add("gateway.tls.client_ca", "is required for required client certificates")
    for path, entry in config.middlewares_at():
        if entry.use != "client-certificate" or entry.options is None:
            continue
        source = entry.options.get("source", "server")
        if source != "server" and not gateway.trusted_proxies:
            errors.add(
                at(path, "source"),
                f"{shown(source)} requires gateway.trusted_proxies: certificates in fields are "
                "accepted from trusted proxies only",
            )
        elif source == "server" and (tls is None or tls.client_ca is None):
            warnings.append(
                (
                    at(path, "source"),
                    "the gateway asks clients for no certificate; set gateway.tls.client_ca, or "
                    'the source if a proxy ends TLS, such as "xfcc"',
                )
            )


def _warn_of_unverified_certificates(
    entries: Sequence[Middleware], path: str, verified: bool, warnings: Warnings
) -> bool:
    """Add warnings for tokens that are bound to a certificate which nothing before has verified.

    :param verified: Whether a middleware before *entries* verifies certificates.
    :returns: Whether one does for those behind *entries*.
    """
    for index, entry in enumerate(entries):
        here = at(path, index)
        if entry.of:
            verified = _warn_of_unverified_certificates(
                entry.of, at(here, "of"), verified, warnings
            )
        bound = (entry.options or {}).get("certificate_bound", "off")
        if bound != "off" and not verified:
            warnings.append(
                (
                    at(here, "certificate_bound"),
                    "tokens that are bound to a certificate are rejected, as nothing before this "
                    "middleware verifies one; put a client-certificate before it",
                )
            )
        verified = verified or entry.use == "client-certificate"
    return verified


def _check_faults(config: Config, warnings: Warnings) -> None:
    for path, entries in config.middleware_lists():
        for index, entry in enumerate(entries):
            enabled = entry.use == "faults" and (entry.options or {}).get("enabled")
            if enabled and not config.gateway.fault_injection:
                warnings.append((at(path, index), "has no effect: gateway.fault_injection is off"))


def _check_combined(
    entries: Sequence[Middleware], path: str, errors: Errors, warnings: Warnings
) -> None:
    """Add errors for middlewares in ``of`` that are no authenticators.

    Add warnings for alternatives that never name the caller: what they decide has no effect.
    """
    for index, entry in enumerate(entries):
        where = at(at(path, index), "of")
        for number, each in enumerate(entry.of):
            if each.use in MIDDLEWARES and not each.verifies:
                errors.add(
                    at(at(where, number), "use"),
                    f"{shown(each.use)} does not verify callers; put it before or after "
                    f"{shown(entry.use)}, which combines {', '.join(VERIFIERS)}",
                )
            names_caller = each.use != "forward-auth" or (each.options or {}).get("header_field")
            if entry.use == "any-of" and not names_caller:
                warnings.append(
                    (
                        at(at(where, number), "header_field"),
                        "without it the service names no caller, so that requests that it allows "
                        "pass as anonymous ones, without the fields and cookies of its answer",
                    )
                )
        _check_combined(entry.of, where, errors, warnings)


def _check_keys(
    entries: Sequence[Middleware],
    outside: Sequence[Middleware],
    path: str,
    errors: Errors,
    warnings: Warnings,
) -> None:
    """Add errors for limiters whose key is unknown at their position: they would limit nothing.

    Add warnings for those that do not limit anonymous requests, which an authenticator lets pass.
    """
    verifiers = [entry for entry in outside if entry.verifies]
    known = {"subject"} if verifiers else set()
    if path != "middleware":
        known |= {"route", "path"}
    for index, entry in enumerate(entries):
        if entry.verifies:
            known.add("subject")
            verifiers.append(entry)
        if entry.use == "authorizer" and "subject" not in known:
            errors.add(at(path, index), _UNVERIFIED)
        if entry.use not in ("limiter", "concurrency-limiter"):
            continue
        options = entry.options or {}
        here = at(path, index)
        given = options.get("key", ())
        keys = (given,) if isinstance(given, str) else given
        for key in keys:
            # the last alternative is the key of requests that have none of the others
            names = alternatives(key)
            last = names[-2] if names[-1] == "exempt" and len(names) > 1 else names[-1]
            _check_key(last, key, known, at(here, "key"), errors)
            anonymous = verifiers and not any(_requires_token(each) for each in verifiers)
            if anonymous and len(names) == 1 and names[0].partition(":")[0] in _OF_CALLER:
                warnings.append((at(here, "key"), _PASSES_ANONYMOUS.format(shown(key), key)))
        plan = options.get("plan", "")
        if plan.startswith("claim:") and "subject" not in known:
            errors.add(at(here, "plan"), _NEEDS_AUTHENTICATOR.format(shown(plan)))


_OF_CALLER = ("subject", "client", "issuer", "plan", "claim")

_PASSES_ANONYMOUS = (
    "{} does not limit requests without a token, which the authenticator lets pass; add an "
    'alternative, such as "{}|address", or "|exempt" if that is intended'
)

_UNVERIFIED = "requires a verified caller; add an authenticator before this authorizer"

_NEEDS_AUTHENTICATOR = "{} requires a verified token; add an authenticator before this limiter"


def _requires_token(entry: Middleware) -> bool:
    """Return whether no request passes without a token; unknown for a factory."""
    return entry.use not in VERIFIERS or entry.requires_caller


def _check_key(last: str, key: str, known: set[str], path: str, errors: Errors) -> None:
    kind = last.partition(":")[0]
    if kind in ("route", "path") and kind not in known:
        errors.add(path, f"{shown(key)} is available to the middlewares of a route only")
    elif kind in _OF_CALLER and "subject" not in known:
        errors.add(path, _NEEDS_AUTHENTICATOR.format(shown(key)))
