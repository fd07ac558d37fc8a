"""The Grafana dashboard asks for metrics that exist, in PromQL that parses, by labels that they have."""

import json
import re
import urllib.request
from typing import Any

import promql_parser
import pytest
from prometheus_client.metrics import MetricWrapperBase

from charts import CHART, ROOT, one, render
from serve_process import serve_process
from smartspec.metrics import METRICS
from smartspec_operator.metrics import Metrics

DASHBOARD: dict[str, Any] = json.loads((CHART / "files/dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DISCOVERED = {"namespace", "pod"}
"""Labels that Prometheus adds to what it scrapes of pods."""


def expressions() -> list[tuple[str, str]]:
    """Every query with its panel's title, Grafana's variables filled in."""
    return [
        (panel["title"], re.sub(r"\$(namespace|model|pod)\b", ".*", target["expr"].replace("$__rate_interval", "1m")))
        for panel in PANELS
        for target in panel["targets"]
    ]


def declared() -> dict[str, set[str]]:
    """The labels of every sample that the two contracts declare."""
    found = {metric.name: {"model_name", *metric.labels} for metric in METRICS}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            found[family.name + "_total" * (family.type == "counter")] = set(metric._labelnames)
    return found | {f"{name}_bucket": labels | {"le"} for name, labels in found.items()}


def selectors(expression: str) -> tuple[list[Any], set[str]]:
    """What *expression* selects, and the labels that it groups by; raises when it is no PromQL."""
    found: list[Any] = []
    groups: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            groups.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found, groups


@pytest.mark.parametrize(("title", "expression"), expressions())
def test_a_query_asks_by_labels_that_there_are(title: str, expression: str) -> None:
    """It is PromQL, and whatever it asks of a metric or groups by is one of that metric's labels."""
    found, groups = selectors(expression)
    assert found
    labels = declared()
    for selector in found:
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked | groups <= labels[selector.name] | DISCOVERED, selector.name


def test_running_processes_show_all_that_is_asked_for() -> None:
    """A server that has answered a request, and the operator's own registry, expose every metric of every query."""
    models = ROOT / "examples/models"
    with serve_process(models / "stdlib-target", "--draft", str(models / "stdlib-draft")) as server:
        server.wait_ready()
        body = {"model": "stdlib-target", "prompt": "def parse(self, text):", "max_tokens": 16}
        request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200
        status, text = server.get("/metrics")
        assert status == 200
    text += Metrics().exposition().decode()
    shown = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, flags=re.MULTILINE))
    shown |= {f"{name}_bucket": kind for name, kind in shown.items() if kind == "histogram"}
    asked = {selector.name: title for title, text in expressions() for selector in selectors(text)[0]}
    assert {name: title for name, title in asked.items() if name not in shown} == {}


def test_every_metric_worth_a_look_is_shown() -> None:
    """What the runtime's contract measures is on the board, but for what is informational or a sum of others."""
    asked = " ".join(expression for _, expression in expressions())
    missing = {metric.name for metric in METRICS if metric.name not in asked}
    assert missing == {
        "vllm:cache_config_info",
        "vllm:spec_decode_num_draft_tokens_total",  # by proposer: smartspec_draft_tokens_total
        "smartspec_acceptance_rate",  # a quotient of counters, which any window may be asked for
    }


def test_panels_lie_beside_each_other() -> None:
    """No two overlap, none leaves the grid, each has an id of its own and says where its data come from."""
    taken: dict[tuple[int, int], int] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["id"]) == panel["id"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}


def test_it_comes_as_a_config_map_that_grafana_finds() -> None:
    """The JSON as it is, under the label of Grafana's sidecar; nothing without the flag."""
    assert not [manifest for manifest in render() if manifest["kind"] == "ConfigMap"]
    made = one(render({"monitoring": {"dashboard": {"enabled": True}}}), "ConfigMap")
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(made["data"]["smartspec.json"]) == DASHBOARD
