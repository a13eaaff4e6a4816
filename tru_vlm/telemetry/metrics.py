"""The numbers behind the catalogue: what is counted as it happens, and what is read when somebody looks.

One registry in the HTTP process, which sees every request and hears from every worker (docs/adr/0017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tru_vlm.telemetry.catalogue import CATALOGUE, PREFIX, Metric


class Observer(Protocol):
    """One series of a histogram."""

    def observe(self, amount: float) -> None:
        """Count a value."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of one series now; a counter's only grows.

    Attributes:
        metric: its family.
        value: the number.
        labels: values of the family's labels, by name.
    """

    metric: Metric
    value: float
    labels: dict[str, str]


Read = Callable[[], Iterable[Reading]]


class Metrics:
    """Counts, observes and exports.  Cheap enough for every token."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing here reads
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._counters: dict[Metric, Counter] = {}
        self._histograms: dict[Metric, Histogram] = {}

    def count(self, metric: Metric, **labels: str) -> None:
        """Add one to a counter."""
        self._counter(metric, labels).inc()

    def begin(self, metric: Metric, **labels: str) -> None:
        """Export a counter as zero before its first event, so that the first one shows as an increase."""
        self._counter(metric, labels)

    def _counter(self, metric: Metric, labels: dict[str, str]) -> Counter:
        counter = self._counters.get(metric)
        if counter is None:
            counter = self._counters[metric] = Counter(
                PREFIX + metric.word, metric.help, metric.labels, registry=self._registry
            )
        return counter.labels(**labels) if labels else counter

    def series(self, metric: Metric, **labels: str) -> Observer:
        """A series of a histogram, to observe many values on."""
        histogram = self._histograms.get(metric)
        if histogram is None:
            histogram = self._histograms[metric] = Histogram(
                metric.name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets
            )
        return histogram.labels(**labels) if labels else histogram

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Count a value in a histogram."""
        self.series(metric, **labels).observe(value)

    def read_from(self, read: Read) -> None:
        """Export also what ``read`` tells at each look."""
        self._registry.register(_Readings(read))

    def export(self, accept: str) -> tuple[bytes, str]:
        """All series as text, in the format that an ``Accept`` header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Readings(Collector):
    """Turns readings into families."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def describe(self) -> list[Family]:
        """None: names come with the readings, and registering must not read yet."""
        return []

    def collect(self) -> Iterator[Family]:
        """All families, each with its series."""
        by_metric: dict[Metric, list[Reading]] = {}
        for reading in self._read():
            by_metric.setdefault(reading.metric, []).append(reading)
        for metric in CATALOGUE:
            if readings := by_metric.get(metric):
                make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = make(PREFIX + metric.word, metric.help, labels=metric.labels)
                for reading in readings:
                    family.add_metric([reading.labels[name] for name in metric.labels], reading.value)
                yield family
