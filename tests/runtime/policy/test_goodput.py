"""The optimiser against brute force, and its tables: (load, acceptance, time model) -> k."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartspec.policy.costs import Costs
from smartspec.policy.goodput import Plan, Problem, optimise
from smartspec.policy.uniform import evaluate

# Forward times over tokens with stairs; the last one even drops, as measured ones do.
CURVES = (
    lambda tokens: 0.02 + 0.0008 * tokens,
    lambda tokens: 0.02 + 0.006 * np.ceil(tokens / 4),
    lambda tokens: np.interp(tokens, [1, 4, 8, 16, 32, 64], [0.024, 0.027, 0.036, 0.034, 0.052, 0.067]),
    lambda tokens: np.maximum(0.02, 0.002 * tokens),
)


NODES = np.arange(513)
"""What costs are tabulated for: as many nodes as any batch here may have."""


def line(first: float, row: float = 0.0) -> np.ndarray:
    """A draft forward of *first* seconds for one row and *row* for each further one."""
    return np.array([[1.0, 2.0], [first, first + row]])


def costs(curve: int, requests: int, forward: float, row: float = 0.0, *, draft_context: float = 0.0) -> Costs:
    """A step of *requests* on one of `CURVES`, with a draft whose forwards take *forward* plus *row* per row."""
    return Costs(target=CURVES[curve](NODES + requests), draft=line(forward + row, row), draft_context=draft_context)


def problem(
    draft: list[list[float]],
    *,
    lookup: list[list[float]] | None = None,
    rows: list[float] | None = None,
    forced: list[int] | None = None,
    worth: list[float] | None = None,
    max_nodes: int = 1 << 20,
    target: float | None = None,
) -> Problem:
    """Requests by their *conditional* rates per position and proposer."""
    chances = np.cumprod(np.array(draft), axis=1)
    copies = np.zeros_like(chances) if lookup is None else np.cumprod(np.array(lookup), axis=1)
    num = len(chances)
    return Problem(
        draft=chances,
        lookup=copies,
        first_rows=np.ones(num) if rows is None else np.array(rows),
        context=np.full(num, 100.0),
        forced=np.full(num, -1, dtype=np.intp) if forced is None else np.array(forced, dtype=np.intp),
        worth=np.ones(num) if worth is None else np.array(worth),
        max_nodes=max_nodes,
        tpot_target_seconds=target,
    )


def brute_force(given_problem: Problem, given_costs: Costs) -> Plan:
    """The best of every length and proposer for every request."""
    depth = given_problem.draft.shape[1]
    options = []
    for draft, lookup, forced in zip(given_problem.draft, given_problem.lookup, given_problem.forced, strict=True):
        lengths = range(depth + 1) if forced < 0 else [forced]
        kinds = [True] * bool(draft[0] > 0) + [False] * bool(lookup[0] > 0)
        found = [(k, kind) for kind in kinds for k in lengths if k and (draft if kind else lookup)[k - 1] > 0]
        options.append(found + ([(0, False)] if forced <= 0 else []))
    plans = []
    for choice in itertools.product(*options):
        lengths, kinds = np.array([c[0] for c in choice]), np.array([c[1] for c in choice])
        if lengths.sum() <= given_problem.max_nodes:
            plans.append(evaluate(given_problem, given_costs, lengths, kinds))
    target = given_problem.tpot_target_seconds
    within = [p for p in plans if target is None or p.tpot_seconds <= target]
    return max(within, key=lambda p: p.goodput) if within else min(plans, key=lambda p: p.tpot_seconds)


RATES = st.lists(st.floats(0.02, 1.0), min_size=4, max_size=4)
BATCH = st.lists(RATES, min_size=1, max_size=4)
WORTH = st.lists(st.floats(0.3, 3.0), min_size=4, max_size=4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rates=BATCH, curve=st.integers(0, 3), forward=st.floats(0.0, 0.01), worth=WORTH)
def test_plans_are_exact_where_nodes_cost_alike(
    rates: list[list[float]], curve: int, forward: float, worth: list[float]
) -> None:
    """With stairs in the target's time, a draft paid by the forward, and tokens of some requests worth more than those
    of others, no plan is better, to the last digit."""
    given_problem, given_costs = problem(rates, worth=worth[: len(rates)]), costs(curve, len(rates), forward)
    found = optimise(given_problem, given_costs, rate=50.0)
    assert found.goodput == pytest.approx(brute_force(given_problem, given_costs).goodput, rel=1e-7)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rates=BATCH, curve=st.integers(0, 3), forward=st.floats(0.0, 0.01), room=st.integers(0, 6))
def test_plans_are_exact_within_a_node_budget(rates: list[list[float]], curve: int, forward: float, room: int) -> None:
    """A bound on the nodes of the step is kept and used best."""
    given_problem, given_costs = problem(rates, max_nodes=room), costs(curve, len(rates), forward)
    found = optimise(given_problem, given_costs, rate=50.0)
    assert found.num_tokens.sum() <= room
    assert found.goodput == pytest.approx(brute_force(given_problem, given_costs).goodput, rel=1e-7)


def test_plans_are_near_the_best_where_costs_differ() -> None:
    """Mixed proposers, catch-up and rows with a price: of 300 random batches nearly all are planned exactly, and none
    falls far short of the best of all combinations."""
    random = np.random.default_rng(5)
    shares = []
    for _ in range(300):
        num = int(random.integers(1, 5))
        rates, copies = random.uniform(0.02, 1.0, (2, num, 4))
        copies *= random.random((num, 1)) < 0.5
        lags = random.choice([1.0, 2.0, 5.0, 60.0], num)
        given_problem = problem(rates.tolist(), lookup=copies.tolist(), rows=lags.tolist())
        given_costs = costs(
            int(random.integers(4)),
            num,
            float(random.uniform(0.0002, 0.01)),
            float(random.uniform(0.0, 0.0004)),
            draft_context=1e-6,
        )
        found = optimise(given_problem, given_costs, rate=50.0)
        again = evaluate(given_problem, given_costs, found.num_tokens, found.uses_draft)
        assert found.goodput == pytest.approx(again.goodput), "the scan and the plan's own price must agree"
        shares.append(found.goodput / brute_force(given_problem, given_costs).goodput)
    assert np.mean(np.array(shares) > 1 - 1e-7) > 0.95
    assert np.mean(shares) > 0.999
    assert min(shares) > 0.95


@settings(max_examples=80, deadline=None, derandomize=True)
@given(rates=BATCH, curve=st.integers(0, 3), forward=st.floats(0.0, 0.005), target=st.floats(0.005, 0.06))
def test_a_plan_within_the_target_is_found_where_one_of_the_sorted_is(
    rates: list[list[float]], curve: int, forward: float, target: float
) -> None:
    """The TPOT target is kept when plain decoding keeps it, and the reported TPOT is that of the slowest request."""
    given_problem, given_costs = problem(rates, target=target), costs(curve, len(rates), forward)
    found = optimise(given_problem, given_costs, rate=50.0)
    again = evaluate(given_problem, given_costs, found.num_tokens, found.uses_draft)
    assert found.tpot_seconds == pytest.approx(again.tpot_seconds)
    plain = evaluate(given_problem, given_costs, np.zeros(len(rates), dtype=np.intp), np.zeros(len(rates), dtype=bool))
    assert found.tpot_seconds <= max(target, plain.tpot_seconds) * (1 + 1e-9)


def test_speculation_may_keep_a_target_that_plain_decoding_breaks() -> None:
    """30 ms a step is 30 ms a token without speculation, and less with it: the bound is on the token."""
    given_costs = costs(0, 1, 0.001)
    found = optimise(problem([[0.9] * 4], target=0.012), given_costs, rate=50.0)
    assert found.num_tokens[0] > 0
    assert found.tpot_seconds <= 0.012


def test_the_target_comes_before_goodput() -> None:
    """Where the plan of most goodput makes the unlucky request's tokens too slow, a slower one that does not is taken:
    the target holds for every request, not for their mean."""
    rates, none = [[0.95] * 4, [0.05] * 4], [[0.0] * 4] * 2
    given_costs = costs(0, 2, 0.0)
    free = optimise(problem(none, lookup=rates), given_costs, rate=50.0)
    slowest = evaluate(problem(none, lookup=rates), given_costs, free.num_tokens, free.uses_draft).tpot_seconds
    bound = optimise(problem(none, lookup=rates, target=0.95 * slowest), given_costs, rate=50.0)
    assert bound.tpot_seconds <= 0.95 * slowest
    assert 0 < bound.num_tokens.sum() < free.num_tokens.sum()


@pytest.mark.parametrize(
    ("acceptance", "requests", "curve", "forward", "expected"),
    [
        (0.0, 1, 0, 0.001, 0),  # nothing is ever kept
        (1.0, 1, 0, 0.001, 8),  # everything is, and costs less than a plain step
        (1.0, 1, 0, 0.03, 0),  # everything is kept, yet the draft is slower than the target
        (0.7, 1, 0, 0.001, 4),
        (0.7, 8, 0, 0.001, 2),
        (0.7, 24, 0, 0.001, 1),
        (0.7, 64, 3, 0.001, 0),  # compute-bound: every token costs its full price
        (1.0, 64, 3, 0.001, 0),
    ],
)
def test_table(acceptance: float, requests: int, curve: int, forward: float, expected: int) -> None:
    """Load, acceptance and time model decide k, and say 0 where speculation cannot pay."""
    found = optimise(problem([[acceptance] * 8] * requests), costs(curve, requests, forward), rate=50.0)
    assert round(float(found.num_tokens.mean())) == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(low=st.floats(0.0, 1.0), high=st.floats(0.0, 1.0), requests=st.integers(1, 12), curve=st.sampled_from([0, 3]))
def test_k_rises_with_acceptance(low: float, high: float, requests: int, curve: int) -> None:
    """On a convex time model, a batch that is accepted more speculates no less, and its goodput is no worse."""
    low, high = sorted((low, high))
    given_costs = costs(curve, requests, 0.001)
    less, more = (optimise(problem([[a] * 6] * requests), given_costs, rate=50.0) for a in (low, high))
    assert more.num_tokens.sum() >= less.num_tokens.sum()
    assert more.goodput >= less.goodput * (1 - 1e-9)


def test_stairs_are_searched_to_their_end() -> None:
    """Where the first speculative token opens a new stair and the next three are free, all four are taken."""
    given_costs = Costs(target=0.02 + 0.012 * np.ceil(NODES / 4), draft=line(0.0))
    chances = [[0.55, 0.95, 0.95, 0.95]]
    alone = evaluate(problem(chances), given_costs, np.array([1]), np.array([True]))
    plain = evaluate(problem(chances), given_costs, np.array([0]), np.array([False]))
    assert alone.goodput < plain.goodput
    assert optimise(problem(chances), given_costs, rate=50.0).num_tokens.tolist() == [4]


def test_the_better_proposer_is_taken_per_request() -> None:
    """One request copies its prompt, the other is drafted for."""
    found = optimise(problem([[0.3] * 4, [0.9] * 4], lookup=[[0.95] * 4, [0.1] * 4]), costs(0, 2, 0.002), rate=50.0)
    assert found.uses_draft.tolist() == [False, True]
    assert (found.num_tokens > 0).all()


def test_a_long_catch_up_is_priced_in() -> None:
    """The same request is drafted for when the draft is up to date, and not when it must be fed much first."""
    given_costs = costs(0, 1, 0.001, row=0.0005)
    ready = optimise(problem([[0.6] * 4], rows=[1.0]), given_costs, rate=50.0)
    behind = optimise(problem([[0.6] * 4], rows=[80.0]), given_costs, rate=50.0)
    assert (ready.num_tokens[0] > 0, behind.num_tokens[0]) == (True, 0)


def test_a_request_may_insist_or_decline() -> None:
    """A fixed request gets its tokens, an off one gets none, whatever goodput says of them."""
    found = optimise(problem([[0.05] * 4, [0.99] * 4, [0.9] * 4], forced=[3, 0, -1]), costs(0, 3, 0.001), rate=50.0)
    assert found.num_tokens[:2].tolist() == [3, 0]
    assert found.num_tokens[2] > 0


def test_who_insists_drafts_where_others_had_better_copy() -> None:
    """Where nobody who is free had better draft, one who asked for a length and has nothing to copy still does."""
    drafts, copies = [[0.05] * 4, *[[0.9] * 4] * 2, *[[0.6] * 4] * 4], [[0.0] * 4, *[[0.88] * 4] * 6]
    given_problem = problem(drafts, lookup=copies, forced=[3, *[-1] * 6])
    found = optimise(given_problem, costs(0, 7, 0.012), rate=200.0)
    assert (found.num_tokens[0], found.uses_draft[0]) == (3, True)


def test_prefill_in_the_step_is_no_reason_to_speculate() -> None:
    """A long step is sunk cost: unlikely tokens are not taken along because they are a small share of it."""
    rates = [[0.1] * 4]
    decode = Costs(target=0.02 + 0.004 * NODES, draft=line(0.0))
    mixed = Costs(target=0.42 + 0.004 * NODES, draft=line(0.0), sunk=0.4)
    assert optimise(problem(rates), decode, rate=50.0).num_tokens.sum() == 0
    assert optimise(problem(rates), mixed, rate=50.0).num_tokens.sum() == 0


@pytest.mark.parametrize(("drafting", "expected"), [(True, True), (False, False)])
def test_switching_needs_a_margin(drafting: bool, expected: bool) -> None:
    """With gains smaller than the margin the policy stays as it is: drafting, or not."""
    given_costs = costs(0, 1, 0.0)
    slope = 0.0008 / (0.02 + 0.0008)  # at this acceptance one token just pays for itself
    found = optimise(problem([[slope * 1.05]]), given_costs, rate=50.0, margin=0.02, drafting=drafting)
    assert bool(found.num_tokens.any()) is expected
