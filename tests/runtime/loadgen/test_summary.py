"""Sums over samples: percentiles, errors by kind, what a server counted, and modes against each other."""

import pytest

from smartspec.loadgen.client import Sample
from smartspec.loadgen.counters import Speculation
from smartspec.loadgen.run import Run
from smartspec.loadgen.summary import Spread, Summary, against

COUNTED = {
    "vllm:spec_decode_num_drafts_total": 10.0,
    "vllm:spec_decode_num_draft_tokens_total": 40.0,
    "vllm:spec_decode_num_accepted_tokens_total": 25.0,
    "vllm:spec_decode_num_accepted_tokens_per_pos_total{position=0}": 9.0,
    "vllm:spec_decode_num_accepted_tokens_per_pos_total{position=1}": 7.0,
    "vllm:generation_tokens_total": 100.0,
}


def answered(number: int, latency: float, tokens: int = 11) -> Sample:
    """A request whose first token took a tenth of a second."""
    return Sample(number, 0.0, ttft=0.1, latency=latency, gaps=(0.2, latency - 0.3), tokens=tokens)


def test_percentiles_and_rates() -> None:
    """Over all rounds; what failed counts among errors and nowhere else."""
    failed = Sample(9, 0.0, latency=99.0, error="HTTP 429", detail="full")
    rounds = (Run([answered(0, 1.1), failed], 2.0), Run([answered(0, 2.1), failed, failed], 3.0))
    summary = Summary("auto", rounds)
    assert (summary.tokens, summary.tokens_per_second, summary.requests_per_second) == (22, 22 / 5, 2 / 5)
    assert summary.errors == {"HTTP 429": 3}
    times = summary.times
    assert times["e2e"] == Spread(pytest.approx(1.6), pytest.approx((1.6, 2.0, 2.05, 2.09)))
    assert times["ttft"] is not None
    assert times["ttft"].median == pytest.approx(0.1)
    assert times["tpot"] is not None
    assert times["tpot"].mean == pytest.approx((0.1 + 0.2) / 2)
    assert times["itl"] is not None
    assert times["itl"].median == pytest.approx(0.5)


def test_nothing_answered() -> None:
    """No percentiles of nothing, and no division by it."""
    summary = Summary("auto", (Run(),))
    assert set(summary.times.values()) == {None}
    assert (summary.tokens_per_second, summary.requests_per_second, summary.speculation) == (0.0, 0.0, None)
    assert summary.as_json()["answered"] == 0


def test_what_the_server_counted() -> None:
    """Of all rounds together, with how much of it was for others; None where a round has nothing."""
    summary = Summary(
        "auto", (Run([answered(0, 1.0, 50)], 1.0, counted=COUNTED), Run([answered(0, 1.0, 50)], 1.0, counted=COUNTED))
    )
    assert summary.speculation == Speculation(20.0, 80.0, 50.0, (18.0, 14.0))
    assert summary.speculation.acceptance_rate == pytest.approx(50 / 80)
    assert summary.speculation.mean_acceptance_length == pytest.approx(3.5)
    assert summary.share_of_others == pytest.approx(0.5)
    assert Summary("auto", (Run(counted=COUNTED), Run())).speculation is None
    assert Speculation.of({}).acceptance_rate is None


def test_modes_are_compared_by_request() -> None:
    """Pairs that both answered, by their number; None where there are none."""
    first = Summary("off", (Run([answered(1, 2.0), answered(0, 4.0), answered(2, 99.0)]),))
    mode = Summary("auto", (Run([answered(0, 2.0), answered(1, 1.0), Sample(2, 0.0, error="timeout")]),))
    compared = against(mode, first)
    assert compared is not None
    assert compared.middle == pytest.approx(0.5)
    assert compared.pairs == 2
    assert against(Summary("auto", (Run(),)), first) is None
