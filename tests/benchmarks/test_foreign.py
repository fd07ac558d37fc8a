"""Results of other people's clients are judged: what failed, what was cut, what was not found."""

import json
from pathlib import Path
from typing import Any

import pytest

from smartspec_bench.foreign import CLIENTS, REQUESTS, TOKENS, judge_guidellm, judge_vllm

GOOD: dict[str, Any] = {
    "completed": REQUESTS, "failed": 0, "total_output_tokens": REQUESTS * TOKENS, "spec_decode_num_drafts": 3,
}  # fmt: skip


def _written(path: Path, result: dict[str, Any]) -> Path:
    path.write_text(json.dumps(result))
    return path


def _report(successful: int, errored: int, tokens: int) -> dict[str, Any]:
    totals = {"successful": successful, "errored": errored, "incomplete": 0}
    requests = [{"output_metrics": {"text_tokens": tokens}}] * successful
    return {"benchmarks": [{"metrics": {"request_totals": totals}, "requests": {"successful": requests}}]}


@pytest.mark.parametrize(
    ("change", "amiss"),
    [
        ({}, ""),
        ({"completed": 0, "failed": REQUESTS, "total_output_tokens": 0}, "0 of 8 requests were answered, 8 failed"),
        ({"total_output_tokens": 100}, "100 tokens were counted, not 192"),
    ],
)
def test_judges_vllm(tmp_path: Path, change: dict[str, Any], amiss: str) -> None:
    """Nothing amiss in a good result; failures and missing tokens are told."""
    assert "; ".join(judge_vllm(_written(tmp_path / "result.json", GOOD | change))) == amiss


def test_misses_the_counters(tmp_path: Path) -> None:
    """A result without speculation is one that did not find the counters."""
    result = {name: value for name, value in GOOD.items() if not name.startswith("spec")}
    assert judge_vllm(_written(tmp_path / "result.json", result)) == ["no speculation counters were found at /metrics"]


def test_judges_guidellm(tmp_path: Path) -> None:
    """Likewise for guidellm's report."""
    path = tmp_path / "result.json"
    assert judge_guidellm(_written(path, _report(REQUESTS, 0, TOKENS))) == []
    assert judge_guidellm(_written(path, _report(REQUESTS - 1, 1, TOKENS))) == [
        "7 of 8 requests were answered, 1 failed"
    ]
    assert judge_guidellm(_written(path, _report(REQUESTS, 0, TOKENS - 1))) == ["184 tokens were counted, not 192"]


@pytest.mark.parametrize("client", CLIENTS)
def test_results_are_told_apart(tmp_path: Path, client: str) -> None:
    """Every run of a client has a name and a result of its own, and its command writes there."""
    tasks = CLIENTS[client](tmp_path, "http://x", "m", tmp_path, tmp_path)
    assert len({task.name for task in tasks}) == len({task.result for task in tasks}) == 3
    assert all(any(task.result.name in part for part in task.command) for task in tasks)
