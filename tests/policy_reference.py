"""The policy's compiled loops once more, in plain numpy: slow, vectorised the other way, and short enough to check."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smartspec.policy import acceptance, chances, kalman, own_evidence, worth
from smartspec.policy.costs import Costs
from smartspec.policy.goodput import Plan, Problem
from smartspec.policy.regression import WIDEST_APART, WIDEST_TOGETHER, Array
from smartspec.policy.scan import FEW_TORN, GOOD_GUESS, scan
from smartspec.policy.types import RequestOutcome


class Filter:
    """One step of the Kalman filter, by matrices: `mean` [d], `covariance` [d, d], and the rest of `Coefficients`."""

    def __init__(self, mean: Array, covariance: Array, scale: Array, kinship: Array, noise: float, streak: int) -> None:
        self.mean, self.covariance = mean.copy(), covariance.copy()
        self.scale, self.kinship, self.noise, self.streak = scale, kinship, noise, streak

    def spread(self, together: float, apart: float) -> Array:
        """Covariance of coefficients known to these relative standard deviations."""
        alone = apart * (self.mean + self.scale)
        return np.outer(alone, alone) * self.kinship + together**2 * np.outer(self.mean, self.mean)

    def learn(self, features: Array, seconds: float) -> float:
        """Learn that *features* took *seconds*; returns what had been predicted."""
        self.covariance += self.spread(kalman.DRIFT_TOGETHER, kalman.DRIFT_APART)
        widest = (WIDEST_TOGETHER * self.mean) ** 2 + (WIDEST_APART * (self.mean + self.scale)) ** 2
        shrink = np.minimum(1.0, np.sqrt(widest / self.covariance.diagonal()))
        self.covariance *= np.outer(shrink, shrink)
        expected = max(float(features @ self.mean), 1e-9)
        variance = float(features @ self.covariance @ features) + (self.noise * expected) ** 2
        residual, sigma = seconds - expected, math.sqrt(variance)
        bound = kalman.HUBER_SIGMAS * sigma
        if residual > 0:
            bound = min(bound, kalman.MOST_SURPRISE * expected)
        clipped = float(np.clip(residual, -bound, bound))
        if clipped == residual:
            self.streak = 0
        else:
            sign = 1 if residual > 0 else -1
            self.streak = self.streak + sign if self.streak * sign >= 0 else sign
            if abs(self.streak) >= kalman.SHIFT_STEPS or residual < -kalman.IMPOSSIBLE_SIGMAS * sigma:
                change = min(abs(residual) / expected, 10.0)
                self.covariance += self.spread(change, 0.3 * change)
                variance = float(features @ self.covariance @ features) + (self.noise * expected) ** 2
                clipped = residual
        along = self.covariance @ features
        trust = clipped / residual if residual else 1.0
        self.mean += along / variance * clipped
        self.covariance -= trust * np.outer(along, along) / variance
        for _ in range(4):
            lowest = int(self.mean.argmin())
            if self.mean[lowest] < 0:
                column = self.covariance[:, lowest]
                self.mean -= column * self.mean[lowest] / max(column[lowest], 1e-30)
                self.mean[lowest] = 0.0
        self.mean = np.maximum(self.mean, 0.0)
        relative = min(abs(residual), bound) / expected
        noise = math.sqrt(self.noise**2 + kalman.NOISE_SHARE * (relative**2 - self.noise**2))
        self.noise = max(kalman.SMALLEST_NOISE, noise)
        return expected


class Evidence:
    """What `AcceptanceModel` knows, as tables of the pairs [row, position] and a dictionary of the requests."""

    def __init__(self) -> None:
        shape = chances.NUM_ROWS, chances.MAX_POSITIONS
        self.accepted, self.trials = np.zeros(shape), np.zeros(shape)
        self.own: dict[tuple[str, str], Array] = {}

    def observe(self, outcomes: Sequence[RequestOutcome], tokens_kept: int) -> None:
        """Learn from one step's proposals."""
        rates = self.rates()
        for outcome in outcomes:
            self._own(outcome, rates)
        fade, least = 0.5 ** (tokens_kept / acceptance.PAIR_HALF_LIFE), chances.LEAST_WEIGHT
        keep = np.where(self.trials > least, np.maximum(fade, least / np.maximum(self.trials, least)), 1.0)
        self.accepted *= keep
        self.trials *= keep
        for outcome in outcomes:
            row = acceptance.row_of(outcome.proposer, outcome.verifier, outcome.lookup_match_tokens)
            self.trials[row, : min(outcome.num_accepted + 1, outcome.num_drafted)] += 1
            self.accepted[row, : outcome.num_accepted] += 1

    def _own(self, outcome: RequestOutcome, rates: Array) -> None:
        """`own[request, proposer]` is excess, trials and chance."""
        row = acceptance.row_of(outcome.proposer, outcome.verifier, outcome.lookup_match_tokens)
        trials = min(outcome.num_accepted + 1, outcome.num_drafted)
        expected = rates[row, :trials]
        fade = 0.5 ** (trials / own_evidence.HALF_LIFE_TRIALS)
        news = outcome.num_accepted - expected.sum(), trials, (expected * (1 - expected)).sum()
        key = outcome.request_id, outcome.proposer
        self.own[key] = self.own.get(key, np.zeros(3)) * (fade, fade, fade * fade) + news

    def rates(self) -> Array:
        """Conditional acceptance [row, position]."""
        groups = [[row] for row in range(chances.NUM_PAIRS)]
        classes = len(chances.MATCH_LENGTHS)
        groups += [list(range(f, f + classes)) for f in range(chances.NUM_PAIRS, chances.NUM_ROWS, classes)]
        known = int(np.count_nonzero(self.trials.any(axis=0)))
        found = np.empty_like(self.trials)
        for group in groups:
            accepted, trials = self.accepted[group].sum(axis=0), self.trials[group].sum(axis=0)
            rates = [(accepted[0] + chances.UNKNOWN_WEIGHT * chances.UNKNOWN_RATE)
                     / (trials[0] + chances.UNKNOWN_WEIGHT)]  # fmt: skip
            for kept, tried in zip(accepted[1:known], trials[1:known], strict=True):
                rates.append((kept + chances.POSITION_WEIGHT * rates[-1]) / (tried + chances.POSITION_WEIGHT))
            found[group] = np.array(rates + rates[-1:] * (chances.MAX_POSITIONS - len(rates)))
        weight, lookups = chances.MATCH_WEIGHT, slice(chances.NUM_PAIRS, None)
        found[lookups] = (self.accepted[lookups] + weight * found[lookups]) / (self.trials[lookups] + weight)
        return found

    def survival(self, proposer: str, row: int, request: str, between: float, cap: int, depth: int) -> Array:
        """Chances [depth] of one request where the variance between requests is *between*."""
        excess, trials, _ = self.own.get((request, proposer), np.zeros(3))
        shift = excess / (trials + own_evidence.TRIAL_VARIANCE / between)
        survival = np.cumprod(np.clip(self.rates()[row, :depth] + shift, 0.0, 1.0))
        return np.where(np.arange(depth) < cap, np.maximum(survival, chances.SMALLEST_CHANCE), 0.0)


def long_run_worth(draft: Array, lookup: Array, costs: Costs) -> Array:
    """`worth.long_run_worth`."""
    num, depth = draft.shape
    nodes = worth.TYPICAL_NODES * num
    share = max(costs.target[0] - costs.sunk, 1e-9) / num
    row = max(0.0, costs.target[nodes] - costs.target[0]) / nodes
    forward = np.interp(num, *costs.draft) / num
    lengths = np.arange(depth + 1)
    each = [
        (share + price * lengths) / np.cumsum(np.c_[np.ones(num), chances], axis=1)
        for chances, price in ((draft, row + forward), (lookup, row))
    ]
    found = np.minimum(*(seconds.min(axis=1) for seconds in each))
    return np.asarray(found / found.mean())


def evaluate(problem: Problem, costs: Costs, lengths: NDArray[np.intp], uses_draft: NDArray[np.bool_]) -> list[float]:
    """Tokens, worth, seconds, goodput and TPOT of a plan."""
    chances = np.where(uses_draft[:, None], problem.draft, problem.lookup)
    depths = np.arange(1, chances.shape[1] + 1)
    tokens = 1.0 + np.where(depths <= lengths[:, None], chances, 0.0).sum(axis=1)
    drafts = np.where(uses_draft, lengths, 0)
    seconds = costs.target[lengths.sum()] + costs.draft_context * (problem.context * drafts).sum()
    for depth in range(1, drafts.max(initial=0) + 1):
        rows = problem.first_rows[drafts > 0].sum() if depth == 1 else (drafts >= depth).sum()
        seconds += np.interp(rows, *costs.draft)
    total = (tokens * problem.worth).sum()
    return [tokens.sum(), total, seconds, total / (seconds - costs.sunk), seconds / tokens.min()]


def optimise(problem: Problem, costs: Costs, *, rate: float, margin: float, drafting: bool) -> Plan:
    """`goodput.optimise`, list by list."""
    target = math.inf if problem.tpot_target_seconds is None else problem.tpot_target_seconds
    rows = np.arange(max(len(problem.draft), math.ceil(problem.first_rows.sum())) + 2)
    forwards = np.where(rows > 0, np.interp(rows, *costs.draft), 0.0)
    nodes = costs.target[: problem.most_nodes + 1]

    def plans(guess: float) -> list[Plan]:
        found = []
        for drafted in _assignments(problem, costs, nodes, forwards, guess):
            lengths, figures = scan(
                np.where(drafted[:, None], problem.draft, problem.lookup), problem.worth, drafted, problem.forced,
                problem.first_rows, problem.context, nodes, forwards, costs.draft_context, costs.sunk, target, guess,
            )  # fmt: skip
            for k, figure in zip(lengths, figures.tolist(), strict=True):
                if figure[3] >= 0:
                    found.append(Plan(k, drafted & (k > 0), int(k.sum()), *figure))
        return found

    def best(plans: list[Plan]) -> Plan | None:
        within = [plan for plan in plans if plan.tpot_seconds <= target]
        if within:
            return max(within, key=lambda plan: plan.goodput)
        return min(plans, key=lambda plan: plan.tpot_seconds, default=None)

    found = plans(rate)
    reached = max(plan.goodput for plan in found)
    costs_differ = problem.first_rows.max() > 2 or costs.draft_context > 0 or (problem.lookup > 0).any()
    if costs_differ and not 1 / GOOD_GUESS < reached / rate < GOOD_GUESS:
        found += plans(reached)
    kinds = [best([plan for plan in found if plan.uses_draft.any() == kind]) for kind in (drafting, not drafting)]
    stay, leave = kinds
    if stay is None or leave is None:
        chosen = stay or leave
    elif max(stay.tpot_seconds, leave.tpot_seconds) > target:
        chosen = best([stay, leave])
    else:
        chosen = leave if leave.goodput > stay.goodput * (1 + margin) else stay
    assert chosen is not None
    return chosen


def _assignments(problem: Problem, costs: Costs, nodes: Array, forwards: Array, rate: float) -> list[NDArray[np.bool_]]:
    """Ways to give each request one proposer."""
    can_draft, can_copy = problem.draft[:, 0] > 0, problem.lookup[:, 0] > 0
    torn = np.flatnonzero(can_draft & can_copy)
    if not (can_draft.any() and can_copy.any()):
        return [can_draft]
    if len(torn) <= FEW_TORN:
        ways = []
        for bits in itertools.product((False, True), repeat=len(torn)):
            ways.append(can_draft.copy())
            ways[-1][torn] = bits
        return ways
    num = len(can_draft)
    most = min(len(nodes) - 1, 4 * num)
    slope, row = (nodes[most] - nodes[0]) / max(1, most), (forwards[num + 1] - forwards[1]) / num
    price = slope + row + costs.draft_context * problem.context

    def value(chances: Array, price: Array) -> Array:
        return np.cumsum(chances * problem.worth[:, None] - rate * price[:, None], axis=1).max(axis=1)

    by_draft = value(problem.draft, price) - rate * row * (problem.first_rows - 1)
    by_lookup = value(problem.lookup, np.full(num, slope))
    by_value = can_draft & ~(can_copy & (by_lookup >= by_draft))
    return [by_value, by_value & (problem.forced > 0)]
