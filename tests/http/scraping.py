"""Reads ``/metrics`` as Prometheus does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import requests
from client import TIMEOUT
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tru_vlm.telemetry.catalogue import CATALOGUE, PREFIX

NOT_YET = {f"{PREFIX}{name}" for name in ("request_failures_total", "request_fetch_time_seconds", "rejections_total")}
"""What has not happened has no series."""


@dataclass(frozen=True)
class Scrape:
    """All series at one moment."""

    samples: list[Sample]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series of a name (without the prefix) that have these labels; 0 where there is none."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == f"tru_vlm_{name}" and labels.items() <= sample.labels.items()
        )


def scrape(base: str) -> Scrape:
    response = requests.get(base + "/metrics", timeout=TIMEOUT)
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return Scrape([sample for family in families for sample in family.samples])


def scrape_until(base: str, condition: Callable[[Scrape], bool]) -> Scrape:
    """Look again and again until something is so; fails when it never is."""
    deadline = time.monotonic() + TIMEOUT
    while not condition(found := scrape(base)):
        assert time.monotonic() < deadline, [sample for sample in found.samples if "_bucket" not in sample.name]
    return found


def grown(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after.value(name, **labels) - before.value(name, **labels)


def check_names(found: Scrape) -> None:
    """Every series and label is in the catalogue, and of the catalogue nothing is missing."""
    known = {metric.name: set(metric.labels) for metric in CATALOGUE}
    names: set[str] = set()
    for sample in found.samples:
        if sample.name.startswith(PREFIX):
            name = next(name for name in (sample.name, sample.name.rpartition("_")[0]) if name in known)
            assert set(sample.labels) - {"le"} == known[name], name
            names.add(name)
    assert set(known) - names <= NOT_YET
