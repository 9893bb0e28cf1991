"""The Lua scripts decide on quotas exactly as the rules in Python do."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsgigate.rules.algorithms import ALGORITHMS, CombinedAlgorithm, TokenBucket, algorithm_for
from wsgigate.rules.quota import CALENDAR, LARGEST, LONGEST, Quota
from wsgigate.store import update
from wsgigate.store.redis import RedisStore
from wsgigate.store.redis_scripts import prepared
from wsgigate.testing import check_exact

LEAP = 951_782_400  # 2000-02-29


class Both:
    """The same requests decided by a server and by the rules, under times of their own."""

    def __init__(self, admin, store, algorithms, state=None):
        self.admin, self.store, self.state = admin, store, state
        self.ready = prepared(tuple(algorithms))
        self.algorithms = algorithms
        self.rule = algorithms[0] if len(algorithms) == 1 else CombinedAlgorithm(algorithms)

    def take(self, micros, cost):
        now = micros / 1_000_000
        assert int(now * 1_000_000 + 0.5) == micros, "the moment is one that Python can tell"
        name = f"{self.store.prefix}both"
        if self.state is None:
            self.admin.delete(name)
        else:
            self.admin.set(name, self.state)  # for ever: the server's own time goes on meanwhile
        self.state, ttl, verdicts = self.rule.take(self.state, now, cost)
        found, at = self.store.take_at("both", self.ready, cost, b"%d" % micros)
        assert found == ((verdicts,) if len(self.algorithms) == 1 else verdicts)
        assert [type(one.allowed) for one in found] == [bool] * len(found)
        assert at == now
        live = self.admin.get(name)
        assert live == self.state or (live is None and ttl < 60)


@pytest.fixture(scope="module")
def admin(server):
    with server.admin() as client:
        yield client


def periods():
    exact = st.integers(1_000, int(LONGEST * 1_000_000)).map(lambda micros: micros / 1_000_000)
    return st.sampled_from([0.001, 0.25, 1.0, 60.0, 900.0, 86400.0, LONGEST]) | exact


def limits():
    return st.integers(1, 8) | st.sampled_from([100, 65_535, 65_536, 10**6, LARGEST])


@st.composite
def algorithms(draw):
    name = draw(st.sampled_from(sorted(ALGORITHMS)))
    limit = draw(limits())
    if name == "calendar":
        return algorithm_for(Quota(limit, calendar=draw(st.sampled_from(sorted(CALENDAR)))))
    return algorithm_for(Quota(limit, draw(periods())), name)


def several():
    def told(one):
        return one.name, one.quota.limit, one.quota.micros, one.quota.calendar

    return st.lists(algorithms(), min_size=2, max_size=5, unique_by=told)


@st.composite
def stories(draw, kinds):
    """Algorithms, and requests as pairs of moment and cost: near each other, or not at all."""
    chosen = draw(kinds)
    period = max(1000, min(one.quota.micros for one in chosen))
    most = min(one.quota.limit for one in chosen)
    moment = draw(
        st.integers(LEAP, 4_000_000_000).map(lambda second: second * 1_000_000)
        | st.integers(10**15, 4 * 10**15)
    )
    requests = []
    steps = (
        st.sampled_from([0, 0, 0, 1, period // 30, period // most, period // most - 1, period])
        | st.integers(0, period)
        | st.integers(0, 3 * period)
        | st.integers(-period, 0)
        | st.integers(0, 40 * 86400 * 10**6)
    )
    for _ in range(draw(st.integers(1, 25))):
        moment = min(max(moment + draw(steps), 10**15), 4 * 10**15)
        cost = draw(st.sampled_from([0, 1, 1, 1, most, (most + 1) // 2]) | st.integers(0, most))
        requests.append((moment, cost))
    return chosen, requests


OFTEN = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@OFTEN
@given(story=stories(algorithms().map(lambda one: [one])))
def test_the_script_decides_one_quota_as_the_rule_does(admin, store, story):
    chosen, requests = story
    both = Both(admin, store, chosen)
    for moment, cost in requests:
        both.take(moment, cost)


@OFTEN
@given(story=stories(several()))
def test_the_script_decides_several_quotas_as_the_rule_does(admin, store, story):
    chosen, requests = story
    both = Both(admin, store, chosen)
    for moment, cost in requests:
        both.take(moment, cost)


@OFTEN
@given(
    story=stories(algorithms().map(lambda one: [one]) | several()),
    state=st.binary(max_size=120)
    | st.sampled_from([b"b", b"f", b"s", b"c"]).flatmap(
        lambda letter: st.binary(min_size=16, max_size=16).map(lambda rest: letter + rest)
    )
    | st.binary(max_size=60).map(lambda rest: b"t" + rest),
)
def test_the_script_reads_a_foreign_value_as_the_rule_does(admin, store, story, state):
    chosen, requests = story
    both = Both(admin, store, chosen, state)
    for moment, cost in requests:
        both.take(moment, cost)


@pytest.mark.parametrize("calendar", sorted(CALENDAR))
def test_the_script_computes_the_calendar_as_the_rule_does(store, calendar):
    """Around the ends of months of leap years and of others: all that a calendar can do."""
    algorithm = algorithm_for(Quota(5, calendar=calendar))
    ready = prepared((algorithm,))
    for year in (1999, 2000, 2001, 2024, 2026, 2100):
        for month in range(1, 13):
            start = int(datetime(year, month, 1, tzinfo=UTC).timestamp())
            for second in (start - 1, start):
                _, _, expected = algorithm.take(None, float(second), 1)
                (found,), _ = store.take_at(f"{second}", ready, 1, b"%d" % (second * 1_000_000))
                assert found == expected


def test_script_and_rule_continue_each_others_states(store):
    one = TokenBucket(Quota(3, 3600))

    def change(old, now):
        new, ttl, verdict = one.take(old, now)
        return new, ttl, verdict

    remaining = []
    for turn in range(4):
        if turn % 2:
            remaining.append(store.take("key", [one], 1)[0][0].remaining)
        else:
            remaining.append(update(store, "key", change).remaining)
    assert remaining == [2, 1, 0, 0]


def test_a_custom_algorithm_decides_in_python(store):
    class Mine(TokenBucket):
        def take(self, old, now, cost=1):
            new, ttl, verdict = super().take(old, now, cost)
            return new, ttl, verdict._replace(retry_after=42.0)

    (verdict,), now = store.take("key", [Mine(Quota(2, 60))], 1)
    assert (verdict.remaining, verdict.retry_after) == (1, 42.0)
    both, _ = store.take("several", [Mine(Quota(2, 60)), TokenBucket(Quota(5, 60))], 2)
    assert [(verdict.remaining, verdict.retry_after) for verdict in both] == [(0, 42.0), (3, 0.0)]
    assert now == pytest.approx(store.get("key")[1], abs=30)


@pytest.mark.parametrize("cost", [-1, 4, 1.0, True])
def test_an_invalid_cost_is_rejected_before_a_command_is_sent(connect, cost):
    store = connect("redis://127.0.0.1:1/0")
    with pytest.raises(ValueError, match="a request may cost 0 to"):
        store.take("key", [TokenBucket(Quota(5, 60)), TokenBucket(Quota(3, 60))], cost)


def test_no_quota_or_a_duplicate_quota_is_rejected(store):
    with pytest.raises(ValueError, match="at least one"):
        store.take("key", [], 1)
    with pytest.raises(ValueError, match="the same"):
        store.take("key", [TokenBucket(Quota(5, 60)), TokenBucket(Quota(5, 60))], 1)


def test_a_decision_is_one_round_trip_and_names_its_one_key(server, store):
    algorithms = [TokenBucket(Quota(5, 60)), algorithm_for(Quota(9, calendar="day"))]
    store.take("first", algorithms, 1)  # the script is known from here on
    with server.admin() as admin, admin.monitor() as monitor:
        store.take("second", algorithms, 1)
        admin.ping()
        seen = []
        for command in monitor.listen():
            if command["command"].startswith(("PING", "HELLO", "CLIENT")):
                break  # of the second connection of this client
            if command["client_type"] != "lua":
                seen.append(command["command"].split()[:4])
    [[name, _, keys, key]] = seen
    assert (name, keys, key) == ("EVALSHA", "1", f"{store.prefix}second")


@pytest.mark.parametrize("quotas", [[Quota(5, 60)], [Quota(5, 60), Quota(9, calendar="day")]])
@pytest.mark.parametrize(
    ("cost", "moment"), [(1, b""), (0, b""), (12, b""), (1, b"123"), (5, b"7")]
)
def test_the_prepared_command_equals_the_whole_command(quotas, cost, moment):
    ready = prepared(tuple(algorithm_for(quota) for quota in quotas))
    whole = ready.script.known(b"some:key", moment, b"%d" % cost, *ready.arguments)
    assert ready.known(b"some:key", cost, moment) == whole


def test_a_state_expires_when_its_quota_is_whole_again(server, store):
    with server.admin() as admin:
        for name in sorted(ALGORITHMS):
            quota = Quota(10, calendar="day") if name == "calendar" else Quota(10, 300)
            (verdict,), _ = store.take(name, [algorithm_for(quota, name)], 4)
            left = admin.pttl(f"{store.prefix}{name}") / 1000
            assert verdict.reset_after - 60 < left <= verdict.reset_after + 0.002


def test_processes_and_threads_together_allow_exactly_the_quota(server):
    check_exact(partial(RedisStore, server.url), processes=4, threads=2)
