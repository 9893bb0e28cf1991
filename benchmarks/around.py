"""What a limiter adds to a request: around one hello world of Flask, and one of Django."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple
from wsgiref.types import WSGIApplication

from benchmarks.micro import serve
from wsgigate import Limiter
from wsgigate.store.open import open_store

__all__ = ["ADDED", "Added", "added"]

ADDED = "added to what the same app takes without one, in one process"
PLENTY = 900_000_000

MakeUrl = Callable[[str], str]


class Added(NamedTuple):
    """What a limiter cost.

    :param app: Around what: ``"Flask"`` or ``"Django"``.
    :param wall: Microseconds added to a request by the clock, a server's included.
    :param cost: Of processor time in this process, which depends least on what else goes on.
    """

    app: str
    ours: bool
    wall: float
    cost: float


def added(
    url: MakeUrl, *, requests: int, rounds: int, told: Callable[[str], object]
) -> dict[str, Added]:
    """Return by title what each limiter adds.

    :param url: Returns the URL of a fresh store of a kind, empty when there is none.
    """
    found: dict[str, Added] = {}
    for name, package, make in (
        ("Flask", "flask_limiter", _flask),
        ("Django", "django_ratelimit", _django),
    ):
        if find_spec(name.lower()) is None:
            told(f"skipped: limiters around {name}: pip install {name}")
            continue
        bare, theirs = make()
        apps: dict[str, tuple[bool, WSGIApplication]] = {"": (False, bare)}
        for kind in ("memory", "lmdb", "redis"):
            place = url(kind)
            title = f"{name}, wsgigate, {kind}"
            try:
                if not place:
                    raise ValueError("apt-get install redis-server")
                limiter = Limiter(bare, f"{PLENTY} per hour", store=open_store(place))
                apps[title] = (True, limiter)
            except ValueError as error:
                told(f"skipped: {title}: {error}")
        for kind in ("memory", "redis"):
            place, title = url(kind), f"{name}, {package.replace('_', '-')}, {kind}"
            if find_spec(package) is None:
                told(f"skipped: {title}: pip install {package.replace('_', '-')}")
            elif not place or (kind == "redis" and find_spec("redis") is None):
                told(f"skipped: {title}: apt-get install redis-server, pip install redis")
            else:
                apps[title] = (False, theirs(kind, place))
        seconds = _seconds({title: app for title, (_, app) in apps.items()}, requests, rounds)
        base = seconds.pop("")
        for title, (wall, cpu) in seconds.items():
            costs = ((wall - base[0]) / requests * 1e6, (cpu - base[1]) / requests * 1e6)
            found[title] = Added(name, apps[title][0], *costs)
    return found


def _seconds(
    apps: Mapping[str, WSGIApplication], requests: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return by title in how many seconds each app served its *requests*, and of the processor's.

    The least of *rounds* in which all of them take turns, as whatever else the machine does adds.
    """
    taken: dict[str, list[tuple[float, float]]] = {title: [] for title in apps}
    for app in apps.values():
        serve(app, max(1, requests // 10))
    for _ in range(rounds):
        for title, app in apps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            serve(app, requests)
            taken[title].append((time.perf_counter() - wall, time.process_time() - cpu))
    least = {title: tuple(map(min, zip(*each, strict=True))) for title, each in taken.items()}
    return {title: (each[0], each[1]) for title, each in least.items()}


Theirs = Callable[[str, str], WSGIApplication]


def _flask() -> tuple[WSGIApplication, Theirs]:
    from flask import Flask

    def made() -> Any:
        app = Flask("bench")
        app.add_url_rule("/api/orders/<number>", view_func=lambda number: "hello", endpoint="hello")
        return app

    def theirs(kind: str, url: str) -> WSGIApplication:
        from flask_limiter import Limiter as Other
        from flask_limiter.util import get_remote_address

        app = made()
        Other(
            get_remote_address,
            app=app,
            storage_uri="memory://" if kind == "memory" else url,
            default_limits=[f"{PLENTY} per hour"],
            headers_enabled=True,
        )
        limited: WSGIApplication = app
        return limited

    return made(), theirs


def _django() -> tuple[WSGIApplication, Theirs]:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    site: Any = ModuleType("wsgigate_bench_site")
    sys.modules[site.__name__] = site
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=site.__name__,
        SECRET_KEY="bench",
        MIDDLEWARE=[],
        CACHES={},
    )
    django.setup()
    views = {"plain": lambda request: HttpResponse("hello")}
    site.urlpatterns = [path("api/orders/7", lambda request: views[current[0]](request))]  # type: ignore[has-type]
    current = ["plain"]
    app: WSGIApplication = get_wsgi_application()

    def switched(name: str) -> WSGIApplication:
        def serving(environ: Any, start_response: Any) -> Any:
            current[0] = name
            return app(environ, start_response)

        return serving

    def theirs(kind: str, url: str) -> WSGIApplication:
        from django_ratelimit.decorators import ratelimit

        backends = {
            "memory": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            "redis": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url},
        }
        settings.CACHES = {**settings.CACHES, "default": backends["memory"], kind: backends[kind]}
        limit = ratelimit(key="ip", rate=f"{PLENTY}/h", block=True)(views["plain"])

        def limited(request: Any) -> Any:
            settings.RATELIMIT_USE_CACHE = kind
            return limit(request)

        views[kind] = limited
        return switched(kind)

    return switched("plain"), theirs
