"""The generated pages of docs/ say what the code says."""

from __future__ import annotations

import pytest
from support import ROOT

from tru_vlm.settings import Settings
from tru_vlm.telemetry.catalogue import CATALOGUE
from tru_vlm.telemetry.reference import PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_the_code_says(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text == PAGES[page](), "run: python -m tru_vlm.telemetry.reference docs"


def test_the_pages_are_complete() -> None:
    assert all(f"`{metric.name}`" in PAGES["metrics.md"]() for metric in CATALOGUE)
    assert all(f"`{name.upper()}`" in PAGES["configuration.md"]() for name in Settings.model_fields)


def test_names_and_buckets_are_what_prometheus_takes() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(names) == len(set(names))
    for metric in CATALOGUE:
        assert metric.kind != "counter" or metric.name.endswith("_total")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert metric.help.endswith(".")
