"""Which route serves a request: the most specific one, whatever the order."""

from __future__ import annotations

import itertools
import random
import sys
from typing import Any

import pytest

from wsgigate.rules.routing import Match, MethodNotAllowed, Route, RouteConflict, Router, listing


def route(path: str, endpoint: str = "", **options: Any) -> Route[str]:
    return Route(path, endpoint or path, **options)


def serve(router: Router[str], path: str, method: str = "GET", host: str = "") -> Any:
    found = router.match(host, path, method)
    if isinstance(found, Match):
        return found.route.endpoint
    return found.allowed if isinstance(found, MethodNotAllowed) else None


TABLE = [
    route("/", "root"),
    route("/health", "health", exact=True),
    route("/api", "api"),
    route("/api/users", "users"),
    route("/api/users/{id}", "user"),
    route("/api/users/me", "me"),
    route("/api/users/{id}/posts/*", "post", exact=True),
    route("/api/*/stats", "stats"),
    route("/files/", "files", exact=True),
]


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/", "root"),
        ("/nothing", "root"),
        ("/health", "health"),
        ("/health/x", "root"),
        ("/api", "api"),
        ("/api/", "api"),
        ("/apisecret", "root"),  # E26: a prefix is whole segments
        ("/api/orders", "api"),
        ("/api/users", "users"),
        ("/api/users/", "users"),  # a parameter is never empty
        ("/api/users/7", "user"),
        ("/api/users/7/x", "user"),
        ("/api/users/me", "me"),
        ("/api/users/me/stats", "me"),
        ("/api/users/7/posts/1", "post"),
        ("/api/users/7/posts/1/2", "user"),
        ("/api/orders/stats", "stats"),
        ("/api/users/stats", "user"),  # a literal on the left wins over one on the right
        ("/files/", "files"),
        ("/files", "root"),
    ],
)
def test_the_most_specific_route_wins_whatever_the_order(
    order: int, path: str, endpoint: str
) -> None:
    routes = TABLE.copy()
    random.Random(order).shuffle(routes)
    assert serve(Router(routes), path) == endpoint


def test_a_request_without_a_matching_route_has_none() -> None:
    router = Router([route("/api")])
    assert serve(router, "/") is None
    assert serve(router, "/API") is None  # E14


def test_parameters_are_percent_decoded() -> None:
    router = Router([route("/u/{name}/{n}")])
    found = router.match("", "/u/caf%C3%A9/7/more", "GET")
    assert isinstance(found, Match)
    assert found.params == {"name": "café", "n": "7"}


HOSTS = [
    route("/", "any"),
    route("/admin/secret", "deep"),
    route("/", "sub", host="*.example.com"),
    route("/", "subsub", host="*.eu.example.com"),
    route("/", "api", host="API.example.com."),
]


@pytest.mark.parametrize(
    ("host", "path", "endpoint"),
    [
        ("", "/", "any"),
        ("other.test", "/admin/secret", "deep"),
        ("api.example.com", "/", "api"),
        ("api.example.com", "/admin/secret", "api"),
        ("www.example.com", "/", "sub"),
        ("a.eu.example.com", "/", "subsub"),
        ("example.com", "/", "any"),
        ("notexample.com", "/", "any"),
    ],
)
def test_a_host_is_more_specific_than_any_path(host: str, path: str, endpoint: str) -> None:
    assert serve(Router(HOSTS), path, host=host) == endpoint


METHODS = [
    route("/a", "read", methods=["get"]),
    route("/a", "write", methods=["POST", "PUT"]),
    route("/b", "all"),
    route("/b", "get", methods=["GET"]),
    route("/c/d", "narrow", methods=["DELETE"]),
    route("/c", "wide"),
]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/a", "read"),
        ("HEAD", "/a", "read"),  # F16
        ("PUT", "/a", "write"),
        ("DELETE", "/a", ("GET", "HEAD", "POST", "PUT")),
        ("GET", "/b", "get"),
        ("POST", "/b", "all"),
        ("DELETE", "/c/d", "narrow"),
        ("GET", "/c/d", "wide"),
    ],
)
def test_a_route_takes_the_methods_it_names(method: str, path: str, expected: Any) -> None:
    assert serve(Router(METHODS), path, method) == expected


def test_an_explicit_priority_wins_over_what_is_more_specific() -> None:
    router = Router([route("/api/users", host="a.test"), route("/", "maintenance", priority=1)])
    assert serve(router, "/api/users", host="a.test") == "maintenance"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (route("/a"), route("/a/", "again")),
        (route("/u/{id}"), route("/u/{name}", "again")),
        (route("/u/{id}"), route("/u/*", "again")),
        (route("/a", methods=["GET", "PUT"]), route("/a", "again", methods=["PUT"])),
        (route("/a", host="a.test"), route("/a", "again", host="A.TEST")),
    ],
)
def test_routes_that_match_the_same_requests_are_rejected(
    one: Route[str], other: Route[str]
) -> None:
    with pytest.raises(RouteConflict) as caught:
        Router([route("/first"), one, other])
    assert (caught.value.first, caught.value.second) == (1, 2)


def test_routes_that_differ_in_any_condition_are_accepted() -> None:
    apart = [
        route("/a"),
        route("/a", "exact", exact=True),
        route("/a", "get", methods=["GET"]),
        route("/a", "post", methods=["POST"]),
        route("/a", "host", host="a.test"),
        route("/a", "first", priority=1),
    ]
    for one, other in itertools.combinations(apart, 2):
        Router([one, other])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "api"}, "starts with /"),
        ({"path": "/a//b"}, "empty segment"),
        ({"path": "/a{id}"}, "whole segment"),
        ({"path": "/{id}/{id}"}, "twice"),
        ({"path": "/", "host": "a b"}, "host"),
        ({"path": "/", "host": "*"}, "host"),
        ({"path": "/", "methods": ["G T"]}, "method"),
        ({"path": "/", "encoded_slash": "maybe"}, "encoded_slash"),
    ],
)
def test_a_malformed_route_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Route(endpoint="", **options)


def lines_run(router: Router[str]) -> int:
    """Return how many lines one look-up runs: its cost, without a clock."""
    count = 0

    def trace(_frame: Any, event: str, _arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        found = router.match("h5.test", "/s7/42/x", "GET")
    finally:
        sys.settrace(before)
    assert isinstance(found, Match)
    return count


@pytest.mark.parametrize("path", ["/a/../b", "/é", "/%c3%a9", "/a b", "/%zz"])
def test_a_path_that_no_canonical_one_matches_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="canonical"):
        Router([route(path)])


def test_ten_thousand_routes_cost_what_ten_do() -> None:
    small = Router([route(f"/s{n}/{{id}}/x") for n in range(10)] + [route("/h", host="h5.test")])
    large = Router(
        [route(f"/s{n}/{{id}}/x", priority=n) for n in range(9_000)]
        + [route(f"/h{n}", host=f"h{n}.test") for n in range(1_000)]
    )
    assert lines_run(large) == lines_run(small)


def test_a_path_of_many_variable_segments_does_not_explode() -> None:
    shapes = itertools.product(["a", "*"], repeat=8)
    router = Router([route("/" + "/".join(shape)) for shape in shapes])
    assert serve(router, "/a" * 8) == "/a" * 8
    assert serve(router, "/b" * 8 + "/a" * 1000) == "/*" * 8


def test_the_list_for_people_names_methods_paths_and_notes() -> None:
    routes = [
        route("/a", methods=["GET", "POST"], name="one"),
        route("/b", name="two"),
        route("/c", listed=["POST /c/login"]),
        route("/d", listed=[]),
    ]
    assert listing(routes, {"two": "auth required"}) == [
        "GET /a",
        "POST /a",
        "ANY /b (auth required)",
        "POST /c/login",
    ]
