"""The decorator that limits views, as users of django-ratelimit expect it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import AsyncRequestFactory, Client
from django.utils.decorators import method_decorator
from django.views import View

from wsgigate.django import UNSAFE, limit
from wsgigate.rules.quota import Quota
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock


def hello(request):
    return HttpResponse("limited" if request.limited else "hello")


def made(rate="2/m", view=hello, **options):
    return limit(rate, store=MemoryStore(clock=FakeClock()), **options)(view)


def statuses(project, view, requests, **settings) -> list[int]:
    project({"": view}, **{"MIDDLEWARE": [], **settings})
    client = Client()
    return [send(client).status_code for send in requests]


def get(**headers):
    return lambda client: client.get("/", headers=headers)


def post(**data):
    return lambda client: client.post("/", data)


def by_group_and_team(group, request):
    return f"{group} {request.headers.get('X-Team')}"


def doubled(group, request):
    return (2, 60)


def test_requests_over_the_quota_get_a_429(project) -> None:
    project({"": made()}, MIDDLEWARE=[])
    client = Client()
    first, second, third = (client.get("/") for _ in range(3))
    assert [first.content, second.content, third.status_code] == [b"hello", b"hello", 429]
    assert first["RateLimit"].startswith('"hello-')
    assert first["X-RateLimit-Remaining"] == "1"
    assert (third["Retry-After"], third.json()["title"]) == ("30", "Too Many Requests")
    assert third["RateLimit"].endswith(";r=0;t=30")


@pytest.mark.parametrize(
    ("key", "requests", "expected"),
    [
        ("ip", [get(), get()], [200, 429]),
        ("address", [get(), get()], [200, 429]),
        ("header:X-Team", [get(x_team="a"), get(x_team="a"), get(x_team="b")], [200, 429, 200]),
        ("post:name", [post(name="a"), post(name="b"), post(name="a")], [200, 200, 429]),
        ("get:q", [get(), get()], [200, 429]),
        (by_group_and_team, [get(x_team="a"), get(x_team="b")], [200, 200]),
        (f"{__name__}.by_group_and_team", [get(x_team="a"), get(x_team="a")], [200, 429]),
        (["ip", "header:X-Team"], [get(x_team="a"), get(x_team="b")], [200, 200]),
        (lambda group, request: None, [get(), get()], [200, 200]),
    ],
)
def test_callers_are_counted_by_their_key(project, key, requests, expected) -> None:
    assert statuses(project, made("1/m", key=key), requests) == expected


@pytest.mark.parametrize("key", ["user", "user_or_ip"])
def test_users_count_by_themselves_and_the_anonymous_by_address(project, key) -> None:
    users = iter([1, 2, 1, None, None])

    def view(request):
        return HttpResponse()

    limited = made("1/m", view, key=key)

    def with_user(request):
        pk = next(users)
        request.user = SimpleNamespace(pk=pk, is_authenticated=pk is not None)
        return limited(request)

    assert statuses(project, with_user, [get()] * 5) == [200, 200, 429, 200, 429]


@pytest.mark.parametrize(
    ("methods", "expected"),
    [(None, [200, 429, 429]), ("POST", [200, 200, 200]), ("GET", [200, 429, 200]),
     (UNSAFE, [200, 200, 200]), (["GET", "POST"], [200, 429, 429])],
)  # fmt: skip
def test_only_the_methods_are_counted(project, methods, expected) -> None:
    view = made("1/m", methods=methods)
    assert statuses(project, view, [get(), get(), post()]) == expected


def test_head_counts_as_get(project) -> None:
    view = made("1/m", methods="GET")
    assert statuses(project, view, [get(), lambda client: client.head("/")]) == [200, 429]


def test_without_block_the_view_knows_that_the_quota_is_exceeded(project) -> None:
    project({"": made("1/m", block=False)}, MIDDLEWARE=[])
    client = Client()
    assert [client.get("/").content for _ in range(2)] == [b"hello", b"limited"]


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (Quota(1, 60), [200, 429, 429]),
        (["5/m", "1/s"], [200, 429, 429]),
        (doubled, [200, 200, 429]),
        (f"{__name__}.doubled", [200, 200, 429]),
        (lambda group, request: "1/m", [200, 429, 429]),
        (lambda group, request: None, [200, 200, 200]),
    ],
)
def test_a_rate_is_a_quota_or_a_function(project, rate, expected) -> None:
    assert statuses(project, made(rate), [get()] * 3) == expected


def test_several_limits_report_together_and_the_tightest_decides(project) -> None:
    store = MemoryStore()
    view = limit("5/m", store=store, group="outer")(limit("1/m", store=store, group="inner")(hello))
    project({"": view}, MIDDLEWARE=[])
    client = Client()
    first, second = client.get("/"), client.get("/")
    assert first["RateLimit"].count(";r=") == 2
    assert (second.status_code, second["RateLimit"].count(";r=")) == (429, 1)
    assert second["RateLimit"].startswith('"inner-')


def test_views_count_separately_unless_they_share_a_group(project) -> None:
    store = MemoryStore()
    one, other = (limit("1/m", store=store, group=name)(hello) for name in ("a", "b"))
    same = limit("1/m", store=store, group="a")(hello)
    project({"one": one, "other": other, "same": same}, MIDDLEWARE=[])
    client = Client()
    found = [client.get(path).status_code for path in ("/one", "/other", "/same")]
    assert found == [200, 200, 429]


def test_without_a_store_views_of_a_project_share_one_and_count_by_name(project) -> None:
    def other(request):
        return HttpResponse()

    project({"": limit("1/m")(hello), "other": limit("1/m")(other)}, MIDDLEWARE=[])
    client = Client()
    found = [client.get(path).status_code for path in ("/", "/other", "/", "/other")]
    assert found == [200, 200, 429, 429]


def test_class_based_and_coroutine_views_are_limited(project) -> None:
    @method_decorator(limit("1/m", store=MemoryStore()), name="dispatch")
    class Hello(View):
        def get(self, request):
            return HttpResponse()

    @limit("1/m", store=MemoryStore())
    async def coroutine(request):
        await asyncio.sleep(0)
        return HttpResponse()

    for view in (Hello.as_view(), coroutine):
        assert statuses(project, view, [get(), get()]) == [200, 429]


def test_the_limits_of_a_view_and_of_the_stack_report_together(project) -> None:
    outer = ("wsgigate.Limiter", {"quota": "9/m", "store": MemoryStore(), "name": "all"})
    project({"": made(group="view")}, WSGIGATE=[outer])
    assert Client().get("/")["RateLimit"].startswith('"all";r=8;t=7, "view-')


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rate": "many"}, "a quota is written"),
        ({"key": "usr"}, "key is one of"),
        ({"key": 7}, "key: expected a name"),
        ({"key": "nowhere.key"}, "key: No module named"),
        ({"rate": "nowhere.rate"}, "rate: No module named"),
        ({"methods": "post"}, "methods: expected methods in upper case"),
        ({"on_store_error": "shrug"}, "on_store_error"),
    ],
)
def test_a_wrong_argument_is_named(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        limit(**{"rate": "5/m", **arguments})(hello)


def test_under_asgi_a_limited_view_fails_clearly() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"wsgigate.django.limit is for WSGI"):
        made()(AsyncRequestFactory().get("/"))
