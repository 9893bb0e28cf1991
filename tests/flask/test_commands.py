"""``flask wsgigate``: the routes, the check and the API keys of the gateway around an app."""

from __future__ import annotations

import json
import re

import pytest
from flask import Flask

from wsgigate.flask import WsgiGate

ROUTES = {
    "WSGIGATE_SERVICES": {"orders": {"instances": ["http://127.0.0.1:9"]}},
    "WSGIGATE_ROUTES": [{"path": "/api/orders", "service": "orders", "percent": 5}],
    "WSGIGATE_MIDDLEWARE": [{"use": "limiter", "quota": "9/d"}],
}


@pytest.fixture
def run():
    def run(*arguments, broken=None, **config):
        app = Flask("shop")
        app.config.update(config)
        WsgiGate(app)
        app.config.update(broken or {})
        return app.test_cli_runner().invoke(args=["wsgigate", *arguments])

    return run


def test_the_routes_are_listed(run):
    done = run("routes", **ROUTES)
    assert done.exit_code == 0, done.output
    assert re.search(
        r"any +any +/api/orders/\.\.\. +- +orders -> http://127\.0\.0\.1:9, 5 % of", done.output
    )
    assert re.search(r"any +any +all else +- +shop\n", done.output)
    assert "before all of them: limiter" in done.output


def test_the_check_reports_each_error_by_its_key(run):
    assert run("check", "--offline", **ROUTES).output.endswith("ok: 1 service, 1 route\n")
    done = run("check", "--offline", broken={"WSGIGATE_ROUTES": [{"path": "/a"}]}, **ROUTES)
    assert done.exit_code == 2
    assert "app.config: WSGIGATE_ROUTES[0]: requires service, services or app" in done.output


def test_a_warning_names_the_key(run):
    done = run("check", "--offline", WSGIGATE_GATEWAY={"identity": {"X-User": "subject"}})
    assert done.exit_code == 0
    assert "warning: WSGIGATE_GATEWAY.identity: no middleware verifies" in done.output


def test_the_commands_read_a_file_too(run, tmp_path):
    (tmp_path / "gateway.toml").write_text('routes = [{ path = "/a", app = "flask:Flask" }]\n')
    done = run("routes", WSGIGATE_FILE=str(tmp_path / "gateway.toml"))
    assert "flask:Flask" in done.output


def test_keys_are_created_listed_and_revoked(run, tmp_path):
    config = {
        "WSGIGATE_API_KEYS": {"file": str(tmp_path / "keys.json")},
        "WSGIGATE_MIDDLEWARE": [{"use": "api-key"}],
    }
    made = run("keys", "create", "--owner", "acme", "--scope", "orders:read", "--json", **config)
    assert made.exit_code == 0, made.output
    key = json.loads(made.output)
    assert "acme" in run("keys", "list", **config).output
    app = Flask("shop")
    app.config.update(config)
    app.add_url_rule("/", view_func=lambda: "home")
    gate = WsgiGate(app)
    assert app.test_client().get("/").status_code == 401
    headers = {"X-API-Key": key["key"]}
    assert app.test_client().get("/", headers=headers).text == "home"
    gate.close()
    assert run("keys", "revoke", key["id"], **config).exit_code == 0


def test_a_wrong_argument_of_keys_is_an_error(run):
    assert run("keys", "create", WSGIGATE_MIDDLEWARE=[{"use": "api-key"}]).exit_code == 2
    assert "flask wsgigate keys" in run("keys", "--help").output
