"""The gateway's own endpoints, field by field."""

from __future__ import annotations

import json
from typing import Any
from wsgiref.types import WSGIApplication
from wsgiref.validate import validator

import pytest
from werkzeug.test import Client, TestResponse

from tests.support.admin import admin_routes
from wsgigate.admin.api import tag_of
from wsgigate.admin.endpoints import (
    Facts,
    ServiceFacts,
    describe_features,
    describe_routes,
    status_group,
)
from wsgigate.coordination.overrides import DRAINED, Override
from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.health_results import ThreadProber
from wsgigate.http.wsgi import REASON
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.proxy.pool import Pool
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.rules.routing import Route, listing
from wsgigate.store.memory import MemoryStore
from wsgigate.units import iso_time

STARTED = 1_735_689_600.0
NOW = STARTED + 12.3456
TIME = "2025-01-01T00:00:12.345Z"


def service(*urls: str, routes: tuple[str, ...] = ()) -> ServiceFacts:
    return ServiceFacts(Pool("service", [Instance(url) for url in urls]), routes)


SHOP = Facts(
    "api-gateway",
    "1.0.0",
    3000,
    {
        "user-service": service("http://localhost:3001", routes=("/users", "/login")),
        "product-service": service("http://localhost:3002", routes=("/products",)),
        "order-service": service("http://localhost:3003"),
    },
    {"GET /health": "Gateway health check", "GET /api/*": "Proxied service routes"},
    ("Request logging", "Rate limiting"),
)

WELL = {"healthy": True, "lastCheck": TIME, "responseTime": "1.53ms", "status": 200}
DOWN = {"healthy": False, "lastCheck": TIME, "error": "Connection refused", "status": "N/A"}
NOT_CHECKED = {"healthy": False, "error": "Not checked yet"}


class Known:
    """Stands for a health checker that has read these statuses."""

    def __init__(self, **statuses: dict[str, Any]) -> None:
        self.statuses = {name.replace("_", "-"): status for name, status in statuses.items()}

    def status(self, service: str) -> dict[str, Any]:
        return self.statuses.get(service, NOT_CHECKED)

    def all(self) -> dict[str, dict[str, Any]]:
        return self.statuses


class Browser(Client):
    """A client that reads each response to its end and closes it."""

    def open(self, *args: Any, **options: Any) -> TestResponse:
        return super().open(*args, **{"buffered": True, **options})


def client(facts: Facts = SHOP, prefix: str = "", **options: Any) -> Browser:
    frame = {"refuse": options.pop("refuse")} if "refuse" in options else {}
    group = status_group(facts, started=lambda: STARTED, now=lambda: NOW, **options)
    own = admin_routes(group, prefix=prefix, **frame)
    return Browser(validator(Dispatcher(own)))


def get(facts: Facts, path: str, **options: Any) -> Any:
    response = client(facts, **options).get(path)
    assert response.status_code == 200
    return response.get_json()


def test_health_reports_the_gateway_its_services_and_a_summary() -> None:
    health = Known(user_service=WELL, product_service=DOWN, order_service=WELL)
    assert get(SHOP, "/health", health=health) == {
        "gateway": {
            "name": "api-gateway",
            "version": "1.0.0",
            "status": "healthy",
            "timestamp": TIME,
            "uptime": 12.346,
        },
        "services": {"user-service": WELL, "product-service": DOWN, "order-service": WELL},
        "summary": {"healthy": 2, "total": 3, "healthPercentage": "66.67"},
    }


@pytest.mark.parametrize(
    ("health", "summary"),
    [
        (Known(), {"healthy": 0, "total": 3, "healthPercentage": "0.00"}),
        (Known(user_service=WELL), {"healthy": 1, "total": 3, "healthPercentage": "33.33"}),
        (
            Known(user_service=WELL, product_service=WELL, order_service=WELL),
            {"healthy": 3, "total": 3, "healthPercentage": "100.00"},
        ),
        (None, {"healthy": 3, "total": 3, "healthPercentage": "100.00"}),
    ],
    ids=["before the first check", "one checked", "all well", "no checks"],
)
def test_the_summary_counts_the_healthy_services(
    health: Known | None, summary: dict[str, Any]
) -> None:
    told = get(SHOP, "/health", health=health)
    assert told["summary"] == summary
    assert sum(status["healthy"] for status in told["services"].values()) == summary["healthy"]
    assert list(told["services"]) == list(SHOP.services)
    assert (health.statuses if health else {}).items() <= told["services"].items()


def test_the_percentage_of_a_gateway_without_services_is_zero() -> None:
    told = get(Facts("g", "1"), "/health")
    assert told["summary"] == {"healthy": 0, "total": 0, "healthPercentage": "0.00"}


def test_a_clock_that_was_set_back_gives_no_negative_uptime() -> None:
    own = admin_routes(status_group(SHOP, started=lambda: NOW, now=lambda: STARTED))
    told = Browser(Dispatcher(own)).get("/health").get_json()
    assert told["gateway"]["uptime"] == 0.0
    assert isinstance(told["gateway"]["uptime"], float)


def test_info_describes_the_gateway() -> None:
    assert get(SHOP, "/info") == {
        "gateway": {"name": "api-gateway", "version": "1.0.0", "port": 3000},
        "services": ["user-service", "product-service", "order-service"],
        "routes": {"GET /health": "Gateway health check", "GET /api/*": "Proxied service routes"},
        "features": ["Request logging", "Rate limiting"],
    }


def test_services_lists_them_in_their_order_with_their_status() -> None:
    told = get(SHOP, "/services", health=Known(user_service=WELL, product_service=DOWN))
    assert told == {
        "success": True,
        "services": [
            {
                "name": "user-service",
                "url": "http://localhost:3001",
                "routes": ["/users", "/login"],
                "status": WELL,
            },
            {
                "name": "product-service",
                "url": "http://localhost:3002",
                "routes": ["/products"],
                "status": DOWN,
            },
            {
                "name": "order-service",
                "url": "http://localhost:3003",
                "routes": [],
                "status": NOT_CHECKED,
            },
        ],
        "count": 3,
    }


def test_discover_describes_one_service() -> None:
    assert get(SHOP, "/discover/user-service", health=Known(user_service=WELL)) == {
        "success": True,
        "service": {
            "name": "user-service",
            "url": "http://localhost:3001",
            "routes": ["/users", "/login"],
            "status": WELL,
        },
    }


def test_a_service_without_a_check_is_reported_as_healthy() -> None:
    told = get(SHOP, "/discover/user-service")
    assert told["service"]["status"] == {"healthy": True, "status": "No health check"}


@pytest.mark.parametrize("name", ["nothing", "User-Service", "user%2Dservice%20", "__class__"])
def test_discover_answers_an_unknown_service_with_404(name: str) -> None:
    response = client().get(f"/discover/{name}")
    assert response.status_code == 404
    assert response.content_type == "application/problem+json"
    told = response.get_json()
    assert (told["success"], told["message"]) == (False, "Service not found!")


def test_the_url_is_that_of_the_first_instance_and_null_without_one() -> None:
    pool = Pool("s", [Instance("http://b:1"), Instance("http://a:1")])
    facts = Facts("g", "1", services={"s": ServiceFacts(pool)})
    told = get(facts, "/discover/s")["service"]
    assert (told["url"], told["instances"]) == ("http://b:1", ["http://b:1", "http://a:1"])
    pool.renew([])
    told = get(facts, "/discover/s")["service"]
    assert told["url"] is None
    assert "instances" not in told


@pytest.mark.parametrize("path", ["/health", "/info", "/services", "/discover/user-service"])
def test_every_response_is_json_with_a_length_and_not_stored(path: str) -> None:
    response = client().get(path)
    assert response.headers.to_wsgi_list() == [
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Length", str(len(response.data))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("ETag", tag_of(response.data)),
    ]
    head = client().head(path)
    assert head.data == b""
    assert head.headers == response.headers
    assert head.status == "200 OK"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_answered_with_405(method: str) -> None:
    response = client().open("/services", method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"


def test_names_that_contain_html_stay_json() -> None:
    name = "<script>alert(1)</script>\u2028é"
    facts = Facts(name, "1", services={name: service("http://a", routes=("</script>",))})
    for path in ("/health", "/info", "/services"):
        response = client(facts).get(path)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert name in json.dumps(response.get_json(), ensure_ascii=False).replace(
            "\\u2028", "\u2028"
        )


def test_the_endpoints_are_below_their_prefix_only() -> None:
    prefixed = client(prefix="/_gateway")
    paths = ("/health", "/info", "/services", "/discover/user-service")
    for path in paths:
        assert prefixed.get("/_gateway" + path).status_code == 200
        assert prefixed.get(path).status_code == 404
    for path in ("/_GATEWAY/info", "/_gateway/info/", "/_gateway/info/x", "/_gateway/discover/a/b"):
        assert prefixed.get(path).status_code == 404, path
    for path in ("/%5fgateway/info", "//_gateway/info"):  # the same path, written otherwise
        environ = {"RAW_URI": path}
        response = prefixed.get("/_gateway/info", environ_overrides=environ)
        assert response.status_code == 200, path


@pytest.mark.parametrize("prefix", ["gateway", "/gateway/", "/"])
def test_a_prefix_that_is_not_a_path_is_rejected(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        client(prefix=prefix)


def test_the_listing_has_three_of_the_endpoints() -> None:
    own = admin_routes(status_group(SHOP, started=lambda: STARTED))
    assert listing(own) == ["GET /health", "GET /info", "GET /services"]
    own = admin_routes(status_group(SHOP, started=lambda: STARTED), prefix="/_gateway")
    assert listing(own)[0] == "GET /_gateway/health"


def test_a_problem_has_a_reason_for_the_log_and_refuse_sends_it() -> None:
    reasons = []

    def page(problem: Any) -> WSGIApplication:
        def app(environ: Any, start_response: Any) -> list[bytes]:
            reasons.append(environ[REASON])
            start_response("404 Not Found", [("Content-Type", "text/html")])
            return [b"<p>no</p>"]

        return app

    assert client(refuse=page).get("/discover/x").data == b"<p>no</p>"
    assert reasons == ["Service not found!"]


URLS = ["http://a:1", "http://b:1"]


def test_the_responses_follow_the_checks_of_a_real_pool() -> None:
    pool = Pool("shop", [Instance("http://a:1"), Instance("http://b:1")])
    checker = HealthChecker(
        {"shop": pool},
        {"shop": HealthCheck("/health")},
        MemoryStore(clock=lambda: NOW),
        ThreadProber(
            lambda instance, check: CheckResult(
                instance.url == "http://b:1", 200, "2ms", "Timeout"
            ),
            spawn=lambda work: work(),
        ),
        random=lambda: 0.0,
    )
    facts = Facts("g", "1", services={"shop": ServiceFacts(pool), "free": service("http://c")})
    told = get(facts, "/health", health=checker)
    assert told["services"]["shop"] == {
        **NOT_CHECKED,
        "instances": dict.fromkeys(URLS, NOT_CHECKED),
    }
    assert told["services"]["free"] == {"healthy": True, "status": "No health check"}
    assert told["summary"] == {"healthy": 1, "total": 2, "healthPercentage": "50.00"}
    checker.step()
    checker.refresh()
    told = get(facts, "/health", health=checker)
    assert list(told["services"]["shop"]["instances"]) == URLS
    assert told["summary"]["healthPercentage"] == "100.00"
    assert [instance.url for instance in pool.available()] == ["http://b:1"]


APP = object()


def test_the_routes_are_described_from_the_table() -> None:
    table = [
        *admin_routes(status_group(SHOP, started=lambda: STARTED)),
        Route("/api/orders", APP, summary="Orders"),
        Route("/api/users/{id}", APP, methods=("GET", "POST"), exact=True),
        Route("/", APP, host="www.example.com"),
        Route("/secret", APP, listed=()),
        Route("/auth", APP, listed=("POST /auth/login",), summary="Authentication routes"),
    ]
    assert describe_routes(table) == {
        "GET /health": "Gateway health check",
        "GET /info": "Gateway information",
        "GET /services": "List all services",
        "ANY /api/orders/*": "Orders",
        "GET /api/users/{id}": "Proxied service routes",
        "POST /api/users/{id}": "Proxied service routes",
        "ANY www.example.com/*": "Proxied service routes",
        "POST /auth/login": "Authentication routes",
    }


def test_the_file_can_describe_the_routes() -> None:
    given = {"POST /auth/*": "Authentication routes", "GET /health": "How are you?"}
    assert describe_routes([Route("/x", APP)], prefix="/_g", given=given) == {
        "GET /_g/health": "Gateway health check",
        "GET /_g/info": "Gateway information",
        "GET /_g/services": "List all services",
        **given,
    }


def test_the_features_are_those_in_use_in_a_fixed_order() -> None:
    middlewares = ["cors", "authenticator", "limiter", "logger"]
    assert describe_features(middlewares, health=True) == (
        "Request logging",
        "Rate limiting",
        "Authentication",
        "Service discovery",
        "Load balancing",
        "Health monitoring",
    )
    assert describe_features([], services=False) == ()
    assert describe_features(middlewares, given=["Tea"]) == ("Tea",)


# -- what is not as it should be -------------------------------------------------------------------


def of(pool: Pool, **more: Any) -> Facts:
    return Facts("g", "1", services={"a": ServiceFacts(pool, **more), "b": service("http://b")})


def _drained(pool: Pool) -> Pool:
    pool.override({instance.url: Override(DRAINED) for instance in pool.instances})
    return pool


@pytest.mark.parametrize("health", [None, Known(a=WELL, b=WELL)], ids=["not checked", "checked"])
@pytest.mark.parametrize(
    ("pool", "discovery", "error"),
    [
        (Pool("a", []), None, "No instances"),
        (
            Pool("a", []),
            lambda: {"source": "dns:a:80", "error": "its host name cannot be resolved"},
            "No instances: its host name cannot be resolved",
        ),
        (Pool("a", []), lambda: {"source": "dns:a:80"}, "No instances"),
        (Pool("a", [Instance("http://a:1", 0)]), None, "All instances are draining"),
        (_drained(Pool("a", [Instance("http://a:1")])), None, "All instances are draining"),
    ],
)
def test_a_service_without_usable_instances_is_unhealthy_with_an_error(
    health: Known | None, pool: Pool, discovery: Any, error: str
) -> None:
    facts = of(pool, discovery=discovery)
    told = get(facts, "/health", health=health)
    assert told["services"]["a"] == {"healthy": False, "error": error}
    assert told["summary"] == {"healthy": 1, "total": 2, "healthPercentage": "50.00"}
    for one in (
        get(facts, "/services", health=health)["services"][0],
        get(facts, "/discover/a", health=health)["service"],
    ):
        assert one["status"] == {"healthy": False, "error": error}


@pytest.mark.parametrize(
    ("store", "off", "status"),
    [
        ({"kind": "redis"}, {}, "healthy"),
        ({"kind": "redis", "error": "Store unavailable"}, {}, "degraded"),
        ({"kind": "redis"}, {"route:x": {}}, "healthy"),
        ({"kind": "redis"}, {"gateway": {}}, "maintenance"),
        ({"kind": "redis", "error": "Store unavailable"}, {"gateway": {}}, "maintenance"),
    ],
)
def test_the_status_of_the_gateway_is_the_most_severe(
    store: dict[str, Any], off: dict[str, Any], status: str
) -> None:
    told = get(SHOP, "/health", store=lambda: store, maintenance=lambda: off)
    assert told["gateway"]["status"] == status
    assert told["store"] == store
    assert told["maintenance"] == off


def test_a_maintenance_notice_is_part_of_every_status() -> None:
    notice = {"since": TIME, "until": None, "message": "Soon back."}
    off = {"service:user-service": notice}
    for told in (
        get(SHOP, "/health", maintenance=lambda: off)["services"]["user-service"],
        get(SHOP, "/services", maintenance=lambda: off)["services"][0]["status"],
        get(SHOP, "/discover/user-service", maintenance=lambda: off)["service"]["status"],
    ):
        assert told == {"healthy": True, "status": "No health check", "maintenance": notice}


def test_bulkheads_and_ejections_are_summed_and_listed_by_worker() -> None:
    reports = {
        "m:1": {
            "bulkheads": {"user-service": {"inFlight": 2, "maxInFlight": 8, "refused": 1}},
            "ejections": {"user-service": {"http://x": [NOW - 3, NOW + 7, "2 failures in a row"]}},
        },
        "m:2": {
            "bulkheads": {"user-service": {"inFlight": 3, "maxInFlight": 8, "refused": 0}},
            "ejections": {"user-service": {"http://x": [NOW - 1, NOW + 9, "status 503"]}},
        },
        "m:3": {},
    }
    told = get(SHOP, "/services", workers=lambda: reports)
    user, product, _ = told["services"]
    assert user["bulkhead"] == {"inFlight": 5, "maxInFlight": 16, "refused": 1}
    assert user["ejected"] == ["http://x"]
    assert user["ejections"] == {
        "http://x": {
            "since": iso_time(NOW - 3),
            "until": iso_time(NOW + 9),
            "reason": "status 503",
            "workers": 2,
        }
    }
    assert not {"bulkhead", "ejected", "ejections"} & product.keys()
    assert list(told["workers"]) == ["m:1", "m:2", "m:3"]
    assert told["workers"]["m:2"] == {
        "bulkheads": {"user-service": {"inFlight": 3, "maxInFlight": 8, "refused": 0}},
        "ejected": {"user-service": ["http://x"]},
    }
