"""Build a gateway from a configuration.

Nothing is opened and nothing starts here. A ValueError of a constructor becomes an error at the key
path that the object was built from; the rest is still built, so that all errors are reported at
once.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.admin.access import AdminAccess, Role
from wsgigate.admin.api import AdminApi, Group
from wsgigate.admin.api_keys import api_key_group
from wsgigate.admin.dashboard import dashboard_group, history_group
from wsgigate.admin.endpoints import (
    Facts,
    ServiceFacts,
    describe_features,
    describe_routes,
    status_group,
)
from wsgigate.admin.instances import instance_group
from wsgigate.admin.limits import limit_group
from wsgigate.admin.openapi import openapi_group
from wsgigate.admin.operations import (
    circuit_counts,
    circuit_group,
    circuit_statuses,
    deny_group,
    maintenance_group,
    notices_document,
)
from wsgigate.admin.probes import ReadinessFacts, livez, readyz
from wsgigate.admin.reads import ReadFacts, read_group
from wsgigate.admin.reload import CanReload, reload_group
from wsgigate.auth.endpoints import RemoteEndpoints
from wsgigate.auth.passwords import read_users
from wsgigate.auth.throttle import TokenGuard
from wsgigate.config.build_admin import WorkerIdentity, middleware_names, route_documents
from wsgigate.config.build_routes import (
    MiddlewareStack,
    RouteApps,
    RouteEntry,
    Routes,
    leading_loggers,
    maintenance_scopes,
    policy_name,
)
from wsgigate.config.build_services import Services
from wsgigate.config.errors import ConfigError, Errors
from wsgigate.config.load import ParsedFile, read_file
from wsgigate.config.masked import config_hash, masked_of
from wsgigate.config.model import INTERNAL_TOKEN, Admin, Config, MetricsTable
from wsgigate.config.registry import registered_in, registry_of, registry_routes
from wsgigate.config.tables import arguments_for
from wsgigate.config.types import import_app, is_loopback
from wsgigate.coordination.api_keys import read_file as read_keys
from wsgigate.coordination.circuit import Circuit
from wsgigate.coordination.leader import LogLeader
from wsgigate.coordination.maintenance import GATEWAY, MaintenanceSwitch
from wsgigate.coordination.overrides import Overrides
from wsgigate.coordination.worker_reports import StableTimes, WorkerReports
from wsgigate.discovery.health import HealthChecker
from wsgigate.gateway import Gateway
from wsgigate.http.limits import CallerLimit
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.http.reserved import ReservedPaths
from wsgigate.http.wsgi import environ_key
from wsgigate.middleware.client_address import ClientAddress
from wsgigate.middleware.guard import Guard
from wsgigate.middleware.metrics import Metrics, metrics_page, record_in, set_duration_buckets
from wsgigate.middleware.published_keys import PublishedKeys
from wsgigate.middleware.request_id import RequestId
from wsgigate.middleware.resource_metadata import ResourceMetadata
from wsgigate.middleware.tracing import Tracing
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.proxy.request import RequestMaker
from wsgigate.registry import Registry
from wsgigate.rules.routing import Route
from wsgigate.runtime import drain, fork
from wsgigate.server_check import changed_keys, first_request_check
from wsgigate.store import NETWORKED, DamagedStore, MisconfiguredStore, Store, StoreError, usage
from wsgigate.store.memory import MemoryStore
from wsgigate.store.open import open_store
from wsgigate.telemetry.history import History, ring_beside
from wsgigate.telemetry.metrics import PROCESS
from wsgigate.telemetry.recent_errors import recent_errors
from wsgigate.telemetry.span_export import SpanExport, environment_exports
from wsgigate.telemetry.trace_context import sampler_ratio
from wsgigate.units import iso_time

if TYPE_CHECKING:
    from wsgigate.auth.internal_token import InternalTokens

__all__ = [
    "BuiltGateway",
    "assemble",
    "build",
    "certificate_files",
    "check",
    "check_certificate",
    "check_file",
    "check_store_later",
    "client_authorities",
    "load",
    "outage_of",
    "worker_report",
]


# The gateway's own certificate.


def certificate_files(config: Config, path: str) -> tuple[str, str] | None:
    """Return the files of the certificate and of its key; None without ``gateway.tls``.

    :param path: The file that *config* was read from; relative names refer to its folder.
    """
    tls = config.gateway.tls
    if tls is None:
        return None
    folder = Path(path).absolute().parent if path else Path.cwd()
    return str(folder / tls.cert), str(folder / (tls.key or tls.cert))


def client_authorities(config: Config, path: str) -> str | None:
    """Return the file of the authorities of client certificates; None without ``client_ca``.

    :param path: The file that *config* was read from; relative names refer to its folder.
    """
    tls = config.gateway.tls
    if tls is None or tls.client_ca is None:
        return None
    return str((Path(path).absolute().parent if path else Path.cwd()) / tls.client_ca)


def check_certificate(config: Config, path: str) -> None:
    """Check that the certificate and its key can be read, and match.

    :raises ValueError: They cannot be used; the message begins with the name of the key.
    """
    files = certificate_files(config, path)
    if files is None:
        return
    for name, file in zip(("cert", "key"), files, strict=True):
        if not Path(file).is_file():
            raise ValueError(f"{name}: file {file} does not exist")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(
            *files, password=lambda: b""
        )  # otherwise OpenSSL prompts on the terminal
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror or str(error)
        if files[0] == files[1]:
            raise ValueError(
                f"{files[0]} cannot be used: {why}; it must be a PEM file with the certificate and "
                "its key without a password, or key must name the file of the key"
            ) from None
        raise ValueError(
            f"{files[0]} and its key cannot be used: {why}; "
            "they must be PEM files, the key without a password"
        ) from None
    authorities = client_authorities(config, path)
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except OSError as error:
            why = getattr(error, "reason", None) or error.strerror or str(error)
            raise ValueError(f"client_ca: {authorities} cannot be used: {why}") from None


# What the gateway's own endpoints report.


def worker_report(
    services: Services,
    steady: StableTimes,
    now: Callable[[], float] = time.time,
    about: Callable[[], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return this worker's report on its services, which all workers can read.

    :param about: Returns what the worker says of itself.
    """
    ejections = {name: pool.ejections() for name, pool in services.pools.items()}
    moment = now()
    report = {
        "about": {} if about is None else about(),
        "circuits": circuit_counts(services.circuits, now, steady),
        "bulkheads": {name: each.status() for name, each in services.bulkheads.items()},
        "ejections": {
            name: {
                url: [
                    steady(f"{name} since {url}", moment - since),
                    steady(f"{name} until {url}", moment + left),
                    why,
                ]
                for url, (since, left, why) in each.items()
            }
            for name, each in ejections.items()
            if each
        },
    }
    return {what: value for what, value in report.items() if value}


def _store_status(kind: str, store: Store, workers: WorkerReports) -> dict[str, Any]:
    status: dict[str, Any] = {"kind": kind}
    try:
        store.get("health")  # a networked store reports no usage, so this read tests it
        status |= usage(store)
        if workers.failing_since is None:
            return status
    except StoreError:  # its message names files and hosts, which belong in the log only
        pass
    since = workers.failing_since
    status["error"] = "Store unavailable"
    return status if since is None else {**status, "since": iso_time(since)}


def _port(bind: str) -> int | None:
    return None if bind.startswith("unix:") else int(bind.rpartition(":")[2])


class BuiltGateway(NamedTuple):
    """A gateway, with the parts it was built from.

    :ivar own: The routes of its own endpoints; in the dispatcher they precede the entries.
    :ivar key_paths: The key path of the middleware that needs an issuer's keys or an endpoint, by
        the name of these.
    :ivar endpoints: The endpoints that middlewares ask about requests.
    :ivar circuits: The circuit breakers of services.
    :ivar limits: A limiter of each name.
    """

    gateway: Gateway
    dispatcher: Dispatcher
    own: tuple[Route[WSGIApplication], ...]
    entries: tuple[RouteEntry, ...]
    key_paths: Mapping[str, str] = MappingProxyType({})
    endpoints: RemoteEndpoints | None = None
    circuits: tuple[Circuit, ...] = ()
    limits: Mapping[str, CallerLimit] = MappingProxyType({})


def build(config: Config, *, path: str = "", started: float | None = None) -> Gateway:
    """Return the gateway that *config* describes.

    :param path: The file it was read from: it identifies the gateway's own store, and relative file
        names refer to its folder.
    :param started: When the gateway started, in seconds since 1970. Default: now; earlier when
        other processes served it before.
    :raises ConfigError: The gateway cannot be built; the exception has all errors.
    """
    return assemble(config, path=path, started=started).gateway


def load(
    path: str | None = None,
    *,
    fallback: WSGIApplication | None = None,
    refuse: Refuse = answer_with,
) -> Gateway:
    """Return the gateway that the file at *path* describes.

    :param path: The file; ``$WSGIGATE_CONFIG`` when ``None``.
    :param fallback: The app for requests that no route matches, such as the Flask or Django app
        that the gateway wraps, instead of ``gateway.fallback`` of the file.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it,
        for rejections by middlewares and routes without an answer.
    :raises ConfigError: The file cannot be read, or the gateway cannot be built.
    """
    if path is None:
        path = os.environ.get("WSGIGATE_CONFIG", "")
        if not path:
            raise ConfigError(
                "",
                [
                    (
                        "",
                        "the environment variable WSGIGATE_CONFIG is not set; "
                        "set it to the gateway's file",
                    )
                ],
            )
    parsed = read_file(path, mounted=fallback is not None)
    gateway = assemble(
        parsed.config, path=path, errors=parsed.errors, fallback=fallback, refuse=refuse
    ).gateway
    check_store_later(gateway, f"correct store.url in {path}")
    return gateway


def check_store_later(gateway: Gateway, cure: str) -> None:
    """Let the first request check the store, as no command does before the gateway serves.

    :param cure: The remedy that the error recommends if the store is misconfigured.
    """
    store: Any = gateway.store
    if hasattr(store, "checked"):
        store.checked, store.cure = False, cure


def check(config: Config, *, path: str = "") -> None:
    """Check that the gateway can be built, and that its store and certificate can be used.

    An outage of the store is no error.

    :raises ConfigError: The gateway cannot be built, or its store is misconfigured.
    """
    check_file(ParsedFile(config, Errors(), []), path)


def check_file(
    parsed: ParsedFile,
    path: str,
    *,
    asks: bool = False,
    offline: bool = False,
    fallback: WSGIApplication | None = None,
) -> BuiltGateway:
    """Build *parsed*, and check that its store and certificate can be used.

    A store that is unavailable at the moment is a warning: a running gateway continues without it,
    so one that starts during the outage must start too. So is an issuer of tokens whose keys cannot
    be fetched, and an endpoint that does not answer.

    :param asks: Whether to fetch the keys of issuers, and to ask the endpoints that middlewares ask
        about requests, which takes up to some seconds each.
    :param offline: Whether to send nothing to any other machine.
    :param fallback: The app that the gateway wraps, as for :func:`load`.
    :raises ConfigError: The file, the store or the certificate is invalid.
    """
    built = assemble(parsed.config, path=path, errors=parsed.errors, fallback=fallback)
    networked = parsed.config.store.url.partition(":")[0] in NETWORKED
    sources = built.gateway.key_sources
    if asks and not offline and sources is not None:
        for issuer, why in sources.probe().items():
            text = f"the keys of {issuer} cannot be fetched: {why}; {_UNTIL_FETCHED}"
            parsed.warnings.append((built.key_paths.get(issuer, ""), text))
    if asks and not offline and built.endpoints is not None:
        for name, why in built.endpoints.probe().items():
            text = f"{name} cannot be asked: {why}; {_UNTIL_ANSWERED}"
            parsed.warnings.append((built.key_paths.get(name, ""), text))
    try:
        trouble = "" if offline and networked else outage_of(built.gateway.store)
    except MisconfiguredStore as error:
        parsed.errors.add("store.url", str(error))
    else:
        if trouble:
            parsed.warnings.append(("store.url", trouble))
    parsed.errors.catch(
        "gateway.tls",
        lambda: check_certificate(parsed.config, path),
        keys=["cert", "key", "client_ca"],
    )
    _check_api_keys(parsed, path)
    _check_users(parsed, path)
    parsed.errors.raise_any(path)
    return built


def _check_api_keys(parsed: ParsedFile, path: str) -> None:
    """Check the file of the API keys; an absent one is a warning, as a command makes it."""
    table = parsed.config.api_keys
    if table is None or table.file is None or parsed.errors.under("api_keys.file"):
        return
    file, key = _beside(path) / table.file, "api_keys.file"
    if not file.exists():
        parsed.warnings.append(
            (key, f"{file} does not exist, so every key is refused; wsgigate keys create makes it")
        )
        return
    _check_credentials(parsed, key, file, lambda data: read_keys(str(file), data)[1])


def _check_users(parsed: ParsedFile, path: str) -> None:
    """Check the files of users."""
    for where, entry in parsed.config.middlewares_at():
        key = f"{where}.users_file"
        if entry.use == "basic" and entry.options and not parsed.errors.under(key):
            file = _beside(path) / entry.options["users_file"]
            _check_credentials(parsed, key, file, lambda data: read_users(data)[1])


def _beside(path: str) -> Path:
    return Path(path).absolute().parent if path else Path.cwd()


def _check_credentials(
    parsed: ParsedFile, key: str, file: Path, errors_in: Callable[[bytes], Sequence[str]]
) -> None:
    """Check a file of credentials.

    An invalid entry is a warning: it refuses one caller only, and the gateway starts without it.
    """
    try:
        errors = errors_in(file.read_bytes())
    except OSError as error:
        parsed.errors.add(key, f"{file} cannot be read: {error.strerror or error}")
    except ValueError as error:
        parsed.errors.add(key, f"{file}: {error}")
    else:
        parsed.warnings.extend((key, f"{file}: {error}; this entry is ignored") for error in errors)


_UNTIL_FETCHED = (
    "the gateway starts without them, and answers their tokens with 503 until it has them"
)


_UNTIL_ANSWERED = "the gateway starts without it, and answers its requests with 503 meanwhile"


def outage_of(store: Store) -> str:
    """Return why *store* is unavailable at the moment; empty if it is available.

    :raises MisconfiguredStore: The store stays unusable until its configuration changes.
    """
    look = getattr(store, "check", None)
    try:
        if look is not None:
            look()
    except MisconfiguredStore:
        raise
    except StoreError as error:
        if isinstance(error, DamagedStore):
            return str(error)
        return f"{error}; the gateway starts without its store and uses it once it answers"
    return ""


def assemble(
    config: Config,
    *,
    path: str = "",
    errors: Errors | None = None,
    started: float | None = None,
    fallback: WSGIApplication | None = None,
    refuse: Refuse = answer_with,
) -> BuiltGateway:
    """Build the gateway; return it with the parts it was built from.

    :param errors: Errors found before; their keys are skipped, and they are reported with the rest.
    :param fallback: The app that the gateway wraps, as for :func:`load`.
    :param refuse: As for :func:`load`.
    :raises ConfigError: There are errors.
    """
    errors = Errors() if errors is None else errors
    began = time.time() if started is None else started
    builder = _GatewayBuilder(config, path, errors, began, fallback, refuse)
    built = builder.built()
    errors.raise_any(path)
    return built


class _GatewayBuilder:
    def __init__(
        self,
        config: Config,
        path: str,
        errors: Errors,
        started: float,
        fallback: WSGIApplication | None,
        refuse: Refuse,
    ) -> None:
        self._config = config
        self._started = started
        self._wrapped_app = fallback
        self._refuse = refuse
        self._errors = errors
        self._file = os.path.abspath(path) if path else ""
        self._folder = Path(self._file).parent if self._file else Path.cwd()
        self._starting: list[Callable[[], object]] = []
        self._closing: list[Callable[[], object]] = []
        self._store = self._open_store()
        self._log_leader = LogLeader(self._store, f"log/{policy_name(config.gateway.name)}/")
        self._stack = MiddlewareStack(
            config,
            self._store,
            self._folder,
            errors,
            mounted=fallback is not None,
            refuse=refuse,
        )
        self._identity = self._checked_identity()
        self._internal_tokens = self._made_internal_tokens()
        self._registry = self._made_registry()
        self._services = Services(
            config,
            self._store,
            name=policy_name(config.gateway.name),
            via=self._via(),
            identity=self._identity,
            internal_tokens=self._internal_tokens,
            folder=self._folder,
            errors=errors,
            registry=self._registry,
            may_log=self._log_leader.may_log,
        )

    def built(self) -> BuiltGateway:
        gateway, services = self._config.gateway, self._services
        health = services.checker()
        switch = MaintenanceSwitch(
            self._store, name=policy_name(gateway.name), may_log=self._log_leader.may_log
        )
        route_apps = RouteApps(self._config, services, switch, self._folder, self._errors)
        fallback = self._fallback()
        if fallback is not None:
            fallback = route_apps.maintained(fallback, GATEWAY)
        routes = Routes(self._config, route_apps, self._stack, self._errors, fallback=fallback)
        described = [entry.route for entry in routes.entries]
        maintained = self._config.maintenance is not None
        about = None if self._config.admin is None else WorkerIdentity(self._config).report
        overrides = None
        if self._config.admin is not None:
            overrides = Overrides(
                self._store,
                services.pools,
                name=policy_name(gateway.name),
                may_log=self._log_leader.may_log,
            )
        workers = WorkerReports(
            self._store,
            partial(worker_report, services, StableTimes(), about=about),
            prefix=f"workers/{policy_name(gateway.name)}/",
            beside=[
                *([switch.look] if maintained else []),
                *([] if overrides is None else [overrides.look]),
            ],
            quiet=self._config.store.url.partition(":")[0]
            in NETWORKED,  # such a store logs its outages itself
        )
        history = History(
            lambda: ring_beside(PROCESS.storage),
            # without the collectors, which read the store for what a history does not keep
            lambda: PROCESS.storage.totals(PROCESS.in_flight),
            states=lambda: {
                each.name: each.status(fresh=True).state.value for each in services.circuits
            },
        )
        own = self._own_routes(
            described, health, switch, workers, history, overrides, reloads=lambda: made.reloads
        )
        dispatcher = routes.dispatcher(
            own, registry=self._registry_routes(), identity=self._identity, refuse=self._refuse
        )
        made = Gateway(
            self._with_reserved_paths(self._around(dispatcher), switch),
            name=gateway.name,
            version=gateway.version,
            store=self._store,
            pools=services.pools,
            health=health,
            registry=self._registry,
            watcher=services.watcher(),
            key_sources=self._stack.key_sources,
            reports=workers if self._config.admin is not None or maintained else None,
            history=history if self._config.admin is not None else None,
            routes=dispatcher.routes,
            self_check=gateway.self_check,
            log_level=gateway.log_level,
            log_json=self._config.logs_json,
            first=first_request_check(
                gateway.self_check,
                keeps_slashes=any(route.encoded_slash == "keep" for route in dispatcher.routes),
                changed=changed_keys(gateway),
            ),
            starting=self._starting,
            stopping=[
                services.tunnels.stop,
                *([] if self._registry is None else [self._registry.stopping]),
            ],
            closing=[
                *self._stack.closing,
                *route_apps.closing,
                *(sessions.close for sessions in services.sessions.values()),
                *self._closing,
                self._log_leader.stop,
            ],
        )
        return BuiltGateway(
            made,
            dispatcher,
            tuple(own),
            tuple(routes.entries),
            self._stack.key_paths,
            self._stack.endpoints,
            tuple(services.circuits),
            self._stack.limits,
        )

    def _own_routes(
        self,
        described: Sequence[Route[WSGIApplication]],
        health: HealthChecker,
        switch: MaintenanceSwitch,
        workers: WorkerReports,
        history: History,
        overrides: Overrides | None,
        reloads: Callable[[], CanReload | None],
    ) -> list[Route[WSGIApplication]]:
        """Return the routes of the gateway's own endpoints; none without an ``[admin]`` table.

        :param described: The routes of the file, which ``/info`` lists.
        :param reloads: Returns what reloads the file in this worker; None if nothing does.
        """
        config, errors, services = self._config, self._errors, self._services
        admin, gateway = config.admin, config.gateway
        if admin is None or errors.under("admin.prefix"):
            return []
        entries = config.middlewares()
        found = {watch.service: watch.status for watch in services.watches}
        facts = Facts(
            gateway.name,
            gateway.version,
            _port(gateway.bind),
            {
                name: ServiceFacts(
                    pool,
                    config.services[name].routes,
                    found.get(name),
                    bool(config.services[name].max_in_flight),
                )
                for name, pool in services.pools.items()
            },
            describe_routes(described, prefix=admin.prefix, given=admin.routes),
            describe_features(
                {entry.use for entry in entries},
                services=bool(config.services),
                health=bool(services.checks),
                given=admin.features,
            ),
        )
        circuits = services.circuits

        def counts() -> dict[str, dict[str, Any]]:
            return {worker: each.get("circuits", {}) for worker, each in workers.all().items()}

        kind = config.store.url.partition(":")[0]  # the scheme only: the URL may contain a password
        registry = self._registry

        def preserving() -> bool:
            return registry is not None and any(
                each.preserving for each in registry.listings().values()
            )

        reads = ReadFacts(
            name=gateway.name,
            version=gateway.version,
            file=self._file,
            hash=config_hash(config),
            loaded=time.time(),
            started=lambda: self._started,
            services=facts.services,
            pools=services.pools,
            routes=route_documents(config),
            middlewares=middleware_names(config.middleware),
            configuration=lambda: masked_of(config),
            health=health,
            store=lambda: _store_status(kind, self._store, workers),
            workers=workers.all,
            circuits=lambda: circuit_statuses(circuits, workers=counts().values()),
            maintenance=lambda: (
                {} if config.maintenance is None else notices_document(switch.known())
            ),
            preserving=None if registry is None else preserving,
            recent=history.last_minute if config.records_metrics else None,
            errors=(lambda: recent_errors(PROCESS.events)) if config.records_metrics else None,
        )
        groups = [
            read_group(reads, now=time.time),
            history_group(history, None if registry is None else lambda: registered_in(registry)),
            status_group(
                facts,
                health=health,
                store=lambda: _store_status(kind, self._store, workers),
                circuits=(lambda: circuit_statuses(circuits, workers=counts().values()))
                if circuits
                else None,
                maintenance=None
                if config.maintenance is None
                else lambda: notices_document(switch.known()),
                workers=workers.all,
                issuers=self._stack.key_sources.status,
                endpoints=self._stack.endpoints.status,
                started=lambda: self._started,
            ),
        ]
        if circuits:
            groups.append(circuit_group(circuits, workers=counts))
        if any(
            entry.use == "authenticator" and entry.options and entry.options.get("deny_list")
            for entry in entries
        ):
            groups.append(deny_group(self._stack.deny_list))
        if overrides is not None and services.pools:
            groups.append(instance_group(overrides, services.pools))
        if self._stack.limits:
            groups.append(limit_group(self._stack.limits))
        groups.append(reload_group(reloads))
        if config.uses_api_keys():
            groups.append(api_key_group(self._stack.api_keys))
        if config.maintenance is not None:
            groups.append(maintenance_group(switch, maintenance_scopes(config)))
        return self._admin_routes(admin, groups, described)

    def _admin_routes(
        self, admin: Admin, groups: list[Group], described: Sequence[Route[WSGIApplication]]
    ) -> list[Route[WSGIApplication]]:
        """Return the routes of the endpoints of *groups*, and of their description.

        :param described: The routes of the file, which take precedence over some of them.
        """
        access = self._errors.catch(
            "admin", lambda: self._admin_access(admin), keys=["token", "viewer_token"]
        )
        if access is None:
            return []
        groups.append(openapi_group([*groups], admin.prefix))
        groups.append(dashboard_group(admin.prefix))  # a page for people, which is no API
        api = self._errors.catch(
            "admin.prefix", lambda: AdminApi(groups, access=access, prefix=admin.prefix)
        )
        if api is None:
            return []
        others = [*described]
        if self._wrapped_app is not None or self._config.gateway.fallback is not None:
            others.append(Route("/", Problem(404)))  # it answers every path that no route matches
        return api.routes(others)

    def _admin_access(self, admin: Admin) -> AdminAccess:
        gateway = self._config.gateway
        local = is_loopback(gateway.bind) and not gateway.bind.startswith("unix:")
        return AdminAccess(
            admin.token,
            admin.viewer_token,
            hosts=[*admin.hosts, *gateway.allowed_hosts] if local or admin.hosts else None,
            origins=admin.origins,
            guard=TokenGuard(
                self._store,
                prefix=f"admin/{policy_name(gateway.name)}/",
                called="admin tokens",
            ),
        )

    def _open_store(self) -> Store:
        url = self._config.store.url
        scheme, _, place = url.partition(":")
        if url == "lmdb:" and fork.tested():
            return MemoryStore()  # counts that persist after a test run fail the next one
        # across machines the name alone identifies a gateway: the path of its file may differ
        owner = self._config.gateway.name if scheme in NETWORKED else self._owner()
        if scheme == "lmdb" and place:
            url = f"lmdb:{self._folder / Path(place).expanduser()}"
        try:
            store = self._errors.catch("store.url", lambda: open_store(url, owner=owner))
        except StoreError as error:
            self._errors.add("store.url", str(error))
            store = None
        if store is None:
            return MemoryStore()  # so that the rest can be checked
        if hasattr(store, "checked"):
            store.checked = True  # from now on any error of the store is an outage
        return store

    def _made_registry(self) -> Registry | None:
        settings, gateway = self._config.registry, self._config.gateway
        if settings is None:
            return None
        make = partial(
            registry_of,
            settings,
            self._store,
            name=policy_name(gateway.name),
            bind=gateway.bind,
        )
        return self._errors.catch("registry", make)

    def _registry_routes(self) -> list[tuple[str, Route[WSGIApplication]]]:
        settings, gateway = self._config.registry, self._config.gateway
        if settings is None or self._registry is None:
            return []
        return registry_routes(
            settings,
            self._registry,
            self._errors,
            threads=gateway.threads,
            name=gateway.name,
            version=gateway.version,
            started=self._started,
        )

    def _fallback(self) -> WSGIApplication | None:
        name = self._config.gateway.fallback
        if self._wrapped_app is not None or name is None:
            return self._wrapped_app
        return self._errors.catch("gateway.fallback", partial(import_app, name))

    def _around(self, app: WSGIApplication) -> WSGIApplication:
        """Return *app* in the gateway-wide middlewares.

        There are two guards. The inner one answers failures inside, and its response is logged,
        counted and given an id like any other; the outer one answers failures of the middlewares.

        Loggers that only request ids precede are outside of ClientAddress, so that requests which
        ClientAddress rejects are logged too: a logger reads the client's address at the end.
        """
        gateway, entries = self._config.gateway, self._config.middleware
        outside = leading_loggers(entries)
        inside = set(range(len(entries))) - outside
        app = self._with_metadata(Guard(app, refuse=self._refuse), outside)
        ids = [entry.options or {} for entry in entries if entry.use == "request-id"]
        refuse = self._refuse
        if gateway.request_id:
            refuse = _refuse_with_id(refuse, ids[0].get("header") if ids else None)
            app = app if ids else RequestId(app)
        fields = [*self._identity]
        if self._internal_tokens and self._internal_tokens.field.lower() != "authorization":
            fields.append(self._internal_tokens.field)
        if fields:  # before any middleware that reads them
            app = _without_fields(app, fields)
        app = self._traced(app)
        app = ClientAddress(
            app,
            trusted_proxies=gateway.trusted_proxies,
            source=gateway.forwarded,
            refuse=refuse,
        )
        return Guard(self._stack.around(app, entries, "middleware", "default", without=inside))

    def _readiness(self, switch: MaintenanceSwitch) -> ReadinessFacts:
        """Return what decides whether the gateway should get requests."""
        services = self._config.services
        statuses = {watch.service: watch.status() for watch in self._services.watches}
        pools = self._services.pools
        required = {
            name: table.required_for_readiness
            for name, table in services.items()
            if table.required_for_readiness
        }
        return ReadinessFacts(
            stopping=bool(drain.SERVER),
            maintenance=self._config.maintenance is not None and GATEWAY in switch.known(),
            available={name: len(pools[name].available()) for name in required if name in pools},
            required=required,
            unanswered=tuple(
                name
                for name, status in statuses.items()
                if status["age"] is None and "error" not in status
            ),
        )

    def _with_reserved_paths(
        self, app: WSGIApplication, switch: MaintenanceSwitch
    ) -> WSGIApplication:
        """Return *app*, measured, behind the paths that are answered before the middlewares."""
        config = self._config
        admin, bind, errors = config.admin, config.metrics_bind, self._errors
        own: dict[str, WSGIApplication] = {
            "/livez": livez,
            "/readyz": readyz(partial(self._readiness, switch)),
        }
        paths: dict[str, WSGIApplication] = {}
        if admin is not None and not errors.under("admin"):
            paths |= {admin.prefix + path: each for path, each in own.items()}
        if config.records_metrics:
            app = self._measured(app)
            own["/metrics"] = metrics_page(lambda environ: None)
            if admin is not None and not errors.under("admin"):
                paths[f"{admin.prefix}/metrics"] = self._metrics_page(admin)
        if bind is None and not paths:
            return app
        return ReservedPaths(app, self._unless_routed(paths), listener_paths=own, bind=bind)

    def _measured(self, app: WSGIApplication) -> WSGIApplication:
        table = self._config.metrics or MetricsTable()
        if table.buckets:
            self._errors.catch("metrics.buckets", lambda: set_duration_buckets(table.buckets))
        folder = (
            None if table.folder is None else str(self._folder / Path(table.folder).expanduser())
        )
        record_in(self._owner(), folder=folder, max_series=table.max_series)
        return Metrics(app)

    def _metrics_page(self, admin: Admin) -> WSGIApplication:
        """Return the metrics below the admin prefix, for those who may read."""
        if self._config.metrics is not None and self._config.metrics.public:
            return metrics_page(lambda environ: None)
        access = self._admin_access(admin)

        def admit(environ: WSGIEnvironment) -> Problem | None:
            try:
                access.admit(environ, Role.VIEWER)
            except Refusal as refusal:
                return refusal.problem
            return None

        gateway = self._config.gateway
        return ClientAddress(
            metrics_page(admit), trusted_proxies=gateway.trusted_proxies, source=gateway.forwarded
        )

    def _unless_routed(self, paths: dict[str, WSGIApplication]) -> dict[str, WSGIApplication]:
        """Return *paths* without those that are the path of a route: the file comes first."""
        routed = {path for route in self._config.routes for path in (route.path, *route.paths)}
        return {path: app for path, app in paths.items() if path not in routed}

    def _traced(self, app: WSGIApplication) -> WSGIApplication:
        """Return *app* in the traces of ``[tracing]``."""
        table, errors = self._config.tracing, self._errors
        if not table.enabled or errors.under("tracing"):
            return app
        arguments = arguments_for(Tracing, table)
        if "sample" not in arguments:
            get = os.environ.get
            ratio = sampler_ratio(
                get("OTEL_TRACES_SAMPLER", ""), get("OTEL_TRACES_SAMPLER_ARG", "")
            )
            arguments |= {} if ratio is None else {"sample": ratio}
        export = self._span_export()
        traced = errors.catch(
            "tracing",
            lambda: Tracing(app, tracer_provider=export, **arguments),
            keys=["accept", "accept_sampled", "sample", "b3"],
        )
        return app if traced is None else traced

    def _span_export(self) -> SpanExport | None:
        """Return the export of spans, if the file or the environment names a collector."""
        table = self._config.tracing
        arguments = arguments_for(SpanExport, table)
        required = table.endpoint is not None or bool(table.headers)
        if not required and not (environment_exports(os.environ) and SpanExport.installed()):
            return None
        export = self._errors.catch(
            "tracing",
            lambda: SpanExport(
                headers=table.headers,
                resource=table.resource,
                fallback_name=self._config.gateway.name,
                **arguments,
            ),
            keys=["endpoint", "headers", "service_name", "resource"],
        )
        if export is not None:
            self._starting.append(export.start)
            self._closing.append(export.close)
        return export

    def _with_metadata(self, app: WSGIApplication, outside: set[int]) -> WSGIApplication:
        """Return *app* in the middlewares, with what is public outside of those that authenticate.

        :param outside: Positions of middlewares to skip.
        """
        entries, resources = self._config.middleware, self._stack.resources
        around = partial(self._stack.around, entries=entries, path="middleware", name="default")
        tokens, options = self._internal_tokens, self._config.gateway.internal_token or {}
        described = resources is not None and resources.all
        if not described and tokens is None:
            return around(app, without=outside)
        guards = (n for n, each in enumerate(entries) if each.verifies or each.use == "authorizer")
        first = next(guards, len(entries))
        app = around(app, without=outside | set(range(first)))
        if resources is not None and resources.all:
            app = ResourceMetadata(app, resources=resources.all)
        if tokens is not None:
            path = options.get("jwks_path", PublishedKeys.PATH)
            app = PublishedKeys(app, jwks=tokens.jwks, path=path)
        return around(app, without=outside | set(range(first, len(entries))))

    def _checked_identity(self) -> Mapping[str, str]:
        identity = self._config.gateway.identity
        if self._errors.under("gateway.identity"):
            return {}
        made = self._errors.catch("gateway.identity", lambda: RequestMaker(identity=identity))
        return {} if made is None else identity

    def _made_internal_tokens(self) -> InternalTokens | None:
        gateway = self._config.gateway
        path, options = "gateway.internal_token", gateway.internal_token
        if options is None or self._errors.under(path):
            return None
        given = {name: value for name, value in options.items() if name != "jwks_path"}
        arguments = INTERNAL_TOKEN.arguments({"issuer": gateway.resource or gateway.name, **given})
        return self._errors.catch(path, lambda: INTERNAL_TOKEN.make(**arguments), keys=[*arguments])

    def _owner(self) -> str:
        name = self._config.gateway.name
        return f"{name} {self._file}" if self._file else name

    def _via(self) -> str:
        gateway = self._config.gateway
        if gateway.via:
            return gateway.via
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", gateway.name).strip("-") or "wsgigate"
        place = f"{socket.gethostname()} {self._file}"
        return f"{name}-{sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def _without_fields(app: WSGIApplication, names: Iterable[str]) -> WSGIApplication:
    """Return *app* without the request fields of these names, in any spelling."""
    keys = tuple(map(environ_key, names))

    def without_fields(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for key in keys:
            environ.pop(key, None)
        return app(environ, start_response)

    return without_fields


def _refuse_with_id(refuse: Refuse, header: str | None) -> Refuse:
    """Return a *refuse* that gives the responses of *refuse* a request id."""
    name = header or "X-Request-ID"
    return lambda problem: RequestId(refuse(problem), header=name, accept="never")
