"""Metrics as text: the Prometheus format 0.0.4, and OpenMetrics 1.0 with exemplars.

Both are written from :class:`~wsgigate.telemetry.metrics.Totals`. They differ in what a scraper
that does not know the other one would reject: OpenMetrics names a counter's family without
``_total``, ends with ``# EOF`` and may carry an exemplar, the trace of one observation, beside a
bucket of a histogram. There is no ``_created``: a counter here outlives its workers, and Prometheus
does not read these lines by default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

from wsgigate.telemetry.metrics import Exemplar, Family, Totals

__all__ = ["CONTENT_TYPES", "Format", "exposition", "preferred_format"]

Format: TypeAlias = Literal["prometheus", "openmetrics"]

CONTENT_TYPES: Mapping[Format, str] = {
    "prometheus": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
"""The ``Content-Type`` of each format."""

_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def preferred_format(accept: str) -> Format:
    """Return the format that a request with this ``Accept`` field prefers.

    RFC 9110 section 12.5.1. OpenMetrics is chosen only where the field names it and does not
    prefer plain text: a browser and ``curl`` get the older format.
    """
    best = {"openmetrics": 0.0, "prometheus": 0.0}
    for part in accept.split(","):
        kind, *parameters = (each.strip() for each in part.split(";"))
        found = [match for each in parameters if (match := _QUALITY.fullmatch(each))]
        quality = float(found[0][1]) if found else 1.0
        version = next((each[8:] for each in parameters if each.startswith("version=")), "1.0.0")
        if kind.lower() == "application/openmetrics-text" and version.strip('"') in _VERSIONS:
            best["openmetrics"] = max(best["openmetrics"], quality)
        elif kind.lower() == "text/plain":
            best["prometheus"] = max(best["prometheus"], quality)
    return "openmetrics" if best["openmetrics"] > best["prometheus"] else "prometheus"


_VERSIONS = ("1.0.0", "0.0.1")


def exposition(totals: Mapping[str, Totals], form: Format = "prometheus") -> bytes:
    """Return all series as text in UTF-8."""
    lines = [line for each in totals.values() for line in _lines(each, form)]
    if form == "openmetrics":
        lines.append("# EOF\n")
    return "".join(lines).encode("utf-8", "replace")


def _lines(totals: Totals, form: Format) -> Iterator[str]:
    family = totals.family
    name = _name(family)
    head = family.name if form == "openmetrics" else name
    text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
    if form == "openmetrics":
        text = text.replace('"', '\\"')
    yield f"# HELP {head} {text}\n# TYPE {head} {family.kind}\n"
    for labels, cells in sorted(totals.series.items()):
        pairs = ",".join(
            f'{label}="{_escaped(value)}"'
            for label, value in zip(family.labels, labels, strict=True)
        )
        if family.kind == "histogram":
            exemplars = totals.exemplars.get(labels, {}) if form == "openmetrics" else {}
            yield from _histogram(family, pairs, cells, exemplars)
        else:
            yield (
                f"{name}{{{pairs}}} {_number(cells[0])}\n"
                if pairs
                else (f"{name} {_number(cells[0])}\n")
            )


def _name(family: Family) -> str:
    return f"{family.name}_total" if family.kind == "counter" else family.name


def _histogram(
    family: Family, pairs: str, cells: Iterable[float], exemplars: Mapping[int, Exemplar]
) -> Iterator[str]:
    total, *counts = cells
    before = f"{pairs}," if pairs else ""
    running = 0.0
    for bucket, (bound, count) in enumerate(zip((*family.bounds, math.inf), counts, strict=True)):
        running += count
        line = f'{family.name}_bucket{{{before}le="{_number(bound)}"}} {_number(running)}'
        exemplar = exemplars.get(bucket)
        if exemplar is not None:
            trace = _escaped(exemplar.trace_id)
            line += f' # {{trace_id="{trace}"}} {_number(exemplar.value)} {exemplar.time:.3f}'
        yield f"{line}\n"
    labels = f"{{{pairs}}}" if pairs else ""
    yield f"{family.name}_sum{labels} {_number(total)}\n"
    yield f"{family.name}_count{labels} {_number(running)}\n"


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value
