"""What stands at the end of a route: an app, or what forwards to its services."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from mimetypes import guess_type
from pathlib import Path
from typing import Any, TypeAlias
from wsgiref.types import WSGIApplication

from wsgigate.config.errors import Errors, at
from wsgigate.config.imports import import_app
from wsgigate.config.model import Config, Route
from wsgigate.config.services import Services
from wsgigate.config.shaping import FallbackTable, MirrorTable, StaleTable, fallback_rules
from wsgigate.config.tables import given
from wsgigate.fixed import LARGEST, fixed_answer
from wsgigate.maintenance import MaintenanceSwitch
from wsgigate.middleware.fallback import Fallback
from wsgigate.middleware.maintenance import Maintenance
from wsgigate.middleware.mirror import Mirror
from wsgigate.middleware.splitter import Splitter
from wsgigate.middleware.stale import StaleAnswers
from wsgigate.rules.maintenance import GATEWAY

__all__ = ["Ends", "scopes_of"]

App: TypeAlias = WSGIApplication


class Ends:
    """Makes what stands at the end of routes.

    :param switch: Tells what is out of service; asked where the file has ``[maintenance]``.
    :param folder: Where relative file names start.
    :param errors: Where it is told what can not be made.
    :ivar closing: What is to be called at the gateway's end.
    """

    def __init__(
        self,
        config: Config,
        services: Services,
        switch: MaintenanceSwitch,
        folder: Path,
        errors: Errors,
    ) -> None:
        self.closing: list[Callable[[], object]] = []
        self._config = config
        self._services = services
        self._switch = switch
        self._folder = folder
        self._errors = errors
        self._maintenance: dict[str, Any] | None = self._read_maintenance()

    def end(self, table: Route, prefix: str, path: str) -> App | None:
        """Return the app of a route without its middlewares, ``None`` when it can not be made.

        :param prefix: What is taken off the front of the path.
        :param path: The route's key path.
        """
        app: App | None
        if table.app is not None:
            app = self._errors.tried(at(path, "app"), partial(import_app, table.app))
        elif table.services:
            app = self._split(table, prefix, path)
        else:
            app = self._service(table.service, table, prefix, path)
        if app is None:
            return None
        if table.fallback is not None:
            app = self._fallen_back(app, table.fallback, table, prefix, path, at(path, "fallback"))
        if table.mirror is not None:
            app = self._mirrored(app, table.mirror, table, prefix, path)
        return app

    def maintained(self, app: App, *scopes: str) -> App:
        """Return *app* with what answers while one of *scopes* is out of service."""
        if self._maintenance is None:
            return app
        return Maintenance(app, self._switch, scopes, **self._maintenance)

    def _service(self, name: str | None, table: Route, prefix: str, path: str) -> App | None:
        """Return what forwards to a service, and what answers when that fails."""
        app = self._forwarder(name, table, prefix, path)
        service = self._config.services.get(name or "")
        if app is None or service is None or service.fallback is None or table.fallback is not None:
            return app
        where = at(at("services", str(name)), "fallback")
        return self._fallen_back(app, service.fallback, table, prefix, path, where)

    def _forwarder(self, name: str | None, table: Route, prefix: str, path: str) -> App | None:
        forwarder = self._services.forwarder(replace(table, service=name), prefix, path)
        return None if forwarder is None else self.maintained(forwarder, f"service:{name}")

    def _split(self, table: Route, prefix: str, path: str) -> App | None:
        apps: dict[str, tuple[App, float]] = {}
        for share in table.services:
            app = self._service(share.service, table, prefix, path)
            if app is None:
                return None
            apps[share.service] = (app, share.weight)
        settings = {} if table.split is None else given(table.split)
        salt = table.name or table.path or next(iter(table.paths), "")
        where = at(path, "split") if table.split is not None else at(path, "services")
        return self._errors.tried(
            where, lambda: Splitter(apps, salt=salt, **settings), keys=["key", "override"]
        )

    def _fallen_back(
        self, app: App, fallback: FallbackTable, table: Route, prefix: str, path: str, where: str
    ) -> App:
        """Return *app* with what answers when it fails.

        :param where: The key path of *fallback*.
        """
        rules = self._errors.tried(where, lambda: fallback_rules(fallback), keys=["methods"])
        if fallback.stale:
            kept = fallback.stale
            settings = given(kept) if isinstance(kept, StaleTable) else {}
            stale = self._errors.tried(
                at(where, "stale"),
                lambda: StaleAnswers(app, rules=rules, **settings),
                keys=["max_size", "max_answer", "stale_for"],
            )
            app = app if stale is None else stale
        other: App | None = None
        kind = "app"
        if fallback.service is not None:
            other, kind = self._forwarder(fallback.service, table, prefix, path), "service"
        elif fallback.app is not None:
            other = self._errors.tried(at(where, "app"), partial(import_app, fallback.app))
        elif fallback.body is not None or fallback.file is not None:
            made = lambda: self._fixed(fallback)  # noqa: E731
            other = self._errors.tried(where, made, keys=["file", "body", "status", "content_type"])
            kind = "fixed"
        if other is None:
            return app
        return Fallback(app, other, rules=rules, kind=kind, acts=kind != "fixed")

    def _fixed(self, fallback: FallbackTable) -> App:
        body: bytes | str = fallback.body or ""
        settings: dict[str, Any] = given(fallback, only=("status", "content_type"))
        if fallback.file is not None:
            body, kind = self._content(fallback.file, "file")
            settings.setdefault("content_type", kind)
        return fixed_answer(body, **settings)

    def _mirrored(self, app: App, mirror: MirrorTable, table: Route, prefix: str, path: str) -> App:
        other = self._services.forwarder(replace(table, service=mirror.service), prefix, path)
        if other is None:
            return app
        settings = given(mirror, without=("service",))
        made = self._errors.tried(
            at(path, "mirror"), lambda: Mirror(app, other, **settings), keys=list(settings)
        )
        if made is None:
            return app
        self.closing.append(made.close)
        return made

    def _read_maintenance(self) -> dict[str, Any] | None:
        """Return the arguments of every :class:`Maintenance`, ``None`` when there is none."""
        said = self._config.maintenance
        if said is None or self._errors.under("maintenance"):
            return None
        settings = given(said, only=("allow", "exempt", "retry_after"))
        if said.allow_header is not None:
            settings["allow_header"] = (said.allow_header.name, said.allow_header.secret)
        if said.page is not None:
            page = said.page
            found = self._errors.tried(
                "maintenance", lambda: self._content(page, "page"), keys=["page"]
            )
            if found is None:
                return None
            settings["page"] = (found[0], said.content_type or found[1])
        made = self._errors.tried(
            "maintenance",
            lambda: Maintenance(_nobody, self._switch, **settings),
            keys=["allow", "allow_header", "content_type", "exempt", "retry_after"],
        )
        return None if made is None else settings

    def _content(self, name: str, key: str) -> tuple[bytes, str]:
        """Return what is in a file, and of which type that is by its name."""
        file = self._folder / name
        try:
            with file.open("rb") as opened:
                content = opened.read(LARGEST + 1)
        except OSError as error:
            raise ValueError(f"{key}: {file} can not be read: {error.strerror}") from error
        if len(content) > LARGEST:
            raise ValueError(f"{key}: {file} has more than {LARGEST} bytes")
        kind = guess_type(name)[0] or "application/octet-stream"
        return content, f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _nobody(environ: Any, start_response: Any) -> list[bytes]:
    raise RuntimeError("nobody is to be asked")


def scopes_of(config: Config) -> list[str]:
    """Return what of a gateway can be taken out of service, by the names of the switch."""
    routes = [table.name or table.path or next(iter(table.paths), "") for table in config.routes]
    return [
        GATEWAY,
        *(f"service:{name}" for name in config.services),
        *dict.fromkeys(f"route:{name}" for name in routes if name),
    ]
