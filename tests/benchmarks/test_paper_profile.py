"""The profile behind the ratios of `paper`: what servers counted, per token."""

from typing import Any

from smartspec_bench.paper_profile import table

CELL = ("code", "alone")


def run(mode: str, latency: float, counters: dict[str, float]) -> dict[str, Any]:
    """A run of 10 s."""
    return {"workload": CELL[0], "load": CELL[1], "mode": mode, "seconds": 10.0, "latencies": [latency]} | {
        "counters": counters
    }


def counters(host: float, draft: float, target: float) -> dict[str, float]:
    """Of 500 steps that kept 1,000 tokens; half of 400 proposals were not kept, and 5 steps were probes."""
    seconds = {"host": host, "draft": draft, "target": target}
    return {f"smartspec_step_seconds_total{{part={part}}}": value for part, value in seconds.items()} | {
        "smartspec_steps_total": 500.0,
        "smartspec_tokens_kept_total": 1000.0,
        "smartspec_draft_tokens_total{proposer=draft}": 300.0,
        "smartspec_draft_tokens_total{proposer=lookup}": 100.0,
        "smartspec_wasted_draft_tokens_total{proposer=draft}": 200.0,
        "smartspec_probes_total": 5.0,
    }


def test_time_is_shared_out_per_token() -> None:
    """Of 10 s for 1,000 tokens, what no step took is told apart; of the fixed lengths the fastest stands for all."""
    runs = [
        run("off", 3.0, {}),
        run("fixed 1", 2.0, counters(2.0, 0.0, 7.0)),
        run("fixed 3", 1.0, counters(1.0, 2.0, 4.5)),
        run("request", 1.0, counters(0.5, 1.0, 6.0)),
    ]
    rows = table([CELL], runs, ("fixed 1", "fixed 3"))[2:]
    assert rows == [
        "| code | alone | fixed 3 | 2.0 | 1.000 | 2.000 | 4.500 | 2.500 | 10.000 | 50% | 1% |",
        "| code | alone | request | 2.0 | 0.500 | 1.000 | 6.000 | 2.500 | 10.000 | 50% | 1% |",
    ]


def test_nothing_counted_is_no_table() -> None:
    """A record of servers that count nothing has no profile, rather than one of zeros."""
    assert table([CELL], [run("off", 3.0, {})], ("fixed 1",)) == []
