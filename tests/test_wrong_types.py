"""A value of a wrong type is a ValueError that names the parameter, whatever the parameter is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import wsgigate
from wsgigate import (
    ApiKeys,
    Authenticator,
    Breaker,
    ClientAddress,
    Cors,
    FaultRules,
    Faults,
    Instance,
    Limiter,
    MaintenanceSwitch,
    Mirror,
    Pool,
    Problem,
    Quota,
    Route,
    Splitter,
)
from wsgigate.store.memory import MemoryStore

SECRET = "a secret of the tests, thirty-two bytes or more"


def app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return []


def pool() -> Pool:
    return Pool("svc", [Instance("http://127.0.0.1:1")])


VALID: dict[str, dict[str, Any]] = {
    "ApiKeyAuthenticator": {"app": app, "keys": ApiKeys("memory:")},
    "ApiKeys": {"store": "memory:"},
    "Authenticator": {"app": app, "algorithms": ["HS256"], "secret": SECRET},
    "BasicAuthenticator": {"app": app, "users_file": "users", "store": "memory:"},
    "BodyLimit": {"app": app},
    "Breaker": {"app": app, "store": "memory:"},
    "Bulkhead": {"most": 4},
    "CircuitRules": {},
    "ClientAddress": {"app": app},
    "ConcurrencyLimiter": {"app": app, "limit": 3, "store": "memory:"},
    "Cors": {"app": app, "origins": ["https://a.test"]},
    "DenyList": {"store": "memory:"},
    "Dispatcher": {"routes": [Route("/", app)]},
    "Fallback": {"app": app, "other": Problem(503)},
    "FallbackRules": {},
    "FaultRules": {"abort_percent": 1},
    "Faults": {"app": app, "rules": FaultRules(abort_percent=1), "enabled": True},
    "FieldRules": {},
    "ForwardAuth": {"app": app, "address": "https://auth.example.com/"},
    "Forwarder": {"pool": pool()},
    "Guard": {"app": app},
    "HedgeRules": {},
    "Instance": {"url": "http://127.0.0.1:1"},
    "IntrospectionAuthenticator": {
        "app": app,
        "endpoint": "https://id.example.com/introspect",
        "client_id": "gateway",
        "client_secret": "secret",
    },
    "Limiter": {"app": app, "quota": "1/m", "store": "memory:"},
    "Logger": {"app": app},
    "Metrics": {"app": app},
    "Maintenance": {"app": app, "switch": MaintenanceSwitch(MemoryStore())},
    "MaintenanceSwitch": {"store": "memory:"},
    "Mirror": {"app": app, "other": Problem(503)},
    "OutlierRules": {},
    "Pool": {"service": "svc", "instances": [Instance("http://127.0.0.1:1")]},
    "Problem": {"status": 503},
    "Quota": {"limit": 1, "period": 60},
    "RequestId": {"app": app},
    "Resilience": {},
    "RetryRules": {},
    "Route": {"path": "/", "endpoint": app},
    "Shedder": {"app": app},
    "SheddingRules": {},
    "SignatureAuthenticator": {
        "app": app,
        "signers": [{"subject": "ann", "id": "a", "secret": SECRET}],
        "store": "memory:",
    },
    "Signer": {"subject": "ann", "id": "a", "secret": SECRET},
    "Splitter": {"apps": {"a": (app, 1)}},
    "StaleAnswers": {"app": app},
    "Stickiness": {"service": "svc", "secret": SECRET.encode()},
    "WebSocketLimits": {},
}

WRONG: list[Any] = [
    None,
    1,
    -1,
    1.5,
    True,
    "x",
    b"x",
    object(),
    [1],
    {"x": 1},
    (),
    {1},
    float("nan"),
    lambda *arguments: 0.0,
]


def made(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(wsgigate, name)
    return found


CASES = [
    (name, parameter)
    for name in sorted(VALID)
    for parameter in inspect.signature(made(name)).parameters
]


@pytest.mark.parametrize("name", sorted(VALID))
def test_the_valid_values_are(name: str) -> None:
    made(name)(**VALID[name])


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_a_wrong_type_is_a_value_error(name: str, parameter: str) -> None:
    for wrong in WRONG:
        if callable(wrong) and parameter == "balance":
            continue  # what a function of one's own makes is one's own
        try:
            made(name)(**{**VALID[name], parameter: wrong})
        except ValueError:
            pass
        except Exception as error:
            pytest.fail(f"{name}({parameter}={wrong!r}): {type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Cors(app, origins=["*"], max_age=None),
            "max_age is 0 to 86400 whole seconds, got None",
        ),
        (lambda: ClientAddress(app, trusted_proxies=1), "trusted_proxies: expected a list, not 1"),
        (lambda: Limiter(app, "1/m", refuse=None), "refuse: expected a function, not None"),
        (lambda: Limiter(app, "1/m", key=1), "key is a function, the name of one"),
        (lambda: Breaker(app, 5), "rules: expected a CircuitRules or None, not 5"),
        (lambda: Authenticator(app, algorithms=["HS256"], secret=7), "secret: expected"),
        (
            lambda: Authenticator(app, algorithms="HS256", secret=SECRET),
            "algorithms: expected a list",
        ),
        (lambda: Instance(1), "url: expected a text, not 1"),
        (lambda: Quota(1, 60, calendar=[1]), "calendar: expected a text or None, not a list"),
        (lambda: Splitter({"a": 1}), "apps: expected a table"),  # type: ignore[dict-item]
    ],
)
def test_the_error_names_the_parameter_and_the_expected_type(
    make: Callable[[], object], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def test_the_error_does_not_show_a_secret() -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        Authenticator(app, algorithms=["HS256"], secret={"secret": "of the tests"})
    assert "of the tests" not in str(raised.value)


def test_mocks_and_calls_with_wrong_arguments_are_not_checked() -> None:
    class Rules:
        """Not a FaultRules, and all that is asked of one."""

        abort_status, abort_percent, delay, delay_percent = 503, 1, 0, 0

    assert Faults(app, Rules(), enabled=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'qouta'"):
        Limiter(app, qouta="1/m")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required"):
        Limiter(app)  # type: ignore[call-arg]
    assert Mirror(app, Problem(503), methods=iter(["GET"]))  # type: ignore[arg-type]
