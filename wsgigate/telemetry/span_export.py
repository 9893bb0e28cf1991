"""Export of spans by OTLP: a provider of tracers that starts anew in each process.

Theory of operation. :class:`SpanExport` is made with the gateway and starts nothing. The worker
starts it after its fork: it makes the SDK's provider, with an instance id of its own so that no
worker overwrites another's spans, an exporter, and one thread that sends batches. A request only
appends its spans to a bounded queue.

Rules that must hold:

- A request never waits for the collector: a full queue drops spans and counts them.
- The process never waits long for the collector at its end. The SDK's BatchSpanProcessor waits for
  up to 30 s and takes no other limit, so the queue of ``span_provider.py`` is in its place; it
  reads the same ``OTEL_BSP_*`` variables.
- A failure of the collector is logged at most once a minute: the exporter's own records of it are
  kept from the log while it sends for this thread.
- A child of a fork never uses its parent's provider, thread or connection.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from wsgigate.rules.arguments import Pattern, Trait, checked
from wsgigate.runtime import fork

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["AT_END", "SpanExport", "environment_exports"]

AT_END = 3.0
"""Most seconds that the end of a process waits for the last spans."""

_TRACES_PATH = "/v1/traces"

_INSTANCE_ID = "service.instance.id"

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def environment_exports(environ: Mapping[str, str]) -> bool:
    """Return whether the ``OTEL_*`` variables name a collector of traces."""
    exporters = environ.get("OTEL_TRACES_EXPORTER", "otlp").lower().replace(" ", "").split(",")
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or "otlp" not in exporters:
        return False
    return any(environ.get(name) for name in _ENDPOINTS)


def _made_exporter(endpoint: str | None, headers: Mapping[str, str] | None) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint, headers=headers)


@checked
class SpanExport:
    """Send spans to a collector by OTLP over HTTP.

    The standard variables of the environment hold for what is not given: ``OTEL_EXPORTER_OTLP_*``
    (endpoint, headers, timeout, compression, certificates), ``OTEL_SERVICE_NAME``,
    ``OTEL_RESOURCE_ATTRIBUTES`` and ``OTEL_BSP_*``.

    :param endpoint: The URL of the collector, such as ``http://localhost:4318``; without a path
        ``/v1/traces`` is added.
    :param headers: Fields sent to the collector, such as its API key.
    :param service_name: The ``service.name`` of the spans. Default: ``OTEL_SERVICE_NAME``, or else
        the gateway's name.
    :param resource: Further attributes of the resource, such as ``deployment.environment.name``.
    :param fallback_name: The ``service.name`` if neither the file nor the environment has one.
    :param exporter: Makes the exporter of a process, from the endpoint and the fields.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        endpoint: Annotated[
            str | None, Pattern(r"https?://.+", 'a URL such as "http://localhost:4318"')
        ] = None,
        headers: Mapping[str, Annotated[str, Trait.SECRET]] | None = None,
        service_name: str | None = None,
        resource: Mapping[str, str] | None = None,
        fallback_name: str = "wsgigate",
        exporter: Callable[[str | None, Mapping[str, str] | None], SpanExporter] = _made_exporter,
    ) -> None:
        if not self.installed():
            raise ValueError('endpoint: requires OpenTelemetry; pip install "wsgigate[otel]"')
        self._endpoint = None if endpoint is None else _with_path(endpoint)
        self._headers = dict(headers) if headers else None
        self._resource = dict(resource or {})
        if _INSTANCE_ID in self._resource:
            raise ValueError(
                f"resource: {_INSTANCE_ID} cannot be given, as each worker has its own; "
                "use an attribute such as host.name"
            )
        if service_name is not None:
            self._resource["service.name"] = service_name
        self._fallback_name = fallback_name
        self._make_exporter = exporter
        self.after_fork()
        fork.renew_at_fork(self)

    @staticmethod
    def installed() -> bool:
        """Return whether the packages of the extra ``otel`` are installed."""
        packages = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
        try:
            return all(find_spec(name) is not None for name in packages)
        except ModuleNotFoundError:  # of a package in between
            return False

    def after_fork(self) -> None:
        """Forget the provider: its thread and its connection belong to the parent process."""
        self._lock = threading.Lock()
        self._provider: Any = None
        self._batches: Any = None
        self._unregister: Callable[[], None] | None = None

    def get_tracer(self, name: str) -> Any:
        """Return the tracer of the package *name*; starts the export in this process."""
        return self._started().get_tracer(name)

    def start(self) -> None:
        """Start the export in this process."""
        self._started()

    def _started(self) -> Any:
        with self._lock:
            if self._provider is None:
                from wsgigate.telemetry.span_provider import provider_of

                self._provider, self._batches = provider_of(
                    self._make_exporter(self._endpoint, self._headers),
                    self._attributes(os.environ),
                )
                self._unregister = fork.at_exit(self.close)
            return self._provider

    def _attributes(self, environ: Mapping[str, str]) -> dict[str, str]:
        named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        fallback = {} if named else {"service.name": self._fallback_name}
        return {**fallback, **self._resource, _INSTANCE_ID: str(uuid.uuid4())}

    def flush(self, timeout: float = AT_END) -> bool:
        """Wait until all spans so far are sent; return False after *timeout* seconds."""
        batches = self._batches
        return batches is None or bool(batches.flush(timeout))

    def close(self, timeout: float = AT_END) -> bool:
        """Send the last spans and stop; a later request starts it again.

        :param timeout: Seconds after which the spans that are left are dropped.
        :returns: Whether all were sent in time.
        """
        with self._lock:
            batches, self._batches, self._provider = self._batches, None, None
            unregister, self._unregister = self._unregister, None
        if unregister is not None:
            unregister()
        return batches is None or bool(batches.close(timeout))


def _with_path(endpoint: str) -> str:
    """Return the URL to which traces are sent.

    :raises ValueError: *endpoint* is no URL.
    """
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError('endpoint must be a URL such as "http://localhost:4318"')
    if parts.path in ("", "/"):
        return parts._replace(path=_TRACES_PATH).geturl()
    return endpoint
