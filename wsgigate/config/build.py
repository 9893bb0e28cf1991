"""From a configuration to a gateway: the one place where everything meets.

Nothing is opened and nothing starts here. What a constructor refuses becomes an error at the key
path of what it was to be made from; the rest is still built, so that all errors are told at once.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.types import WSGIApplication

from wsgigate.admin.endpoints import Facts, ServiceFacts, describe_features, describe_routes, routes
from wsgigate.admin.operations import (
    circuit_routes,
    circuit_statuses,
    counted,
    deny_route,
    maintenance_routes,
    notices_told,
)
from wsgigate.auth.bearer import require_token
from wsgigate.config.build_routes import (
    Entry,
    MiddlewareStack,
    RouteApps,
    Routes,
    leading_loggers,
    policy_name,
    scopes_of,
)
from wsgigate.config.build_services import Services
from wsgigate.config.errors import ConfigError, Errors
from wsgigate.config.load import Reading, read_file
from wsgigate.config.middleware_options import AuthenticatorOptions
from wsgigate.config.middlewares import import_app
from wsgigate.config.model import Config
from wsgigate.config.registry import registry_of, registry_routes
from wsgigate.coordination.denylist import DenyList
from wsgigate.coordination.leader import LogLeader
from wsgigate.coordination.maintenance import GATEWAY, MaintenanceSwitch
from wsgigate.coordination.worker_reports import Steady, WorkerReports
from wsgigate.discovery.health import HealthChecker
from wsgigate.gateway import Gateway
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.middleware.client_address import ClientAddress
from wsgigate.middleware.guard import Guard
from wsgigate.middleware.request_id import RequestId
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.proxy.request import RequestMaker
from wsgigate.registry import Registry
from wsgigate.rules.routing import Route
from wsgigate.runtime import fork
from wsgigate.server_check import checked_at_first_request
from wsgigate.store import NETWORKED, DamagedStore, MisconfiguredStore, Store, StoreError, usage
from wsgigate.store.memory import MemoryStore
from wsgigate.store.open import open_store
from wsgigate.units import iso_time

__all__ = [
    "Built",
    "assemble",
    "build",
    "certificate_files",
    "check",
    "check_certificate",
    "check_reading",
    "load_gateway",
    "outage_of",
    "own_routes",
    "worker_report",
]


# The gateway's own certificate: where its files are, and whether they can be used.


def certificate_files(config: Config, path: str) -> tuple[str, str] | None:
    """Return the files of the certificate and of its key, None when the gateway speaks no TLS.

    :param path: The file that *config* was read from, in whose folder relative names start.
    """
    tls = config.gateway.tls
    if tls is None:
        return None
    folder = Path(path).absolute().parent if path else Path.cwd()
    return str(folder / tls.cert), str(folder / (tls.key or tls.cert))


def check_certificate(config: Config, path: str) -> None:
    """See that the certificate and its key can be read, and belong together.

    :raises ValueError: They can not, or do not; begins with the name of the key in question.
    """
    files = certificate_files(config, path)
    if files is None:
        return
    for name, file in zip(("cert", "key"), files, strict=True):
        if not Path(file).is_file():
            raise ValueError(f"{name}: there is no {file}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(*files, password=lambda: b"")  # rather than ask a terminal
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror or str(error)
        raise ValueError(
            f"{files[0]} and its key can not be used: {why}; PEM without a password is needed"
        ) from None


# The gateway's own endpoints, as the ``[admin]`` table wants them.


def own_routes(
    config: Config,
    services: Services,
    health: HealthChecker,
    others: Sequence[Route[WSGIApplication]],
    errors: Errors,
    deny_list: DenyList,
    switch: MaintenanceSwitch,
    *,
    store: Store,
    workers: WorkerReports,
    started: float,
) -> list[Route[WSGIApplication]]:
    """Return the routes of the gateway's own endpoints; none without an ``[admin]`` table.

    :param others: The routes of the file, which ``/info`` tells.
    :param errors: Where it is told what can not be made.
    :param deny_list: The tokens that are denied, for the authenticators that ask.
    :param switch: What is out of service, where anything can be.
    :param store: How full it is, ``/health`` tells.
    :param workers: What each worker says of itself, made with :func:`worker_report`.
    :param started: Since when the gateway serves, in seconds since 1970.
    """
    admin, gateway = config.admin, config.gateway
    if admin is None or errors.under("admin.prefix"):
        return []
    token = admin.token
    if token is not None:
        errors.tried("admin.token", lambda: require_token(Problem(404), token))
    entries = [*config.middleware, *(entry for each in config.routes for entry in each.middleware)]
    found = {watch.service: watch.told for watch in services.watches}
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
        describe_routes(others, prefix=admin.prefix, given=admin.routes),
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

    kind = config.store.url.partition(":")[0]  # no more of it: it may have a password
    made = errors.tried(
        "admin.prefix",
        lambda: routes(
            facts,
            admin.prefix,
            health=health,
            store=lambda: _store_told(kind, store, workers),
            circuits=(lambda: circuit_statuses(circuits, workers=counts().values()))
            if circuits
            else None,
            maintenance=None
            if config.maintenance is None
            else lambda: notices_told(switch.known()),
            workers=workers.all,
            started=lambda: started,
        ),
    )
    own = made or []
    if circuits and own and not errors.under("admin.token"):
        own += circuit_routes(circuits, admin.prefix, token=token, workers=counts)
    denies = any(
        isinstance(entry.options, AuthenticatorOptions) and entry.options.deny_list
        for entry in entries
    )
    if denies and own and not errors.under("admin.token"):
        own.append(deny_route(deny_list, admin.prefix, token))
    if config.maintenance is not None and own and not errors.under("admin.token"):
        own += maintenance_routes(switch, scopes_of(config), admin.prefix, token=token)
    return own


def worker_report(
    services: Services, steady: Steady, now: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Return what this worker alone knows of its services, for all workers to tell."""
    ejections = {name: pool.ejections() for name, pool in services.pools.items()}
    moment = now()
    told = {
        "circuits": counted(services.circuits, now, steady),
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
    return {what: value for what, value in told.items() if value}


def _store_told(kind: str, store: Store, workers: WorkerReports) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": kind}
    try:
        store.get("health")  # a store on the network has no usage to be asked for
        told |= usage(store)
        if workers.failing_since is None:
            return told
    except StoreError:  # it names files and hosts, which are the log's to tell
        pass
    since = workers.failing_since
    told["error"] = "Store unavailable"
    return told if since is None else {**told, "since": iso_time(since)}


def _port(bind: str) -> int | None:
    return None if bind.startswith("unix:") else int(bind.rpartition(":")[2])


class Built(NamedTuple):
    """A gateway, and what it was made of.

    :ivar own: The routes of its own endpoints; in the dispatcher they come before the entries.
    """

    gateway: Gateway
    dispatcher: Dispatcher
    own: tuple[Route[WSGIApplication], ...]
    entries: tuple[Entry, ...]


def build(config: Config, *, path: str = "", started: float | None = None) -> Gateway:
    """Return the gateway that *config* describes.

    :param path: The file it was read from: names the gateway's own store, and relative file names
        start in its folder.
    :param started: Since when it serves, in seconds since 1970: now, unless other processes have
        been serving it before.
    :raises ConfigError: It can not be built; says why, at the key path of each reason.
    """
    return assemble(config, path=path, started=started).gateway


def load_gateway(path: str | None = None) -> Gateway:
    """Return the gateway that the file at *path* describes.

    :param path: The file; ``$WSGIGATE_CONFIG`` when ``None``.
    :raises ConfigError: It can not be read or built; says all that is wrong.
    """
    if path is None:
        path = os.environ.get("WSGIGATE_CONFIG", "")
        if not path:
            raise ConfigError("", [("", "the environment variable WSGIGATE_CONFIG names no file")])
    reading = read_file(path)
    gateway = assemble(reading.config, path=path, errors=reading.errors).gateway
    store: Any = gateway.store
    if hasattr(store, "checked"):  # no command has looked at it: the first request does
        store.checked, store.cure = False, f"correct store.url in {path}"
    return gateway


def check(config: Config, *, path: str = "") -> None:
    """See that the gateway can be built, and that nothing but an outage keeps it from its store.

    :raises ConfigError: It cannot be built, or its store is misconfigured.
    """
    check_reading(Reading(config, Errors(), []), path)


def check_reading(reading: Reading, path: str) -> Built:
    """Return what is built of *reading*, and see that its store and certificate can be used.

    A store that does not answer at the moment is a warning: a running gateway goes on without it,
    so one that starts then must not stay down.

    :raises ConfigError: Something is wrong with the file, with the store or the certificate.
    """
    built = assemble(reading.config, path=path, errors=reading.errors)
    try:
        trouble = outage_of(built.gateway.store)
    except MisconfiguredStore as error:
        reading.errors.add("store.url", str(error))
    else:
        if trouble:
            reading.warnings.append(("store.url", trouble))
    reading.errors.tried(
        "gateway.tls", lambda: check_certificate(reading.config, path), keys=["cert", "key"]
    )
    reading.errors.raise_any(path)
    return built


def outage_of(store: Store) -> str:
    """Return why values cannot be kept in *store* at the moment; empty when they can.

    :raises MisconfiguredStore: They cannot be until its configuration changes.
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
    config: Config, *, path: str = "", errors: Errors | None = None, started: float | None = None
) -> Built:
    """Return the gateway and what it was made of.

    :param errors: What is known to be wrong already: it is left out, and told with the rest.
    :raises ConfigError: Anything is wrong.
    """
    errors = Errors() if errors is None else errors
    builder = _Builder(config, path, errors, time.time() if started is None else started)
    built = builder.built()
    errors.raise_any(path)
    return built


class _Builder:
    def __init__(self, config: Config, path: str, errors: Errors, started: float) -> None:
        self._config = config
        self._started = started
        self._errors = errors
        self._file = os.path.abspath(path) if path else ""
        self._folder = Path(self._file).parent if self._file else Path.cwd()
        self._store = self._open_store()
        self._speaker = LogLeader(self._store, f"log/{policy_name(config.gateway.name)}/")
        self._stacker = MiddlewareStack(config, self._store, self._folder, errors)
        self._identity = self._checked_identity()
        self._registry = self._made_registry()
        self._services = Services(
            config,
            self._store,
            name=policy_name(config.gateway.name),
            via=self._via(),
            identity=self._identity,
            folder=self._folder,
            errors=errors,
            registry=self._registry,
            speaks=self._speaker.speaks,
        )

    def built(self) -> Built:
        gateway, services = self._config.gateway, self._services
        health = services.checker()
        switch = MaintenanceSwitch(
            self._store, name=policy_name(gateway.name), speaks=self._speaker.speaks
        )
        ends = RouteApps(self._config, services, switch, self._folder, self._errors)
        routes = Routes(self._config, ends, self._stacker, self._errors)
        described = [entry.route for entry in routes.entries]
        maintained = self._config.maintenance is not None
        workers = WorkerReports(
            self._store,
            partial(worker_report, services, Steady()),
            prefix=f"workers/{policy_name(gateway.name)}/",
            beside=[switch.look] if maintained else [],
            quiet=self._config.store.url.partition(":")[0] in NETWORKED,  # it tells by itself
        )
        own = own_routes(
            self._config,
            services,
            health,
            described,
            self._errors,
            self._stacker.deny_list,
            switch,
            store=self._store,
            workers=workers,
            started=self._started,
        )
        fallback = self._fallback()
        if fallback is not None:
            fallback = ends.maintained(fallback, GATEWAY)
        dispatcher = routes.dispatcher(
            own, registry=self._registry_routes(), fallback=fallback, identity=self._identity
        )
        made = Gateway(
            self._around(dispatcher),
            name=gateway.name,
            version=gateway.version,
            store=self._store,
            pools=services.pools,
            health=health,
            registry=self._registry,
            watcher=services.watcher(),
            reports=workers if self._config.admin is not None or maintained else None,
            routes=dispatcher.routes,
            self_check=gateway.self_check,
            log_level=gateway.log_level,
            first=checked_at_first_request(
                gateway.self_check,
                keeps_slashes=any(route.encoded_slash == "keep" for route in dispatcher.routes),
            ),
            stopping=[
                services.tunnels.stop,
                *([] if self._registry is None else [self._registry.stopping]),
            ],
            closing=[
                *self._stacker.closing,
                *ends.closing,
                *(sessions.close for sessions in services.sessions.values()),
                self._speaker.stop,
            ],
        )
        return Built(made, dispatcher, tuple(own), tuple(routes.entries))

    def _open_store(self) -> Store:
        url = self._config.store.url
        scheme, _, place = url.partition(":")
        if url == "lmdb:" and fork.tested():
            return MemoryStore()  # counts that outlive a test run fail the next one
        # on many machines a gateway is known by its name alone, wherever its file is on each
        owner = self._config.gateway.name if scheme in NETWORKED else self._owner()
        if scheme == "lmdb" and place:
            url = f"lmdb:{self._folder / Path(place).expanduser()}"
        try:
            store = self._errors.tried("store.url", lambda: open_store(url, owner=owner))
        except StoreError as error:
            self._errors.add("store.url", str(error))
            store = None
        if store is None:
            return MemoryStore()  # so that the rest can be tried
        if hasattr(store, "checked"):
            store.checked = True  # later an error of it is an outage, whatever it says
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
        return self._errors.tried("registry", make)

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
        if name is None:
            return None
        return self._errors.tried("gateway.fallback", partial(import_app, name))

    def _around(self, app: WSGIApplication) -> WSGIApplication:
        """Return *app* in all that is gateway-wide.

        There are two guards. What fails inside is answered by the inner one, and this answer is
        logged, counted and named like any other; the outer one is for the middlewares themselves.

        The loggers that nothing but a request id precedes stand outside of what tells the client's
        address, so that what that refuses has its line too: they ask who it was at the end.
        """
        gateway, entries = self._config.gateway, self._config.middleware
        outside = leading_loggers(entries)
        inside = set(range(len(entries))) - outside
        app = self._stacker.around(Guard(app), entries, "middleware", "default", without=outside)
        ids = [entry.options for entry in entries if entry.use == "request-id"]
        refuse: Refuse = answer_with
        if gateway.request_id:
            refuse = _named(getattr(ids[0], "header", None) if ids else None)
            app = app if ids else RequestId(app)
        app = ClientAddress(
            app,
            trusted_proxies=gateway.trusted_proxies,
            source=gateway.forwarded,
            refuse=refuse,
        )
        return Guard(self._stacker.around(app, entries, "middleware", "default", without=inside))

    def _checked_identity(self) -> Mapping[str, str]:
        identity = self._config.gateway.identity
        if self._errors.under("gateway.identity"):
            return {}
        made = self._errors.tried("gateway.identity", lambda: RequestMaker(identity=identity))
        return {} if made is None else identity

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


def _named(header: str | None) -> Refuse:
    """Return what answers a problem under a request id."""
    return lambda problem: RequestId(problem, header=header or "X-Request-ID", accept="never")
