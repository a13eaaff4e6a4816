"""Traces as the rest of the program sees them: spans that begin, have children and end.

It does not know OpenTelemetry, which is imported (``otlp.py``) only where traces are sent somewhere; else every span is
:data:`NO_SPAN`, which does nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from tru_vlm.settings import Settings, split_list

Attribute = str | int | float | bool | None
Carrier = Mapping[str, str]
"""W3C's headers ``traceparent`` and ``tracestate``, by name."""

_NOTHING: dict[str, str] = {}


class Span(Protocol):
    """Some work, from its beginning to its end."""

    @property
    def carrier(self) -> Carrier:
        """What makes a span of another process its child; empty where nothing is traced."""
        ...

    def child(self, name: str, *, start_ns: int | None = None) -> Span:
        """Begin a part of the work.

        Args:
            name: of the part.
            start_ns: when it began, nanoseconds of the clock (``time.time_ns``); by default now.
        """
        ...

    def end(
        self,
        *,
        name: str | None = None,
        error: str | None = None,
        end_ns: int | None = None,
        attributes: Mapping[str, Attribute] = _NOTHING,
    ) -> None:
        """The work is done.

        Args:
            name: a better one, where it was not known at the beginning.
            error: what failed, as a code; None if nothing did.
            end_ns: when it ended; by default now.
            attributes: what is worth telling; those that are None are left out.
        """
        ...


class NoSpan:
    """Nothing is traced."""

    carrier: Carrier = _NOTHING

    def child(self, name: str, *, start_ns: int | None = None) -> Span:  # noqa: ARG002 - as Span's
        """Itself."""
        return self

    def end(
        self,
        *,
        name: str | None = None,
        error: str | None = None,
        end_ns: int | None = None,
        attributes: Mapping[str, Attribute] = _NOTHING,
    ) -> None:
        """Nothing."""


NO_SPAN: Span = NoSpan()


class Tracer(Protocol):
    """Begins traces, and goes on with those of others."""

    def begin(self, name: str, carrier: Carrier, *, start_ns: int | None = None, is_server: bool = False) -> Span:
        """A span, below the one that ``carrier`` names; where it names none, the first of a trace."""
        ...

    def remote(self, carrier: Carrier) -> Span:
        """The span of another program that ``carrier`` names, to have children; without one, each begins a trace."""
        ...

    def close(self) -> None:
        """Send what has not been sent yet; takes a few seconds at most."""
        ...


@dataclass(frozen=True, slots=True)
class TraceTarget:
    """Where spans go.

    Attributes:
        endpoint: base URL of a collector that takes OTLP over HTTP.
        headers: sent with each export.
        service_name: whose spans they are.
        ratio: share of the traces that begin here which are recorded.
    """

    endpoint: str
    headers: Mapping[str, str]
    service_name: str
    ratio: float


def trace_target(settings: Settings) -> TraceTarget | None:
    """Where the settings send spans; None where nothing is traced."""
    if not settings.otel_exporter_otlp_endpoint:
        return None
    pairs = [item.partition("=") for item in split_list(settings.otel_exporter_otlp_headers.get_secret_value())]
    return TraceTarget(
        endpoint=settings.otel_exporter_otlp_endpoint,
        headers={name.strip(): unquote(value.strip()) for name, _, value in pairs},
        service_name=settings.otel_service_name,
        ratio=settings.otel_traces_sampler_arg,
    )


def tracing_problem(settings: Settings) -> str | None:
    """Why spans cannot be sent, or None."""
    if trace_target(settings) is None:
        return None
    try:
        is_there = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ModuleNotFoundError:
        is_there = False
    if is_there:
        return None
    return (
        f"OTEL_EXPORTER_OTLP_ENDPOINT={settings.otel_exporter_otlp_endpoint}: traces need OpenTelemetry's SDK and its "
        "OTLP exporter; install them with: pip install 'tru-vlm[tracing]'"
    )


class Tracing:
    """The tracer of this process, once it is started: after the fork, since it has a thread.

    Args:
        target: where spans go; None traces nothing.
    """

    def __init__(self, target: TraceTarget | None) -> None:
        self._target = target
        self._tracer: Tracer | None = None

    def start(self, process: str) -> None:
        """Begin to trace.

        Args:
            process: this process's name: http or worker.
        """
        if self._target is not None:
            from tru_vlm.telemetry.otlp import OtlpTracer

            self._tracer = OtlpTracer(self._target, process)

    @property
    def is_on(self) -> bool:
        """Whether anything is traced."""
        return self._tracer is not None

    def begin(self, name: str, carrier: Carrier, *, start_ns: int | None = None, is_server: bool = False) -> Span:
        """As :meth:`Tracer.begin`."""
        if self._tracer is None:
            return NO_SPAN
        return self._tracer.begin(name, carrier, start_ns=start_ns, is_server=is_server)

    def remote(self, carrier: Carrier) -> Span:
        """As :meth:`Tracer.remote`."""
        return NO_SPAN if self._tracer is None else self._tracer.remote(carrier)

    def close(self) -> None:
        """As :meth:`Tracer.close`."""
        if self._tracer is not None:
            self._tracer.close()
