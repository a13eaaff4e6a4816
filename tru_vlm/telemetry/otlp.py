"""Sends spans to a collector: OpenTelemetry's SDK, OTLP over HTTP.  Imported only where something is traced.

Everything is an argument, so that the SDK need not look into the environment, and nothing is registered globally.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tru_vlm import __version__
from tru_vlm.telemetry.spans import Attribute, Carrier, Span, TraceTarget

_EXPORT_SECONDS = 3
_QUEUE_SPANS = 4096
_BATCH_SPANS = 512
_DELAY_MILLIS = 1000

_propagator = TraceContextTextMapPropagator()


class OtlpTracer:
    """Records spans, and sends them from a thread; where the collector is slow or gone they are lost, and logged so.

    Args:
        target: where they go.
        process: this process's name.
    """

    def __init__(self, target: TraceTarget, process: str) -> None:
        exporter = OTLPSpanExporter(
            endpoint=target.endpoint.rstrip("/") + "/v1/traces", headers=dict(target.headers), timeout=_EXPORT_SECONDS
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(target.ratio)),
            resource=Resource(
                {"service.name": target.service_name, "service.version": __version__, "tru_vlm.process": process}
            ),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=_QUEUE_SPANS,
                schedule_delay_millis=_DELAY_MILLIS,
                max_export_batch_size=_BATCH_SPANS,
                export_timeout_millis=_EXPORT_SECONDS * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("tru_vlm", __version__)

    def begin(self, name: str, carrier: Carrier, *, start_ns: int | None = None, is_server: bool = False) -> Span:
        """A span, below the one that ``carrier`` names."""
        kind = trace.SpanKind.SERVER if is_server else trace.SpanKind.INTERNAL
        above = _propagator.extract(carrier, Context())
        return _OtlpSpan(self._tracer, self._tracer.start_span(name, above, kind, start_time=start_ns))

    def remote(self, carrier: Carrier) -> Span:
        """The span that ``carrier`` names."""
        return _OtlpSpan(self._tracer, trace.get_current_span(_propagator.extract(carrier, Context())))

    def close(self) -> None:
        """Send what has not been sent yet."""
        self._provider.shutdown()


class _OtlpSpan:
    """A span of OpenTelemetry's."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def carrier(self) -> Carrier:
        """W3C's headers."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, self._context())
        return carrier

    def child(self, name: str, *, start_ns: int | None = None) -> Span:
        """Begin a part of the work."""
        return _OtlpSpan(self._tracer, self._tracer.start_span(name, self._context(), start_time=start_ns))

    def end(
        self,
        *,
        name: str | None = None,
        error: str | None = None,
        end_ns: int | None = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> None:
        """The work is done."""
        if name is not None:
            self._span.update_name(name)
        for key, value in (attributes or {}).items():
            if value is not None:
                self._span.set_attribute(key, value)
        if error is not None:
            self._span.set_status(trace.StatusCode.ERROR, error)
        self._span.end(end_ns)

    def _context(self) -> Context:
        return trace.set_span_in_context(self._span, Context())
