"""What a token is worth: the long run of a closed loop, not the coming step alone."""

import itertools

import numpy as np
import pytest

from smartspec.policy.costs import Costs
from smartspec.policy.goodput import Problem, optimise
from smartspec.policy.worth import long_run_worth

REQUESTS = 40
EASY, HARD = 0.92, 0.3


def step_seconds(nodes: float | np.ndarray) -> float | np.ndarray:
    """Seconds of a step of all requests with *nodes*."""
    return 0.02 + 0.0006 * (nodes + REQUESTS)


COSTS = Costs(target=step_seconds(np.arange(8 * REQUESTS + 1)), draft=np.array([[1.0, 2.0], [0.0, 0.0]]))


def batch_of(rates: list[float], depth: int = 8) -> Problem:
    """Requests of one acceptance rate each at all positions, drafts that cost nothing."""
    chances = np.array(rates)[:, None] ** np.arange(1, depth + 1)
    num = len(rates)
    none, ones = np.zeros_like(chances), np.ones(num)
    return Problem(chances, none, ones, 100 * ones, np.full(num, -1), ones, max_nodes=1 << 20)


def worth_of(problem: Problem) -> np.ndarray:
    """What tokens are worth to the long run."""
    return long_run_worth(problem.draft, problem.lookup, COSTS)


def in_the_long_run(lengths: tuple[float, float]) -> tuple[float, int]:
    """Tokens per second of a closed loop in which every other newcomer is easy, when easy and hard ones speculate
    these lengths: and how many of those running are easy, each staying for as many steps as its tokens take."""
    per_step = [
        np.interp(k, range(9), 1 + np.cumsum([0, *rate ** np.arange(1, 9)]))
        for k, rate in zip(lengths, (EASY, HARD), strict=True)
    ]
    stay = 1 / np.array(per_step)
    easy = stay[0] / stay.sum()
    seconds = float(step_seconds(REQUESTS * (easy * lengths[0] + (1 - easy) * lengths[1])))
    return REQUESTS / stay.mean() / seconds, round(REQUESTS * easy)


def settled(*, weighs: bool) -> float:
    """Tokens per second where the mix of requests and the lengths chosen for that mix have settled."""
    easy = REQUESTS // 2
    speeds = []
    for _ in range(12):
        problem = batch_of([EASY] * easy + [HARD] * (REQUESTS - easy))
        worth = worth_of(problem) if weighs else problem.worth
        plan = optimise(Problem(**{**problem.__dict__, "worth": worth}), COSTS, rate=100.0)
        speed, easy = in_the_long_run((float(plan.num_tokens[:easy].mean()), float(plan.num_tokens[easy:].mean())))
        speeds.append(speed)
    return float(np.mean(speeds[4:]))


def test_the_best_lengths_of_a_closed_loop_are_found() -> None:
    """Where finished requests are replaced, lengths by worth come to the best pair of lengths of all; lengths for the
    coming step alone hurry the easy ones, are left with the hard ones, and fall behind."""
    best = max(in_the_long_run((float(e), float(h)))[0] for e, h in itertools.product(range(9), repeat=2))
    assert settled(weighs=True) > 0.998 * best
    assert settled(weighs=False) < 0.995 * best


def test_equals_are_worth_one() -> None:
    """A batch of requests like each other is planned for the goodput of the step."""
    assert worth_of(batch_of([0.7] * 5)) == pytest.approx(np.ones(5))


def test_a_token_of_a_hard_request_is_worth_more() -> None:
    """It saves a step that brings little else; the mean stays 1, so that worth is in tokens."""
    worth = worth_of(batch_of([0.9, 0.6, 0.1]))
    assert worth[0] < worth[1] < worth[2]
    assert worth.mean() == pytest.approx(1.0)
