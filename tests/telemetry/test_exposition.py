"""Metrics as text, read by the parsers of Prometheus' own client."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from wsgigate.telemetry.exposition import exposition, preferred_format
from wsgigate.telemetry.metrics import Exemplar, Family, Totals

HOSTILE = ['a"b', "back\\slash", "a\nb", "\\n", "é", "", "{}", 'x",y="z', "\\"]


def totals() -> dict[str, Totals]:
    counter = Totals(Family("a_requests", "counter", 'A "help"\nof two \\ lines.', ("route",)))
    for number, value in enumerate(HOSTILE):
        counter.add((value,), [number + 1.0])
    gauge = Totals(Family("a_queue", "gauge", "Waiting.", ()))
    gauge.add((), [-2.5])
    histogram = Totals(Family("a_seconds", "histogram", "Time.", ("route",), (0.1, 1.0)))
    histogram.add(("x",), [7.5, 3.0, 2.0, 1.0])
    histogram.exemplars["x",] = {1: Exemplar(0.5, 1234.5, "ab" * 16)}
    return {each.family.name: each for each in (counter, gauge, histogram)}


def test_prometheus_reads_the_older_format() -> None:
    text = exposition(totals(), "prometheus").decode()
    families = {family.name: family for family in parse_prometheus(text)}
    requests = families["a_requests"]
    assert (requests.type, requests.documentation) == ("counter", 'A "help"\nof two \\ lines.')
    values = {sample.labels["route"]: sample.value for sample in requests.samples}
    assert values == {value: number + 1.0 for number, value in enumerate(HOSTILE)}
    assert [(sample.name, sample.value) for sample in families["a_queue"].samples] == [
        ("a_queue", -2.5)
    ]
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for sample in families["a_seconds"].samples
    }
    assert samples == {
        ("a_seconds_bucket", "0.1"): 3.0,
        ("a_seconds_bucket", "1.0"): 5.0,
        ("a_seconds_bucket", "+Inf"): 6.0,
        ("a_seconds_sum", None): 7.5,
        ("a_seconds_count", None): 6.0,
    }
    assert "# EOF" not in text
    assert "trace_id" not in text


def test_openmetrics_has_exemplars_and_an_end() -> None:
    text = exposition(totals(), "openmetrics").decode()
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in parse_openmetrics(text)}
    assert families["a_requests"].documentation == 'A "help"\nof two \\ lines.'
    values = {sample.labels["route"]: sample.value for sample in families["a_requests"].samples}
    assert values == {value: number + 1.0 for number, value in enumerate(HOSTILE)}
    exemplars = {
        sample.labels.get("le"): sample.exemplar
        for sample in families["a_seconds"].samples
        if sample.exemplar is not None
    }
    assert list(exemplars) == ["1.0"]
    assert exemplars["1.0"].labels == {"trace_id": "ab" * 16}
    assert (exemplars["1.0"].value, float(exemplars["1.0"].timestamp)) == (0.5, 1234.5)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "prometheus"),
        ("*/*", "prometheus"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "prometheus"),
        ("text/plain", "prometheus"),
        ("application/openmetrics-text", "openmetrics"),
        ("application/openmetrics-text;version=1.0.0;charset=utf-8", "openmetrics"),
        ('application/openmetrics-text; version="1.0.0"; q=0.5,text/plain;q=0.3', "openmetrics"),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;"
            "version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "openmetrics",
        ),
        ("application/openmetrics-text;version=2.0.0", "prometheus"),
        ("application/openmetrics-text;q=0", "prometheus"),
        ("application/openmetrics-text;q=0.2,text/plain", "prometheus"),
        ("application/openmetrics-text;q=nonsense", "openmetrics"),
        (",;q=,;", "prometheus"),
    ],
)
def test_the_format_is_the_one_that_the_client_prefers(accept: str, form: str) -> None:
    assert preferred_format(accept) == form


def test_numbers_that_are_not_finite() -> None:
    gauge = Totals(Family("a_queue", "gauge", "Waiting.", ("n",)))
    for name, value in (("a", float("inf")), ("b", float("-inf")), ("c", float("nan"))):
        gauge.add((name,), [value])
    lines = exposition({"a_queue": gauge}).decode().splitlines()[2:]
    assert [line.rpartition(" ")[2] for line in lines] == ["+Inf", "-Inf", "NaN"]
