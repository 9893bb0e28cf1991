"""What the metrics have of a service: attempts, retries, connections, instances, WebSockets.

Each handle of an instrument is resolved once: for a service in its constructor, for an instance
when it joins the pool, for a status when it first occurs. A request then only adds to them.
"""

from __future__ import annotations

from wsgigate.client.connections import ConnectionMeter
from wsgigate.telemetry.metrics import Counter, Gauge, Histogram, HistogramSeries

__all__ = ["CANCELED", "InstanceMeter", "ServiceMeter"]

ATTEMPTS = Histogram(
    "http_client_request_duration_seconds",
    "Seconds until an instance began its response or failed, of each attempt.",
    ("service", "instance", "http_response_status_code", "error_type"),
)

IN_FLIGHT = Gauge(
    "wsgigate_upstream_active_requests",
    "Requests in flight at an instance.",
    ("service", "instance"),
)

EJECTIONS = Counter(
    "wsgigate_upstream_ejections",
    "Ejections of an instance by outlier detection, in each worker.",
    ("service", "instance", "reason"),
)

RETRIES = Counter(
    "wsgigate_upstream_retries",
    "Attempts after a failed one, by the status or error of the failed one.",
    ("service", "reason"),
)

HEDGES = Counter(
    "wsgigate_upstream_hedges",
    "Attempts beside a slow one: won, lost (another one was faster) or failed.",
    ("service", "result"),
)

CUT = Counter(
    "wsgigate_upstream_responses_cut",
    "Responses of instances that had begun and did not reach their end.",
    ("service", "reason"),
)

BULKHEAD_REJECTED = Counter(
    "wsgigate_bulkhead_rejected",
    "Requests rejected because the service holds its share of the threads.",
    ("service",),
)

WEBSOCKETS = Gauge("wsgigate_websockets_open", "WebSockets that are open.", ("service",))

WEBSOCKETS_OPENED = Counter("wsgigate_websockets_opened", "WebSockets opened.", ("service",))

WEBSOCKETS_REJECTED = Counter(
    "wsgigate_websockets_rejected",
    "WebSockets rejected because the worker has as many as it may.",
    ("service",),
)

CANCELED = "canceled"
"""The error of an attempt that ended because another one has won, or as its thread was ended."""


class InstanceMeter:
    """Measures the attempts at one instance.

    :param service: The name of the service.
    :param instance: The address of the instance.
    """

    __slots__ = ("_durations", "_instance", "_service", "in_flight")

    def __init__(self, service: str, instance: str) -> None:
        self._service = service
        self._instance = instance
        self._durations: dict[int | str, HistogramSeries] = {}
        self.in_flight = IN_FLIGHT.labels(service, instance)

    def attempted(self, seconds: float, ended: int | str) -> None:
        """Record an attempt.

        :param seconds: The seconds until the response began, or the attempt failed.
        :param ended: The status of the response, or the type of the error.
        """
        duration = self._durations.get(ended)
        if duration is None:
            duration = self._durations[ended] = self._duration(ended)
        duration.observe(seconds)

    def ejected(self, reason: str) -> None:
        """Record an ejection: ``consecutive_failures`` or ``success_rate``."""
        EJECTIONS.labels(self._service, self._instance, reason).add()

    def remove(self) -> None:
        """Drop what was measured: the instance is gone, and its address will not come back."""
        for instrument in (ATTEMPTS, IN_FLIGHT, EJECTIONS):
            instrument.remove(self._service, self._instance)

    def _duration(self, ended: int | str) -> HistogramSeries:
        if isinstance(ended, str):
            return ATTEMPTS.labels(self._service, self._instance, "", ended)
        error = str(ended) if ended >= 500 else ""
        return ATTEMPTS.labels(self._service, self._instance, str(ended), error)


class ServiceMeter:
    """Counts what happens to the requests of a service, apart from its instances.

    :param service: The name of the service.
    """

    __slots__ = ("_service", "connections")

    def __init__(self, service: str) -> None:
        self._service = service
        self.connections = ConnectionMeter(service)

    def retried(self, ended: int | str) -> None:
        """Count an attempt that follows a failed one, by its status or the type of its error."""
        RETRIES.labels(self._service, str(ended)).add()

    def hedged(self, result: str) -> None:
        """Count a hedged attempt that has ``won``, ``lost`` or ``failed``."""
        HEDGES.labels(self._service, result).add()

    def cut(self, reason: str) -> None:
        """Count a response that has begun and does not reach its end."""
        CUT.labels(self._service, reason).add()

    def crowded(self) -> None:
        """Count a request that the bulkhead has rejected."""
        BULKHEAD_REJECTED.labels(self._service).add()

    def websocket(self, opened: bool) -> None:
        """Count a WebSocket that was opened, or rejected as there are too many."""
        (WEBSOCKETS_OPENED if opened else WEBSOCKETS_REJECTED).labels(self._service).add()

    def websockets(self, more: int) -> None:
        """Count *more* open WebSockets, or fewer if it is negative."""
        WEBSOCKETS.labels(self._service).add(more)
