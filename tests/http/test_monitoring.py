"""The dashboard and the alert rules of deploy/monitoring ask for what a running server exports, and are well formed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import requests
import yaml
from client import TIMEOUT, upload
from monitoring import MONITORING, TARGET_LABELS, alert_rules, dashboard, dashboard_queries, needs
from pydantic import BaseModel, ConfigDict, Field
from scraping import scrape
from support import Server

from tru_vlm.telemetry.catalogue import CATALOGUE

NOT_HERE = {"tru_vlm_request_failures_total", "tru_vlm_request_fetch_time_seconds"}
"""Series of what does not happen on the server of this test; the catalogue vouches for them."""

Duration = Annotated[str, Field(pattern=r"^([0-9]+(ms|[smhdwy]))+$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Rule(Strict):
    """https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/"""

    alert: Annotated[str, Field(pattern="^TruVlm[A-Za-z]+$")]
    expr: str
    for_: Annotated[Duration | None, Field(alias="for")] = None
    labels: dict[Literal["severity"], Literal["critical", "warning"]]
    annotations: dict[Literal["summary"], str]


class Group(Strict):
    name: str
    rules: Annotated[list[Rule], Field(min_length=1)]


class RuleFile(Strict):
    groups: Annotated[list[Group], Field(min_length=1)]


def test_rules_are_well_formed_and_named_once() -> None:
    file = RuleFile.model_validate(yaml.safe_load((MONITORING / "alerts.yml").read_text()))
    names = [rule.alert for group in file.groups for rule in group.rules]
    assert len(names) == len(set(names))


def test_prometheus_scrapes_the_route_and_reads_the_rules() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert all((MONITORING / name).is_file() for name in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("tru-vlm", "/metrics")


def test_panels_do_not_overlap_and_their_variables_exist() -> None:
    board = dashboard()
    known = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", []):
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_series_and_label_that_they_use_is_exported(server: Server, clips: dict[str, Path]) -> None:
    assert upload(server.base, clips["one"]).status_code == 200
    assert upload(server.base, clips["text"]).status_code == 415
    requests.get(server.base + "/nowhere", timeout=TIMEOUT)
    exported: dict[str, list[dict[str, str]]] = {}
    for sample in scrape(server.base).samples:
        exported.setdefault(sample.name, []).append(sample.labels)
    catalogue = {name: [dict.fromkeys(metric.labels, "")] for metric in CATALOGUE for name in _series(metric.name)}
    queries = [*dashboard_queries(), *(rule["expr"] for rule in alert_rules())]
    wanted = [need for query in queries for need in needs(query)]
    assert len(wanted) > 60
    for need in wanted:
        if need.name == "up":  # Prometheus' own
            continue
        is_here = need.name.removesuffix("_sum").removesuffix("_count") not in NOT_HERE
        assert need.name in exported or not is_here, need
        for labels in exported.get(need.name, catalogue[need.name]):
            assert need.labels - TARGET_LABELS <= set(labels), need
        assert all(name in TARGET_LABELS or value in _known_values(name) for name, value in need.values), need


def test_all_that_is_exported_of_requests_is_on_the_dashboard() -> None:
    shown = {need.name for query in dashboard_queries() for need in needs(query)}
    for metric in CATALOGUE:
        if metric.kind == "histogram":
            assert shown & set(_series(metric.name)), metric.name


def _series(name: str) -> list[str]:
    return [name, *(f"{name}_{part}" for part in ("bucket", "sum", "count"))]


def _known_values(label: str) -> set[Any]:
    return {"state": {"ready", "starting"}, "outcome": {"error"}, "cause": {"queue_full"}}[label]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [("sum(rate(tru_vlm_requests_total[5m])", "unclosed left parenthesis"), ("rate(tru_vlm_requests_total)", "vector")],
)
def test_a_broken_query_is_noticed(broken: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        needs(broken)
