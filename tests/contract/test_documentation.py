"""The pages for users name what the code has, all of it and nothing else."""

import re
from pathlib import Path

from smartspec import metrics
from smartspec.server import field_table

DOCS = Path(__file__).parents[2] / "docs"


def test_every_metric_is_documented_with_its_meaning() -> None:
    """The table of metrics is the contract of `smartspec.metrics`, row by row."""
    text = (DOCS / "runtime.md").read_text()
    documented = re.findall(r"^\| `((?:vllm:|smartspec_)\w+)` \| (\w+) \| .*? \| (.+) \|$", text, flags=re.MULTILINE)
    declared = [
        (metric.name, metric.kind, metric.help.replace("|", "&#124;"))
        for metric in vars(metrics).values()
        if isinstance(metric, metrics.Metric)
    ]
    assert documented == declared


def test_every_field_of_a_request_is_documented() -> None:
    """The tables are rendered from routes and from the types that parse bodies, and each field says what it means."""
    page = (DOCS / "api.md").read_text()
    assert field_table.place(page) == page, "run python -m smartspec.server.field_table docs/api.md"
    assert [row for row in field_table.render().splitlines() if re.match(r"\| `\w+` .*\|  \|$", row)] == []
    assert "| `min_tokens` | both | integer from 0 | `0` |" in page
    assert "| `POST /v1/completions` |" in page


def test_every_condition_of_the_operator_is_explained() -> None:
    """The troubleshooting table has a row for each condition a SmartSpec can show."""
    package = DOCS.parent / "operator/smartspec_operator"
    source = "".join((package / f"{name}.py").read_text() for name in ("conditions", "objectives"))
    text = (DOCS / "operator.md").read_text()
    conditions = set(re.findall(r'Condition\(\s*"(\w+)"', source))
    assert len(conditions) >= 8
    assert {name for name in conditions if f"`{name}`" not in text} <= {"Available"}
