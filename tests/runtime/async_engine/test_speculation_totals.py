"""What `/speculation` sums up since the start."""

from smartspec.async_engine.speculation_totals import SpeculationTotals
from smartspec.policy.types import Decision, StepFeatures, StepSeconds
from smartspec.scheduling.output import StepStats


def step(predicted_seconds: float, measured: StepSeconds, **more: object) -> StepStats:
    """A step of two requests that kept five tokens where four were foretold."""
    fields = {"tokens_kept": 5, "num_running": 2, "num_waiting": 0, "kv_cache_usage": 0.0, **more}
    decision = Decision(predicted_seconds=predicted_seconds, predicted_tokens=4.0, probe=bool(more))
    return StepStats(decision=decision, features=StepFeatures(5, 50, 2), seconds=measured, **fields)  # type: ignore[arg-type]


def test_nothing_is_no_division_by_zero() -> None:
    """Before the first step."""
    report = SpeculationTotals().report()
    assert (report["steps"], report["measured_goodput"], report["time_bias"]) == (0, 0.0, 0.0)


def test_predictions_are_set_against_what_was_measured() -> None:
    """Seconds by part, bias over steps that were predicted at all, both goodputs."""
    totals = SpeculationTotals()
    totals.stepped(step(0.0, StepSeconds(0.0, 9.0, 1.0)))  # nobody had foretold it
    totals.stepped(step(0.9, StepSeconds(0.2, 0.7, 0.1)))
    totals.stepped(step(1.2, StepSeconds(0.2, 0.7, 0.1)))
    report = totals.report()
    assert {part: round(seconds, 9) for part, seconds in report["seconds"].items()} == {
        "draft": 0.4, "target": 10.4, "host": 1.2, "total": 12.0,
    }  # fmt: skip
    assert round(report["time_bias"], 9) == 0.05
    assert round(report["predicted_goodput"], 6) == round(8.0 / 2.1, 6)
    assert report["measured_goodput"] == 15 / 12.0


def test_proposals_are_counted_by_proposer_and_k() -> None:
    """Drafted, accepted, wasted, caught up with, and how often which k was chosen."""
    totals = SpeculationTotals()
    for accepted in (1, 3):
        totals.stepped(
            step(
                1.0,
                StepSeconds(0.1, 0.8, 0.1),
                drafted_by_proposer={"draft": 4},
                accepted_by_proposer={"draft": accepted},
                k_by_request=(("draft", 4), ("none", 0)),
                catchup_tokens=7,
            )
        )
    report = totals.report()
    assert report["proposers"] == {
        "draft": {"draft_tokens": 8, "accepted_tokens": 4, "wasted_tokens": 4, "acceptance_rate": 0.5}
    }
    assert report["k_by_proposer"] == {"draft": {"4": 2}, "none": {"0": 2}}
    assert (report["catchup_tokens"], report["probes"], report["steps"]) == (14, 2, 2)
