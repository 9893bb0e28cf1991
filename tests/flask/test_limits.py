"""Rate limits of views: decorators, defaults, costs, and the response fields."""

from __future__ import annotations

import gc
import weakref

import pytest
from flask import Blueprint, Flask, abort, request
from flask.views import MethodView
from freezegun import freeze_time

from wsgigate import Identity, Quota
from wsgigate.config.errors import ConfigError
from wsgigate.flask import WsgiGate, current_identity

FIELDS = ("RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining")


def made(gate, *views, **config):
    app = Flask("shop")
    app.config.update(config)
    for view in views:
        app.add_url_rule(f"/{view.__name__}", view_func=view, methods=["GET", "POST"])
    gate.init_app(app)
    app.testing = True
    return app


def statuses(client, path, count=3, **options):
    return [client.open(path, **options).status_code for _ in range(count)]


def hello():
    return "hello"


def other():
    return "other"


async def later():
    return "later"


def test_each_view_has_a_count_of_its_own():
    gate = WsgiGate()
    limit = gate.limit("2/d")
    client = made(gate, limit(hello), limit(other)).test_client()
    assert statuses(client, "/hello") == [200, 200, 429]
    assert statuses(client, "/other") == [200, 200, 429]
    assert statuses(client, "/hello", environ_base={"REMOTE_ADDR": "192.0.2.7"}) == [200, 200, 429]


@freeze_time("2030-06-01 12:00:00")
def test_the_response_has_the_fields_of_a_limiter():
    gate = WsgiGate()
    client = made(gate, gate.limit("2/d")(hello), other).test_client()
    first = client.get("/hello")
    policy, state, limit, remaining = (first.headers[name] for name in FIELDS)
    assert (policy, limit, remaining) == ('"hello";q=2;w=86400', "2", "1")
    assert state.startswith('"hello";r=1;t=')
    client.get("/hello")
    rejected = client.get("/hello")
    assert rejected.status_code == 429
    assert int(rejected.headers["Retry-After"]) > 0
    assert rejected.headers["X-RateLimit-Remaining"] == "0"
    assert rejected.json["violated-policies"] == ["hello"]
    assert not any(name in client.get("/other").headers for name in FIELDS)


def test_the_fields_can_be_chosen():
    gate = WsgiGate()
    app = made(gate, gate.limit("2/d")(hello), WSGIGATE_LIMIT_FIELDS=[])
    assert not any(name in app.test_client().get("/hello").headers for name in FIELDS)


def test_several_limits_of_one_view_are_reported_together():
    gate = WsgiGate()
    view = gate.limit("5/d")(gate.limit("2/h; 9/d")(hello))
    client = made(gate, view).test_client()
    answer = client.get("/hello")
    policies = answer.headers["RateLimit-Policy"].split(", ")
    assert [policy.partition(";")[2] for policy in policies] == [
        "q=5;w=86400",
        "q=2;w=3600",
        "q=9;w=86400",
    ]
    assert len({policy.partition(";")[0] for policy in policies}) == 3
    assert answer.headers["X-RateLimit-Remaining"] == "1"
    assert statuses(client, "/hello", 2) == [200, 429]


def test_a_limit_of_a_middleware_and_of_a_view_are_reported_together():
    gate = WsgiGate()
    limiter = {"use": "limiter", "quota": "9/d", "name": "app"}
    client = made(gate, gate.limit("5/d")(hello), WSGIGATE_MIDDLEWARE=[limiter]).test_client()
    assert client.get("/hello").headers["RateLimit-Policy"] == (
        '"app";q=9;w=86400, "hello";q=5;w=86400'
    )


def test_views_may_share_a_count():
    gate = WsgiGate()
    views = (gate.shared_limit("2/d", "mail")(view) for view in (hello, other))
    client = made(gate, *views).test_client()
    assert client.get("/hello").headers["RateLimit-Policy"].startswith('"mail"')
    assert client.get("/other").status_code == 200
    assert client.get("/hello").status_code == 429


def test_methods_and_counts_per_method():
    gate = WsgiGate()
    only_post = gate.limit("1/d", methods=["post"])(hello)
    each = gate.limit("1/d", per_method=True)(other)
    client = made(gate, only_post, each).test_client()
    assert statuses(client, "/hello", method="POST") == [200, 429, 429]
    assert statuses(client, "/hello") == [200, 200, 200]
    assert statuses(client, "/other", 2, method="POST") == [200, 429]
    assert statuses(client, "/other", 2) == [200, 429]


@pytest.mark.parametrize(
    "key",
    [
        "header:X-User",
        lambda: request.headers.get("X-User"),
        lambda environ: environ.get("HTTP_X_USER"),
        ["header:X-User", lambda: "all"],
    ],
)
def test_the_caller_is_a_name_or_a_function(key):
    gate = WsgiGate()
    client = made(gate, gate.limit("1/d", key=key)(hello)).test_client()
    assert statuses(client, "/hello", 2, headers={"X-User": "ada"}) == [200, 429]
    assert statuses(client, "/hello", 2, headers={"X-User": "bob"}) == [200, 429]
    assert statuses(client, "/hello", 2) == [200, 200]


def test_head_counts_as_get():
    gate = WsgiGate()
    only_get = gate.limit("2/d", methods=["GET"])(hello)
    each = gate.limit("2/d", per_method=True)(other)
    client = made(gate, only_get, each).test_client()
    for path in ("/hello", "/other"):
        assert statuses(client, path, method="HEAD") == [200, 200, 429]
        assert statuses(client, path, 1) == [429]
    assert statuses(client, "/hello", method="POST") == [200, 200, 200]


def test_the_caller_may_be_the_identity_and_the_key_of_all_limits_a_setting():
    gate = WsgiGate(key=lambda: current_identity.subject if current_identity else "anonymous")
    app = made(gate, gate.limit("1/d")(hello), gate.limit("1/d", key="subject|address")(other))
    for path in ("/hello", "/other"):
        for name in ("ada", "bob"):
            client = app.test_client(identity=Identity(name, "bearer"))
            assert statuses(client, path, 2) == [200, 429]


def test_costs_exemptions_and_quotas_may_be_functions():
    gate = WsgiGate()
    costly = gate.limit("10/d", cost=lambda: int(request.args["cost"]))(hello)
    plans = gate.limit(
        lambda: None if request.args.get("plan") == "gold" else "1/d",
        exempt_when=lambda: "free" in request.args,
    )(other)
    client = made(gate, costly, plans).test_client()
    assert [client.get(f"/hello?cost={n}").status_code for n in (7, 4, 3, 0, 1)] == [
        *(200, 429, 200),
        *(200, 429),
    ]
    assert client.get("/hello?cost=11").status_code == 429
    assert client.get("/hello?cost=-1").status_code == 400
    assert statuses(client, "/other?free", 2) == [200, 200]
    assert statuses(client, "/other?plan=gold", 2) == [200, 200]
    assert statuses(client, "/other", 2) == [200, 429]


def test_a_number_is_a_cost_as_well():
    gate = WsgiGate()
    client = made(gate, gate.limit("10/d", cost=4)(hello)).test_client()
    assert statuses(client, "/hello") == [200, 200, 429]


def test_only_some_responses_consume_the_quota():
    gate = WsgiGate()

    def login():
        return "welcome" if request.args["password"] == "right" else ("wrong", 401)

    failed = gate.limit("2/d", deduct_when=lambda response: response.status_code == 401)
    client = made(gate, failed(login)).test_client()
    assert statuses(client, "/login?password=right") == [200, 200, 200]
    answer = client.get("/login?password=wrong")
    assert (answer.status_code, answer.headers["X-RateLimit-Remaining"]) == (401, "1")
    answer = client.get("/login?password=right")
    assert (answer.status_code, answer.headers["X-RateLimit-Remaining"]) == (200, "1")
    assert statuses(client, "/login?password=wrong", 2) == [401, 429]
    assert client.get("/login?password=right").status_code == 429


def test_a_negative_cost_is_rejected_before_the_view():
    gate = WsgiGate()
    later = gate.limit("5/d", cost=lambda: int(request.args["cost"]), deduct_when=bool)
    client = made(gate, later(hello)).test_client()
    found = [client.get(f"/hello?cost={n}").status_code for n in (-1, 4, 2, 1, -1)]
    assert found == [400, 200, 429, 200, 400]


def test_a_view_that_has_used_up_the_quota_meanwhile_still_responds():
    gate = WsgiGate()
    failed = gate.limit("1/d", deduct_when=lambda response: True)

    def nested():
        if "again" not in request.args:
            client.get("/nested?again=1")
        return "done"

    client = made(gate, failed(nested)).test_client()
    assert client.get("/nested").status_code == 200
    assert client.get("/nested").status_code == 429


def test_class_based_views_blueprints_and_sections_are_limited():
    gate = WsgiGate()

    class Orders(MethodView):
        decorators = [gate.limit("1/d")]  # noqa: RUF012 - as Flask documents it

        def get(self):
            return "orders"

    def section():
        if "mail" in request.args:
            with gate.limit("1/d", name="mail"):
                return "sent"
        return "nothing sent"

    one, two = Blueprint("one", __name__), Blueprint("two", __name__)
    assert gate.limit("1/d")(one) is one
    two.before_request(gate.limit("1/d"))
    for blueprint in (one, two):
        blueprint.add_url_rule(f"/{blueprint.name}", view_func=hello)
        exempted = gate.exempt(lambda: "free")
        blueprint.add_url_rule(f"/{blueprint.name}/free", "free", view_func=exempted)
    app = made(gate, section)
    app.add_url_rule("/orders", view_func=Orders.as_view("orders"))
    app.register_blueprint(one)
    app.register_blueprint(two)
    client = app.test_client()
    for path in ("/orders", "/one", "/two", "/section?mail=1"):
        assert statuses(client, path, 2) == [200, 429], path
    for path in ("/one/free", "/two/free", "/section"):
        assert statuses(client, path, 2) == [200, 200], path


def test_limits_that_are_made_for_each_request_are_not_kept():
    gate = WsgiGate()
    made_limits = weakref.WeakSet()

    def section():
        limit = gate.limit("2/d", name="mail")
        made_limits.add(limit)
        with limit:
            return "sent"

    client = made(gate, section).test_client()
    assert statuses(client, "/section") == [200, 200, 429]
    gc.collect()
    assert len(made_limits) == 0


def defaults(**config):
    gate = WsgiGate(default_limits=["1/d"])
    own = gate.limit("2/d")(hello)

    def both():
        return "both"

    both = gate.limit("9/d", override_defaults=False)(both)

    def free():
        return "free"

    app = made(gate, own, other, both, gate.exempt(free), **config)
    blueprint = Blueprint("free", __name__)
    blueprint.add_url_rule("/blue", view_func=lambda: "blue", endpoint="blue")
    app.register_blueprint(gate.exempt(blueprint))
    return app.test_client()


def test_default_limits_apply_to_views_without_limits_of_their_own():
    client = defaults()
    assert statuses(client, "/other", 2) == [200, 429]
    assert statuses(client, "/both", 2) == [200, 429]
    assert statuses(client, "/hello") == [200, 200, 429]
    for path in ("/free", "/blue", "/static/x.css", "/unknown"):
        assert 429 not in statuses(client, path, 2)


def test_default_limits_may_be_a_setting():
    client = defaults(WSGIGATE_LIMIT_DEFAULT="2/d")
    assert statuses(client, "/other") == [200, 200, 429]


@pytest.mark.parametrize("given", [Quota(1, 86400), "1/d", ["1/d"], (Quota(1, 86400),)])
def test_default_limits_are_one_quota_or_several(given):
    gate = WsgiGate(default_limits=given)
    assert statuses(made(gate, other).test_client(), "/other", 2) == [200, 429]


def test_an_empty_setting_removes_the_default_limits_of_the_program():
    assert statuses(defaults(WSGIGATE_LIMIT_DEFAULT=[]), "/other", 2) == [200, 200]


def test_filters_and_the_switch_exempt_requests():
    gate = WsgiGate()
    view = gate.limit("1/d")(hello)
    assert statuses(made(gate, view, WSGIGATE_LIMIT_ENABLED=False).test_client(), "/hello") == [
        *(200, 200, 200),
    ]
    client = made(gate, view).test_client()
    gate.request_filter(lambda: "inside" in request.args)
    assert statuses(client, "/hello?inside", 2) == [200, 200]
    assert statuses(client, "/hello", 2) == [200, 429]


def test_observed_limits_reject_nothing():
    gate = WsgiGate()
    client = made(gate, gate.limit("1/d", observe=True)(hello)).test_client()
    assert statuses(client, "/hello") == [200, 200, 200]


def test_handlers_and_messages_of_the_rejection():
    gate = WsgiGate()
    app = made(gate, gate.limit("1/d", error_message="Easy!")(hello))
    client = app.test_client()
    client.get("/hello")
    assert client.get("/hello").json["detail"] == "Easy!"
    app = made(gate, gate.limit("1/d")(other))
    app.register_error_handler(429, lambda error: (f"{error.retry_after}", 429))
    client = app.test_client()
    client.get("/other")
    answer = client.get("/other")
    assert int(answer.text) > 0
    assert answer.headers["Retry-After"] == answer.text
    assert answer.headers["X-RateLimit-Remaining"] == "0"


def test_a_view_that_fails_is_counted_and_its_response_has_the_fields():
    gate = WsgiGate()

    def missing():
        abort(404)

    client = made(gate, gate.limit("2/d")(missing)).test_client()
    answer = client.get("/missing")
    assert (answer.status_code, answer.headers["X-RateLimit-Remaining"]) == (404, "1")


def test_coroutine_views_are_limited():
    gate = WsgiGate()
    app = made(gate)
    app.add_url_rule("/later", view_func=gate.limit("1/d")(later))
    assert statuses(app.test_client(), "/later", 2) == [200, 429]


def test_workers_count_together_and_exactly(tmp_path):
    clients = []
    for _ in range(2):  # two processes have two of everything but the store
        gate = WsgiGate()
        store = {"url": f"lmdb:{tmp_path / 'counts'}"}
        clients.append((gate, made(gate, gate.limit("5/d")(hello), WSGIGATE_STORE=store)))
    found = [status for _, app in clients for status in statuses(app.test_client(), "/hello", 4)]
    assert found == [200] * 5 + [429] * 3
    for gate, _ in clients:
        gate.close()


def test_counts_can_be_reset():
    gate = WsgiGate()
    client = made(gate, gate.limit("1/d")(hello)).test_client()
    assert statuses(client, "/hello", 2) == [200, 429]
    gate.reset()
    assert statuses(client, "/hello", 2) == [200, 429]


def test_a_reset_reaches_the_counts_of_other_processes_and_of_no_other_app(tmp_path):
    config = {"WSGIGATE_STORE": {"url": f"lmdb:{tmp_path / 'counts'}"}}
    gates = [WsgiGate() for _ in range(3)]
    names = [{"name": "shop"}, {"name": "shop"}, {"name": "blog"}]
    views = [
        (gate.limit("1/d")(hello), gate.limit("1/d; 9/w", key="header:X-User")(other))
        for gate in gates
    ]
    worker, command, blog = (
        made(gate, *both, WSGIGATE_GATEWAY=name, **config)
        for gate, both, name in zip(gates, views, names, strict=True)
    )
    ada = {"headers": {"X-User": "/limit/=ada/ä".encode()}}
    for app in (worker, blog):  # though they share the store
        assert statuses(app.test_client(), "/hello", 2) == [200, 429]
        assert statuses(app.test_client(), "/other", 2, **ada) == [200, 429]
    assert statuses(command.test_client(), "/hello", 1) == [429]
    gates[1].reset()
    assert statuses(worker.test_client(), "/hello", 2) == [200, 429]
    assert statuses(worker.test_client(), "/other", 2, **ada) == [200, 429]
    assert statuses(blog.test_client(), "/hello", 1) == [429]
    for gate in gates:
        gate.close()


def test_several_apps_have_counts_of_their_own():
    gate = WsgiGate()
    view = gate.limit("1/d")(hello)
    for _ in range(2):
        assert statuses(made(gate, view).test_client(), "/hello", 2) == [200, 429]


def test_without_the_extension_the_error_names_the_cure():
    app = Flask("shop")
    app.testing = True
    app.add_url_rule("/", view_func=WsgiGate().limit("1/d")(hello))
    with pytest.raises(RuntimeError, match=r"call gate\.init_app\(app\) for 'shop'"):
        app.test_client().get("/")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quota": "5/x"}, "5/x"),
        ({"key": "adress"}, "key is one of"),
        ({"methods": "POST"}, "methods: expected a list"),
        ({"methods": [7]}, "methods: expected a list"),
        ({"methods": None}, "methods: expected a list"),
        ({"methods": ["GET,POST"]}, "methods: expected a list"),
        ({"quota": later}, "quota: expected a function, not a coroutine function"),
        ({"key": later}, "key: expected a function, not a coroutine function"),
        ({"key": ["address", later]}, "key: expected a function, not a coroutine function"),
        ({"cost": later}, "cost: expected a function, not a coroutine function"),
        ({"exempt_when": later}, "exempt_when: expected a function, not a coroutine function"),
        ({"deduct_when": later}, "deduct_when: expected a function, not a coroutine function"),
        ({"cost": 0}, "cost is a whole number"),
        ({"cost": 0, "deduct_when": bool}, "cost is a whole number"),
        ({"exempt_when": True}, "exempt_when: expected a function"),
        ({"name": "two words"}, "name is 1 to 64 letters"),
    ],
)
def test_a_wrong_argument_is_an_error_at_the_decorator(options, message):
    # what a coroutine function returns is true: it would exempt every request
    with pytest.raises(ValueError, match=message):
        WsgiGate().limit(**{"quota": "1/d", **options})


@pytest.mark.parametrize("given", [7, later])
def test_a_filter_is_a_function(given):
    with pytest.raises(ValueError, match="function: expected a function"):
        WsgiGate().request_filter(given)


def test_the_key_of_the_extension_is_no_coroutine_function():
    with pytest.raises(ConfigError, match="WSGIGATE_LIMIT_KEY: key: expected a function"):
        made(WsgiGate(key=later))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"WSGIGATE_LIMIT_DEFAULT": ["1/x"]}, "WSGIGATE_LIMIT_DEFAULT: "),
        ({"WSGIGATE_LIMIT_KEY": "adress"}, "WSGIGATE_LIMIT_KEY: key is one of"),
        ({"WSGIGATE_LIMIT_FIELDS": ["x"]}, "WSGIGATE_LIMIT_FIELDS[0]: "),
        ({"WSGIGATE_LIMIT_ALGORITHM": "x"}, "WSGIGATE_LIMIT_ALGORITHM: "),
    ],
)
def test_a_wrong_setting_is_an_error_of_init_app(config, message):
    with pytest.raises(ConfigError) as caught:
        made(WsgiGate(), **config)
    assert message in str(caught.value)
