"""The dashboard's page and documents, below any prefix and mount."""

from __future__ import annotations

from pathlib import Path

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

import wsgigate
from wsgigate.gateway import Gateway

ADMIN, VIEWER = "an-admin-token-of-32-characters-or-so", "a-viewer-token-of-32-characters-or-so"


def made(folder: Path, prefix: str = "/_gateway", more: str = "") -> Gateway:
    file = folder / "gateway.toml"
    file.write_text(
        f'store.url = "memory:"\n[admin]\nprefix = "{prefix}"\ntoken = "{ADMIN}"\n'
        f'viewer_token = "{VIEWER}"\n{more}'
    )
    return wsgigate.load(str(file))


@pytest.mark.parametrize("prefix", ["", "/_gateway", "/ops/gate"])
@pytest.mark.parametrize("mount", ["", "/mounted"])
def test_the_page_and_all_that_it_loads_are_below_the_prefix(
    tmp_path: Path, prefix: str, mount: str
) -> None:
    gateway = made(tmp_path, prefix)
    client = Client(DispatcherMiddleware(gateway, {mount: gateway} if mount else {}))
    page = client.get(f"{mount}{prefix}/")
    assert page.status_code == 200
    assert page.content_type == "text/html; charset=utf-8"
    assert 'src="/' not in page.text
    assert 'href="/' not in page.text
    assert "style=" not in page.text
    assert "<style" not in page.text
    for name in ("dashboard.js", "dashboard.css", "uplot.min.js", "uplot.LICENSE.txt"):
        file = client.get(f"{mount}{prefix}/static/{name}")
        assert file.status_code == 200
        assert "default-src 'self'" in file.headers["Content-Security-Policy"]
        tag = file.headers["ETag"]
        again = client.get(f"{mount}{prefix}/static/{name}", headers={"If-None-Match": tag})
        assert again.status_code == 304
    assert client.get(f"{mount}{prefix}/static/..%2Fapi.py").status_code in (400, 404)
    assert client.get(f"{mount}{prefix}/static/none.js").status_code == 404
    gateway.close()


def test_the_prefix_alone_leads_to_the_page(tmp_path: Path) -> None:
    gateway = made(tmp_path)
    client = Client(gateway)
    assert client.get("/_gateway").headers["Location"] == "_gateway/"
    gateway.close()


def test_a_route_of_the_file_comes_before_the_page(tmp_path: Path) -> None:
    more = """
    [services.own]
    instances = ["http://127.0.0.1:1"]
    [[routes]]
    path = "/"
    exact = true
    service = "own"
    """
    gateway = made(tmp_path, "", more)
    assert Client(gateway).get("/").status_code >= 500
    gateway.close()


@pytest.mark.parametrize(("token", "role"), [(ADMIN, "admin"), (VIEWER, "viewer")])
def test_a_session_has_the_role_of_its_token(tmp_path: Path, token: str, role: str) -> None:
    gateway = made(tmp_path)
    client = Client(gateway)
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/_gateway/session", headers=headers).json == {"role": role}
    assert client.get("/_gateway/session").status_code == 401
    gateway.close()


def test_the_history_rejects_what_is_no_time_and_too_many_series(tmp_path: Path) -> None:
    gateway = made(tmp_path)
    client = Client(gateway)
    headers = {"Authorization": f"Bearer {VIEWER}"}
    assert client.get("/_gateway/history", headers=headers).json["interval"] == 5
    for query in ("since=nan", "since=x", "&".join(["of=a"] * 21)):
        assert client.get(f"/_gateway/history?{query}", headers=headers).status_code == 400
    gateway.close()


def test_the_registered_instances_renew(tmp_path: Path) -> None:
    gateway = made(tmp_path, more='[registry]\ntoken = "a-token-of-services-with-32-chars"\n')
    client = Client(gateway)
    headers = {"Authorization": f"Bearer {VIEWER}"}
    found = client.get("/_gateway/registered", headers=headers).json
    assert found == {
        "instances": [],
        "total": 0,
        "renewing": 0,
        "threshold": 0.85,
        "preserving": False,
    }
    gateway.close()
    plain = made(tmp_path)
    assert Client(plain).get("/_gateway/registered", headers=headers).status_code == 404
    plain.close()
