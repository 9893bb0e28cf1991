"""What happened to a service is read from /metrics alone, and compared with what clients saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client

import wsgigate
from tests.support.logs import silence
from tests.support.ports import refused_port
from wsgigate.testing.backend import Backend, cut, reply

_pool, _circuits = silence("wsgigate.pool"), silence("wsgigate.circuits")

TOKEN = "a-token-of-the-tests-of-32-characters-or-more"

FILE = """
store.url = "memory:"
[admin]
prefix = "/_gateway"
token = "{token}"

[services.drilled]  # a name of its own: pools of other tests may live on in this process
instances = {instances}
balance = "round-robin"
retry = {{ attempts = 4, backoff = 0, budget = 1.0, budget_floor = 100 }}
outlier = {{ consecutive_failures = 2, eject_for = "5m", most_ejected = 0.75 }}

[services.broken]
instances = ["{broken}"]
breaker = {{ consecutive_failures = 3, open_for = "10m" }}

[[routes]]
path = "/orders"
service = "drilled"

[[routes]]
path = "/broken"
service = "broken"
"""

BUSY = reply(b"busy", status="503 Service Unavailable")


class Scrape:
    """The samples of one scrape."""

    def __init__(self, client: Client) -> None:
        response = client.get(
            "/_gateway/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, buffered=True
        )
        assert response.status_code == 200
        families = text_string_to_metric_families(response.text)
        self.samples = [sample for family in families for sample in family.samples]

    def by(self, name: str, *labels: str, **wanted: str) -> Mapping[tuple[str, ...], float]:
        """Return the sums that are not 0 of *name*, by the values of *labels*."""
        sums: Counter[tuple[str, ...]] = Counter()
        for sample in self.samples:
            if sample.name == name and wanted.items() <= sample.labels.items():
                sums[tuple(sample.labels[label] for label in labels)] += sample.value  # type: ignore[assignment]
        return {values: value for values, value in sums.items() if value}


@pytest.mark.usefixtures("measured")
def test_a_stranger_reads_from_the_metrics_what_happened(tmp_path: Path) -> None:
    with (
        refused_port() as killed,
        Backend() as well,
        Backend(BUSY) as failing,
        Backend(cut(b"")) as dying,
    ):
        place = f"127.0.0.1:{killed}"
        names = {each.url.removeprefix("http://"): each for each in (well, failing, dying)}
        urls = [*(f"http://{name}" for name in names), f"http://{place}"]
        file = tmp_path / "gateway.toml"
        file.write_text(FILE.format(token=TOKEN, instances=urls, broken=failing.url))
        gateway = wsgigate.load(str(file))
        client = Client(gateway)
        seen = Counter(client.get("/orders", buffered=True).status_code for _ in range(40))
        broken = Counter(client.get("/broken", buffered=True).status_code for _ in range(8))
        received = {name: len(each.requests) for name, each in names.items()}
        scrape = Scrape(client)
        gateway.close()

    requests = scrape.by(
        "http_server_request_duration_seconds_count", "service", "http_response_status_code"
    )
    assert requests == {
        **{("drilled", str(status)): float(count) for status, count in seen.items()},
        **{("broken", str(status)): float(count) for status, count in broken.items()},
    }
    assert seen == {200: 40}

    attempts = scrape.by(
        "http_client_request_duration_seconds_count", "instance", service="drilled"
    )
    well_name, failing_name, dying_name = names
    assert attempts[(well_name,)] == received[well_name] == 40
    assert attempts[(dying_name,)] == received[dying_name]
    assert attempts[(failing_name,)] + 3 == received[failing_name]  # three are of the other service
    assert scrape.by(
        "http_client_request_duration_seconds_count", "error_type", instance=place
    ) == {("connection_refused",): attempts[(place,)]}
    assert sum(
        scrape.by("wsgigate_upstream_retries_total", "reason", service="drilled").values()
    ) == (sum(attempts.values()) - 40)

    ejected = scrape.by("wsgigate_upstream_ejections_total", "instance", service="drilled")
    assert ejected == {(name,): 1.0 for name in (failing_name, dying_name, place)}
    assert scrape.by("wsgigate_instances", "status", service="drilled") == {
        ("healthy",): 1.0,
        ("ejected",): 3.0,
    }

    assert broken == {503: 8}
    assert scrape.by("wsgigate_circuit_state", "state", service="broken") == {("open",): 1.0}
    assert scrape.by("wsgigate_circuit_transitions_total", "state") == {("open",): 1.0}
    assert scrape.by("wsgigate_rejections_total", "reason") == {("Circuit breaker open",): 5.0}
