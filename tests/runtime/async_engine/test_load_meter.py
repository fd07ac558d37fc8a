"""What a load report says of the last half minute."""

import pytest

from smartspec.async_engine.load_meter import LoadMeter
from smartspec.policy.types import Decision, StepFeatures, StepSeconds
from smartspec.scheduling.output import StepStats


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now


def step(tokens_kept: int = 0, seconds: float = 0.1, predicted: float = 0.1, **stats: object) -> StepStats:
    """A step of *seconds*."""
    return StepStats(
        decision=Decision(predicted_seconds=predicted, predicted_tokens=float(tokens_kept), reason="because"),
        features=StepFeatures(0, 0, 0, prefill_tokens=5),
        seconds=StepSeconds(0.0, seconds, 0.0),
        tokens_kept=tokens_kept,
        num_running=0,
        num_waiting=0,
        kv_cache_usage=0.0,
        **stats,  # type: ignore[arg-type]
    )


def test_rates_are_over_the_time_covered() -> None:
    """Ten seconds after the start, rates are per those ten seconds, not per the whole window."""
    clock = Clock()
    meter = LoadMeter(clock)
    for second in range(10):
        clock.now = float(second)
        meter.arrived(num_prompt_tokens=20, max_tokens=7)
        meter.stepped(step(tokens_kept=3))
    clock.now = 10.0
    shape = meter.recent().shape
    assert (shape.requests_per_second, shape.prompt_tokens_per_second) == (1.0, 20.0)
    assert (shape.generation_tokens_per_second, shape.mean_requested_tokens) == (3.0, 7.0)


def test_a_step_of_load_shows_in_what_came_lately() -> None:
    """Eight seconds after arrivals have risen, refused ones included, their recent rate is the new one."""
    clock = Clock()
    meter = LoadMeter(clock)
    for second in range(30):
        clock.now = float(second)
        for _ in range(1 if second < 22 else 4):
            meter.arrived(num_prompt_tokens=20, max_tokens=7)
        if second >= 22:
            meter.turned_away()
    shape = meter.recent().shape
    assert shape.recent_requests_per_second == 5.0
    assert shape.requests_per_second == pytest.approx(62 / 29)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    """Half a minute later nothing is left, whether new things happened meanwhile or not."""
    clock = Clock()
    meter = LoadMeter(clock)
    meter.first_token(0.05)
    clock.now = 29.0
    meter.first_token(0.05)
    assert meter.recent().ttft.total == 2
    clock.now = 30.5
    assert meter.recent().ttft.total == 1
    clock.now = 100.0
    assert meter.recent().ttft.total == 0


def test_latencies_fall_into_the_shared_buckets() -> None:
    """TPOT is the mean time per token after the first, once per request; one token alone has none."""
    meter = LoadMeter(Clock())
    meter.finished(num_generation_tokens=11, decode_seconds=0.5, e2e_seconds=0.75)
    meter.finished(num_generation_tokens=1, decode_seconds=0.0, e2e_seconds=0.2)
    meter.stepped(step(queue_seconds=(0.2, 300.0)))
    recent = meter.recent()
    assert recent.tpot.total == 1
    assert recent.tpot.share_within(0.05) == 1.0
    assert recent.tpot.share_within(0.04) == 0.0
    assert (recent.e2e.total, recent.e2e.share_within(0.75), recent.e2e.share_within(0.5)) == (2, 1.0, 0.5)
    assert recent.queue_time.total == 2
    assert recent.shape.mean_generation_tokens == 6.0


def test_speculation_is_averaged_over_requests_and_steps() -> None:
    """k counts every decoding request, acceptance what was drafted, goodput tokens per second of step time."""
    meter = LoadMeter(Clock())
    meter.stepped(
        step(
            tokens_kept=6,
            seconds=0.2,
            predicted=0.1,
            drafted_by_proposer={"draft": 4, "lookup": 2},
            accepted_by_proposer={"draft": 3, "lookup": 0},
            k_by_request=(("draft", 4), ("lookup", 2), ("none", 0)),
            num_drafts=2,
        )
    )
    meter.stepped(step(tokens_kept=3, k_by_request=(("none", 0),) * 3))
    report = meter.recent().speculation
    assert report.mean_k == 1.0
    assert report.acceptance_rate == 0.5
    assert report.mean_acceptance_length == 2.5
    assert report.measured_goodput == pytest.approx(9 / 0.3)
    assert report.predicted_goodput == pytest.approx(9 / 0.2)
    assert report.time_error == pytest.approx(0.25)
    assert report.last_reason == "because"


def test_found_prefixes_are_a_share_of_what_was_looked_up() -> None:
    """Hits over queries in tokens, over the window; nothing looked up is nothing found."""
    meter = LoadMeter(Clock())
    assert meter.recent().shape.prefix_hit_share == 0.0
    meter.stepped(step(prefix_query_tokens=30))
    meter.stepped(step(prefix_query_tokens=10, prefix_hit_tokens=10))
    assert meter.recent().shape.prefix_hit_share == 0.25
