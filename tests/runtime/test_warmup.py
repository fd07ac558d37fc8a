"""The rehearsal before the first request: what it feeds the policy, and when it ends."""

import pytest

from integer_model import IntegerProposer, IntegerRunner, RandomPolicy
from smartspec import warmup
from smartspec.config import SchedulerConfig
from smartspec.policy.settings import LatencyPrior, Priors
from smartspec.policy.types import Proposer
from smartspec.warmup import WarmUp


def rehearse(
    policy: RandomPolicy,
    runner: IntegerRunner,
    *,
    seconds_per_reading: float = 0.0,
    proposers: tuple[Proposer, ...] = ("draft", "lookup"),
    num_blocks: int = 512,
    max_model_len: int = 512,
) -> int:
    """Rehearse on a machine whose clock moves by *seconds_per_reading* with every look at it."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += seconds_per_reading
        return now

    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, block_size=4)
    return WarmUp(
        config,
        policy,
        IntegerProposer(4),
        runner,
        clock,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        vocab_size=50,
        proposers=proposers,
    ).run(budget_seconds=3.0)


def test_it_teaches_times_of_all_sizes_and_no_acceptance() -> None:
    """The policy sees batches from one to the largest, with and without drafts, and no evidence about text."""
    policy, runner = RandomPolicy(), IntegerRunner(4)
    assert rehearse(policy, runner) == len(policy.observed) > 30
    assert {1, 2, 4, 8} == {outcome.features.num_requests for outcome in policy.observed}
    assert all(not outcome.outcomes and outcome.tokens_kept == 0 for outcome in policy.observed)
    assert {s.num_speculative_tokens for step in runner.steps for s in step.scheduled} >= {0, 1, 2, 4, 8}
    assert not policy.forgotten


def test_it_ends_in_time() -> None:
    """On a slow machine it stops at the first step past its time."""
    policy, runner = RandomPolicy(), IntegerRunner(4)
    rehearse(policy, runner, seconds_per_reading=0.1)
    assert 1 <= len(runner.steps) <= 10


@pytest.mark.parametrize(("num_blocks", "max_model_len"), [(8, 512), (40, 24), (1, 8)])
def test_a_small_cache_or_context_is_no_obstacle(num_blocks: int, max_model_len: int) -> None:
    """Where the usual batches do not fit, smaller ones are played, or none."""
    rehearse(RandomPolicy(), IntegerRunner(4), num_blocks=num_blocks, max_model_len=max_model_len)


def test_without_a_draft_model_nothing_is_drafted() -> None:
    """A runtime without a draft model rehearses plain steps."""
    policy, runner = RandomPolicy(), IntegerRunner(4)
    rehearse(policy, runner, proposers=("lookup",))
    assert {s.num_speculative_tokens for step in runner.steps for s in step.scheduled} == {0}


def test_it_is_skipped_when_a_time_model_was_handed_in() -> None:
    """Priors with evidence behind their times make a rehearsal needless; others do not."""
    assert warmup.is_needed(None)
    assert warmup.is_needed(Priors(key="k"))
    assert warmup.is_needed(Priors(key="k", latency=LatencyPrior({}, weight=0)))
    assert not warmup.is_needed(Priors(key="k", latency=LatencyPrior({"tokens": 0.1}, weight=10)))
