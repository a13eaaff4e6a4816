"""Reads the queries of the dashboard and of the alert rules: which series they need, and which labels of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser
import yaml
from support import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
TARGET_LABELS = {"instance", "job"}
"""Labels that Prometheus adds to every series."""


@dataclass(frozen=True)
class Need:
    """A series that a query reads, the labels that it names, and the values that it wants of them."""

    query: str
    name: str
    labels: frozenset[str]
    values: tuple[tuple[str, str], ...]


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "grafana" / "dashboard.json").read_text()))


def dashboard_queries() -> list[str]:
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [query.replace("$__rate_interval", "5m") for query in queries]


def needs(query: str) -> list[Need]:
    """Every selector of a query, with the labels that it and what is around it name."""
    return list(_needs(query, promql_parser.parse(query), frozenset()))


def _needs(query: str, node: Any, grouping: frozenset[str]) -> Iterator[Need]:
    match type(node).__name__:
        case "VectorSelector":
            matchers = node.matchers.matchers
            values = tuple((m.name, m.value) for m in matchers if m.op == promql_parser.MatchOp.Equal)
            yield Need(query, node.name, frozenset(m.name for m in matchers) | grouping, values)
        case "MatrixSelector":
            yield from _needs(query, node.vector_selector, grouping)
        case "AggregateExpr":
            named = frozenset(node.modifier.labels) if node.modifier else frozenset()
            yield from _needs(query, node.expr, grouping | named)
        case "Call":
            for argument in node.args:
                yield from _needs(query, argument, grouping)
        case "BinaryExpr":
            yield from _needs(query, node.lhs, grouping)
            yield from _needs(query, node.rhs, grouping)
        case "ParenExpr":
            yield from _needs(query, node.expr, grouping)
        case "NumberLiteral":
            return
        case other:
            raise AssertionError(f"{other} in {query}")
