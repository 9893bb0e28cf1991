"""A real Prometheus scrapes a gateway, below its admin prefix and at a listener of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import requests

from tests.acceptance.conftest import Serve
from tests.support.ports import free_port
from tests.support.waiting import until
from wsgigate.testing import Backend

TOKEN = "a-viewer-token-of-32-or-more-characters"

FILE = """
store.url = "memory:"
[gateway]
name = "shop"
[admin]
prefix = "/_gateway"
viewer_token = "{token}"
[metrics]
bind = "127.0.0.1:{port}"
[services.orders]
instances = ["{url}"]
[[routes]]
path = "/orders"
service = "orders"
name = "orders"
"""

PROMETHEUS = """
global:
  scrape_interval: 200ms
scrape_configs:
  - job_name: prefix
    metrics_path: /_gateway/metrics
    authorization:
      credentials_file: token
    static_configs:
      - targets: ["127.0.0.1:{gateway}"]
  - job_name: listener
    static_configs:
      - targets: ["127.0.0.1:{listener}"]
"""

QUERY = 'sum by (job) (http_server_request_duration_seconds_count{http_route="orders"})'


@pytest.fixture
def programs() -> str:
    found = shutil.which("prometheus")
    assert found is not None, "install prometheus; .ci/run lists the packages"
    return found


def test_prometheus_reads_what_a_gateway_has_counted(
    serve: Serve, serve_command: Serve, tmp_path: Path, programs: str, http: requests.Session
) -> None:
    port = free_port()
    with Backend() as backend:
        served = serve(FILE.format(token=TOKEN, port=port, url=backend.url))
        for _ in range(7):
            assert http.get(f"{served.url}/orders").status_code == 200
        (tmp_path / "token").write_text(TOKEN)
        config = tmp_path / "prometheus.yml"
        config.write_text(PROMETHEUS.format(gateway=served.port, listener=port))
        prometheus = serve_command(
            lambda own: [
                programs,
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{own}",
            ]
        )

        def counted() -> dict[str, str]:
            answer = http.get(f"{prometheus.url}/api/v1/query", params={"query": QUERY})
            if answer.status_code != 200:
                return {}
            results = answer.json()["data"]["result"]
            return {each["metric"]["job"]: each["value"][1] for each in results}

        until(lambda: counted() == {"prefix": "7", "listener": "7"})

        def errors() -> list[str]:
            targets = http.get(f"{prometheus.url}/api/v1/targets").json()["data"]["activeTargets"]
            return [each["lastError"] for each in targets]

        until(lambda: errors() == ["", ""])  # of the last scrapes, each of which has 200 ms

        text = http.get(f"http://127.0.0.1:{port}/metrics")
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text.content, capture_output=True, timeout=60
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_listener_serves_the_metrics_and_nothing_of_the_gateway(
    serve: Serve, http: requests.Session
) -> None:
    port = free_port()
    with Backend() as backend:
        served = serve(FILE.format(token=TOKEN, port=port, url=backend.url))
        listener = f"http://127.0.0.1:{port}"
        assert http.get(f"{listener}/metrics").status_code == 200
        for path in ("/orders", "/_gateway/metrics", "/_gateway/health", "/", "//metrics"):
            assert http.get(listener + path).status_code == 404
        assert backend.requests == []
        assert http.get(f"{served.url}/metrics").status_code == 404
        assert http.get(f"{served.url}/_gateway/metrics").status_code == 401
        viewer = {"Authorization": f"Bearer {TOKEN}"}
        assert http.get(f"{served.url}/_gateway/metrics", headers=viewer).status_code == 200
