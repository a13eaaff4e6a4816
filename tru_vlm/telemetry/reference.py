"""Writes the pages of docs/ that say what the code says: ``python -m tru_vlm.telemetry.reference docs``.

A test fails when a page and the code differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tru_vlm.settings import setting_lines
from tru_vlm.telemetry.catalogue import CATALOGUE, Metric

_METRICS = """# Metrics

`GET /metrics` gives them to Prometheus, in its text format or as OpenMetrics. Names are vLLM's words behind `tru_vlm_`,
the same for both engines. `model_name` is the model or alias that was asked for, `variant` the model that answers, and
`worker` its worker's number. Beside these there are the HTTP process's own `process_*`. A dashboard and alert rules are
in [deploy/monitoring](../deploy/monitoring); [ADR 17](adr/0017-metrics-are-one-registry.md) tells how it is counted.

This page is generated: `python -m tru_vlm.telemetry.reference docs`.

| name | kind | labels | what |
|---|---|---|---|
"""

_CONFIGURATION = """# Configuration

Every setting is an environment variable; `.env` in the working directory is read too, and the environment wins. A wrong
value stops the start with a message that names the variable, the value and what is accepted.

This page is generated: `python -m tru_vlm.telemetry.reference docs`.

| variable | default | what |
|---|---|---|
"""


def metrics_page() -> str:
    """The text of ``docs/metrics.md``."""
    return _METRICS + "".join(map(_metric_row, CATALOGUE))


def configuration_page() -> str:
    """The text of ``docs/configuration.md``."""
    rows = (
        f"| `{name}` | {f'`{default}`' if default else ''} | {_cell(text)} |\n"
        for name, text, default in setting_lines()
    )
    return _CONFIGURATION + "".join(rows)


PAGES: Mapping[str, Callable[[], str]] = {"metrics.md": metrics_page, "configuration.md": configuration_page}


def _setting_row(name: str, text: str, default: str) -> str:
    return f"| `{name}` | {f'`{default}`' if default else ''} | {_cell(text)} |\n"


def _metric_row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {_cell(metric.help)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for page, text_of in PAGES.items():
        (Path(sys.argv[1]) / page).write_text(text_of(), encoding="utf-8")
