"""The limits of single views, which the decorators of Flask and Django use."""

from __future__ import annotations

from wsgigate.middleware.limiter import LimitedViews, Limiter, ViewLimit
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.fakes import FakeClock, new_environ
from wsgigate.testing.limits import limits_off
from wsgigate.testing.store import BrokenStore

VIEWS = LimitedViews("tests")


def test_requests_over_the_quota_have_a_problem_and_its_fields() -> None:
    limit = ViewLimit(VIEWS, "2/m", store=MemoryStore(clock=FakeClock()), name="orders")
    first, second, third = (limit.count(new_environ()) for _ in range(3))
    assert (first.problem, second.problem) == (None, None)
    assert dict(first.fields)["RateLimit"] == '"orders";r=1;t=30'
    assert third.problem is not None
    assert third.problem.status == 429
    fields = dict(third.fields)
    assert (fields["Retry-After"], fields["RateLimit"]) == ("30", '"orders";r=0;t=30')


def test_callers_count_separately() -> None:
    limit = ViewLimit(VIEWS, "1/m", store=MemoryStore(), key="header:X-Team")
    teams = [new_environ() | {"HTTP_X_TEAM": team} for team in "aab"]
    assert [limit.count(environ).problem is None for environ in teams] == [True, False, True]


def test_limits_of_one_name_count_together_and_others_do_not() -> None:
    store = MemoryStore()
    one, same, other = (ViewLimit(VIEWS, "1/m", store=store, name=name) for name in ("a", "a", "b"))
    outcomes = [each.count(new_environ()).problem is None for each in (one, same, other)]
    assert outcomes == [True, False, True]


def test_an_outer_limiter_reports_the_limit_of_the_view_as_well() -> None:
    limit = ViewLimit(VIEWS, "5/m", store=MemoryStore(), name="view")

    def app(environ, start_response):
        start_response("200 OK", limit.count(environ).fields)
        return []

    seen = {}
    outer = Limiter(app, "9/m", store=MemoryStore(), name="all")
    outer(new_environ(), lambda status, headers, exc_info=None: seen.update(headers))
    assert seen["RateLimit"] == '"all";r=8;t=7, "view";r=4;t=12'


def test_a_failing_store_lets_pass_or_answers_503() -> None:
    allowed = ViewLimit(VIEWS, "1/m", store=BrokenStore())
    refused = ViewLimit(VIEWS, "1/m", store=BrokenStore(), on_store_error="refuse")
    assert allowed.count(new_environ()).problem is None
    outcome = refused.count(new_environ())
    assert outcome.problem is not None
    assert (outcome.problem.status, outcome.fields) == (503, [("Retry-After", "5")])


def test_limits_that_are_off_count_nothing() -> None:
    limit = ViewLimit(VIEWS, "1/m", store=MemoryStore())
    with limits_off():
        outcomes = [limit.count(new_environ()) for _ in range(3)]
    assert [(each.problem, each.fields) for each in outcomes] == [(None, [])] * 3
