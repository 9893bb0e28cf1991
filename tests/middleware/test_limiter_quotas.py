"""Several quotas, plans, costs, exemptions and dry runs of a limiter."""

from __future__ import annotations

import json
import logging

import pytest

from tests.middleware.limits import ask, hello, statuses
from tests.support.objects import texts_kept
from wsgigate.http.caller import exemption
from wsgigate.http.wsgi import CLAIMS, CLIENT
from wsgigate.middleware.limiter import Limiter
from wsgigate.middleware.logger import Logger
from wsgigate.rules.quota import Quota
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock


@pytest.fixture
def clock():
    return FakeClock(1_750_000_000.0)


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


# -- several quotas at once ------------------------------------------------------------------


def test_a_request_must_pass_all_quotas_and_its_response_names_each(store):
    app = Limiter(hello, ["3/s", "5 per hour"], store=store, algorithm="fixed-window")
    status, fields, _ = ask(app)
    assert status == 200
    assert fields["RateLimit-Policy"] == '"default-1s";q=3;w=1, "default-1h";q=5;w=3600'
    assert fields["RateLimit"] == '"default-1s";r=2;t=1, "default-1h";r=4;t=3600'
    assert (fields["X-RateLimit-Limit"], fields["X-RateLimit-Remaining"]) == ("3", "2")


def test_a_request_rejected_by_one_quota_is_charged_to_none(store, clock):
    app = Limiter(hello, ["2/s", "5 per hour"], store=store, algorithm="fixed-window")
    assert statuses(app, 6) == [200, 200, 429, 429, 429, 429]
    clock.advance(1)
    assert statuses(app, 3) == [200, 200, 429]
    clock.advance(1)
    assert statuses(app, 3) == [200, 429, 429]


def test_a_refusal_names_the_quota_that_refuses_and_when_it_no_longer_does(store, clock):
    app = Limiter(hello, ["1/s", "2 per hour"], store=store, algorithm="fixed-window")
    ask(app)
    status, fields, problem = ask(app)
    assert (status, problem["violated-policies"]) == (429, ["default-1s"])
    assert fields["RateLimit"] == '"default-1s";r=0;t=1'
    assert fields["RateLimit-Policy"] == '"default-1s";q=1;w=1, "default-1h";q=2;w=3600'
    assert fields["Retry-After"] == "1"
    assert fields["X-RateLimit-Limit"] == "1"
    clock.advance(1)
    ask(app)
    status, fields, problem = ask(app)
    assert problem["violated-policies"] == ["default-1s", "default-1h"]
    assert (fields["Retry-After"], problem["retryAfter"]) == ("3599", 3599)
    assert fields["X-RateLimit-Limit"] == "2"


def test_quotas_have_the_names_they_are_given(store):
    quotas = [Quota(3, 1, name="burst"), Quota(9, calendar="month", name="monthly")]
    _, fields, _ = ask(Limiter(hello, quotas, store=store))
    assert [item.partition(";")[0] for item in fields["RateLimit"].split(", ")] == [
        '"burst"',
        '"monthly"',
    ]


@pytest.mark.parametrize(
    ("quotas", "names"),
    [
        (["1/s", "2/15m"], ["default-1s", "default-15m"]),
        (["1/250s", "2/36h"], ["default-250s", "default-36h"]),
        (["1/2d", "2/w"], ["default-2d", "default-1w"]),
        (["1/0.5s", "2 per calendar month"], ["default-0.5s", "default-month"]),
        (["1/h"], ["default"]),
    ],
)
def test_quotas_without_a_name_are_called_after_their_time(store, quotas, names):
    _, fields, _ = ask(Limiter(hello, quotas, store=store))
    assert [item.split(";")[0].strip('"') for item in fields["RateLimit"].split(", ")] == names


def test_the_fields_combine_several_quotas_and_the_outer_limiter(store):
    inner = Limiter(hello, ["5/s", "9/m"], store=store, name="inner")
    _, fields, _ = ask(Limiter(inner, "2/h", store=store, name="outer"))
    names = [item.partition(";")[0] for item in fields["RateLimit-Policy"].split(", ")]
    assert names == ['"outer"', '"inner-1s"', '"inner-1m"']
    assert fields["X-RateLimit-Limit"] == "2"


def test_a_month_of_the_calendar_ends_with_it(store, clock):
    clock.now = 1_751_327_999.0  # 2025-06-30T23:59:59Z
    app = Limiter(hello, "1 per calendar month", store=store)
    first, refused = ask(app), ask(app)
    assert (first[0], refused[0]) == (200, 429)
    assert refused[1]["Retry-After"] == "1"
    assert refused[1]["X-RateLimit-Reset"] == "2025-07-01T00:00:00.000Z"
    clock.advance(1)
    assert statuses(app, 2) == [200, 429]


# -- cost ------------------------------------------------------------------------------------


def cost_of(environ):
    return int(environ.get("HTTP_X_COST", "1"))


def test_a_request_may_count_as_several(store):
    app = Limiter(hello, "10/m", store=store, cost=4)
    assert statuses(app, 3) == [200, 200, 429]
    app = Limiter(hello, ["10/m", "20/h"], store=store, cost=cost_of)
    assert [ask(app, HTTP_X_COST=cost)[0] for cost in ("7", "4", "3", "1")] == [200, 429, 200, 429]


def test_a_cost_of_zero_checks_without_consuming(store):
    app = Limiter(hello, "1/m", store=store, cost=cost_of)
    assert statuses(app, 3, HTTP_X_COST="0") == [200] * 3
    assert statuses(app, 2) == [200, 429]
    assert ask(app, HTTP_X_COST="0")[1]["X-RateLimit-Remaining"] == "0"


@pytest.mark.parametrize("quota", ["10/m", ["10/m", "100/h"]])
def test_a_cost_above_the_limit_is_rejected_with_an_explanation(store, quota):
    app = Limiter(hello, quota, store=store, cost=cost_of, name="work")
    for _ in range(2):
        status, fields, problem = ask(app, HTTP_X_COST="11")
        assert status == 429
        assert "Retry-After" not in fields
        assert '"work' in fields["RateLimit-Policy"]
        assert problem["detail"] == "This request counts as 11, and no more than 10 are allowed."
        assert problem["type"].endswith("#quota-exceeded")
        assert problem["violated-policies"] == ["work" if quota == "10/m" else "work-1m"]
    assert statuses(app, 1, HTTP_X_COST="10") == [200], "and it was charged nothing"


def test_an_exempt_caller_may_exceed_every_cost(store):
    app = Limiter(hello, "1/m", store=store, cost=cost_of, key="api-key")
    assert statuses(app, 2, HTTP_X_COST="99") == [200, 200]


def test_a_cost_below_nothing_is_a_bad_request(store):
    app = Limiter(hello, "10/m", store=store, cost=cost_of)
    assert ask(app, HTTP_X_COST="-1")[0] == 400


# -- plans -----------------------------------------------------------------------------------

PLANS = {"free": "2/m", "pro": ["3/m", "100/h"]}


@pytest.mark.parametrize(
    ("plan", "environ", "passes"),
    [
        ("header:X-Plan", {"HTTP_X_PLAN": "free"}, 2),
        ("header:X-Plan", {"HTTP_X_PLAN": "pro"}, 3),
        ("header:X-Plan", {"HTTP_X_PLAN": "gold"}, 1),
        ("header:X-Plan", {}, 1),
        ("claim:plan", {CLAIMS: {"plan": "pro"}}, 3),
        ("claim:plan", {CLAIMS: {"plan": ["pro"]}}, 1),
        ("claim:plan", {"HTTP_PLAN": "pro"}, 1),
        (lambda environ: "free", {}, 2),
    ],
)
def test_the_plan_decides_and_callers_without_one_get_the_quota(store, plan, environ, passes):
    app = Limiter(hello, "1/m", store=store, plans=PLANS, plan=plan)
    assert statuses(app, 5, **environ).count(200) == passes


def test_a_function_may_return_the_quota_of_each_request(store):
    def quota(environ):
        return {"a": "1/m", "b": ["2/m", "9/h"], "c": Quota(3, 60)}.get(environ.get("HTTP_X"))

    app = Limiter(hello, quota, store=store)
    passed = {x: statuses(app, 5, HTTP_X=x).count(200) for x in ("a", "b", "c", "none")}
    assert passed == {"a": 1, "b": 2, "c": 3, "none": 5}


def test_quotas_of_a_function_do_not_pile_up(store):
    app = Limiter(hello, lambda environ: f"{environ['HTTP_X']}/m", store=store)
    for number in range(1, 1500):
        ask(app, HTTP_X=str(number))
    quotas = texts_kept(app, but=[store]) & {f"{number}/m" for number in range(1, 1500)}
    assert 0 < len(quotas) <= 1024


# -- who is not counted ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exempt", "environ", "exempted"),
    [
        ({"addresses": ["10.0.0.0/8"]}, {"REMOTE_ADDR": "10.1.2.3"}, True),
        ({"addresses": ["10.0.0.0/8"]}, {"REMOTE_ADDR": "::ffff:10.1.2.3"}, True),
        ({"addresses": ["10.0.0.0/8"]}, {"REMOTE_ADDR": "11.1.2.3"}, False),
        ({"addresses": ["10.0.0.0/8"]}, {CLIENT: "10.1.2.3"}, True),
        ({"addresses": ["10.0.0.0/8"]}, {"HTTP_X_FORWARDED_FOR": "10.1.2.3"}, False),
        ({"paths": ["/health"]}, {"PATH_INFO": "/health"}, True),
        ({"paths": ["/health"]}, {"PATH_INFO": "/health", "QUERY_STRING": "a=b"}, True),
        ({"paths": ["/health"]}, {"PATH_INFO": "/health/x"}, False),
        ({"paths": ["/health"]}, {"PATH_INFO": "/healthy"}, False),
        ({"paths": ["/health"]}, {"PATH_INFO": "/x", "QUERY_STRING": "/health"}, False),
        ({"paths": ["/static/*"]}, {"PATH_INFO": "/static/a/b.css"}, True),
        ({"paths": ["/static/*"]}, {"PATH_INFO": "/static"}, False),
        ({"paths": ["/static/*"]}, {"PATH_INFO": "/static/../orders"}, False),
        ({"paths": ["/static/*"]}, {"PATH_INFO": "/staticorders"}, False),
        ({"methods": ["OPTIONS"]}, {"REQUEST_METHOD": "OPTIONS"}, True),
        ({"methods": ["OPTIONS"]}, {"REQUEST_METHOD": "GET"}, False),
        ({"rule": lambda environ: environ.get("HTTP_X")}, {"HTTP_X": "1"}, True),
        ({"rule": lambda environ: environ.get("HTTP_X")}, {}, False),
        ({"methods": ["PUT"], "paths": ["/a"]}, {"PATH_INFO": "/a"}, True),
        (lambda environ: True, {}, True),
        (lambda environ: None, {}, False),
        (exemption(paths=["/a"]), {"PATH_INFO": "/a"}, True),
    ],
)
def test_exempt_requests_are_not_counted_and_get_no_fields(store, exempt, environ, exempted):
    app = Limiter(hello, "1/m", store=store, exempt=exempt)
    assert statuses(app, 2, **environ) == ([200, 200] if exempted else [200, 429])
    assert (list(store.items("")) == []) == exempted


# -- observing -------------------------------------------------------------------------------


def test_an_observer_passes_all_requests_and_logs_for_the_operator(store, clock, caplog):
    app = Limiter(hello, "1/m", store=store, observe=True, name="trial", clock=clock)
    with caplog.at_level(logging.INFO, "wsgigate.limiter"):
        for _ in range(4):
            status, fields, _ = ask(app)
            assert status == 200
            assert not [name for name in fields if "ratelimit" in name.lower()]
        clock.advance(60.5)
        statuses(app, 2)
    assert app.observed == 4
    assert [record.getMessage() for record in caplog.records] == [
        "the limit 'trial' (observe only) would have rejected 1 requests since the last such "
        "message; the last: 192.0.2.1 is over the quota 'trial' of 1 per minute",
        "the limit 'trial' (observe only) would have rejected 3 requests since the last such "
        "message; the last: 192.0.2.1 is over the quota 'trial' of 1 per minute",
    ]


def test_the_access_log_says_what_an_observer_would_have_done(store, tmp_path):
    with open(tmp_path / "log", "w") as stream:
        logger = Logger(
            Limiter(hello, "1/m", store=store, observe=True), stream=stream, format="json"
        )
        statuses(logger, 2)
        logger.close()
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert "reason" not in first
    assert second["status"] == 200
    assert second["reason"] == (
        "only observed: 192.0.2.1 is over the quota 'default' of 1 per minute"
    )


def test_an_observer_lets_pass_what_could_never_pass_and_what_cannot_be_counted(store):
    app = Limiter(hello, "1/m", store=store, observe=True, cost=cost_of)
    assert statuses(app, 1, HTTP_X_COST="2") == [200]
    app = Limiter(hello, "1/m", store=BrokenStore(), observe=True, on_store_error="refuse")
    assert statuses(app, 1) == [200]


# -- stores that decide by themselves --------------------------------------------------------


def test_a_store_that_decides_about_quotas_by_itself_is_used_so(clock):
    asked = []

    class Deciding(MemoryStore):
        def take(self, key, algorithms, cost):
            asked.append((key, [one.name for one in algorithms], cost))
            now = clock()
            return tuple(one.take(None, now, cost)[2] for one in algorithms), now

        def update(self, key, change):
            raise AssertionError("a store that decides is not to be asked to change")

    store = Deciding()
    _, fields, _ = ask(Limiter(hello, ["5/s", "9 per calendar day"], store=store, cost=2))
    assert fields["RateLimit"] == '"default-1s";r=3;t=1, "default-day";r=7;t=32000'
    assert asked == [
        ("limit/default/together/=192.0.2.1", ["token-bucket", "calendar"], 2),
    ]


# -- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quota": []}, "a quota is written"),
        ({"quota": ["1/s", "2/s"]}, "quota: two of one name; .*default-1s"),
        ({"quota": ["1/s", "many"]}, "a quota is written"),
        ({"quota": {"a": "1/s"}}, "a quota is written"),
        ({"cost": 0}, "cost is a whole number of at least 1"),
        ({"cost": 1.5}, "cost is a whole number of at least 1"),
        ({"cost": True}, "cost is a whole number of at least 1"),
        ({"cost": 11}, "cost: 11 is more than a quota of 10 ever allows"),
        ({"cost": 2, "plans": {"free": "1/h"}, "plan": "claim:plan"}, "cost: 2 is more than"),
        ({"plans": {"free": "1/h"}}, "plan: required with plans"),
        ({"plan": "claim:plan"}, "plans: required with plan"),
        ({"plans": {"free": "x"}, "plan": "claim:plan"}, "a quota is written"),
        ({"plans": {}, "plan": "cookie:plan"}, "plan is a function, claim:PATH or header:NAME"),
        ({"plans": {}, "plan": 7}, "plan is a function, claim:PATH or header:NAME"),
        ({"key": "claim:a..b"}, "key: 'a..b' is not the path of a claim: a name is empty"),
        ({"key": "claim:"}, "key: expected the path of a claim"),
        ({"plans": {}, "plan": "claim:a..b"}, "plan: 'a..b' is not the path of a claim"),
        ({"key": "who"}, "key is one of address, .* not 'who'"),
        ({"key": "header:a b"}, "key is one of"),
        ({"key": "cookie:"}, "key is one of"),
        ({"key": []}, "key is a function, the name of one, or a list"),
        ({"key": 7}, "key is a function, the name of one, or a list"),
        ({"exempt": 7}, "exempt is a function, or a table"),
        ({"exempt": {"path": []}}, "exempt has no path"),
        ({"exempt": {"paths": "/a"}}, "exempt: paths and methods are lists"),
        ({"exempt": {"paths": ["a"]}}, "exempt: paths: 'a'"),
        ({"exempt": {"paths": ["/a*"]}}, "exempt: paths: '/a\\*' is neither"),
        ({"exempt": {"paths": ["/*/a"]}}, "exempt: paths: '/\\*/a' is neither"),
        ({"exempt": {"addresses": ["here"]}}, "exempt: addresses: 'here'"),
        ({"exempt": {"methods": ["get"]}}, "exempt: methods: 'get' is not a method in upper case"),
        ({"exempt": {"rule": 7}}, "exempt: rule is a function"),
        ({"algorithm": "calendar"}, "calendar"),
    ],
)
def test_wrong_settings_are_refused_at_construction(settings, words):
    with pytest.raises(ValueError, match=words):
        Limiter(hello, **({"quota": "10/s"} | settings))
