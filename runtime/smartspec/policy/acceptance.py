"""How likely a proposed token is kept: conditional by position, per proposer and verifier, per request.

`rates[j]` is the probability that position j is accepted *given that all before it were*. Positions after the first
rejection are censored: nobody knows what would have become of them, so they are no trials (accepted / drafted, the
usual metric, is biased low in this formula). Evidence fades with the tokens generated, never with the clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.regression import Array
from smartspec.policy.settings import AcceptancePrior
from smartspec.policy.types import Proposer, RequestOutcome, Verifier

MAX_POSITIONS = 32
PROPOSERS: tuple[Proposer, ...] = ("draft", "lookup")
VERIFIERS: tuple[Verifier, ...] = ("coupled", "rejection", "greedy")
MATCH_LENGTHS: tuple[int, ...] = (1, 2, 3, 5, 9)
"""Lower bounds of the classes of prompt lookup's evidence: the number of tokens that matched."""

UNKNOWN_RATE = 0.6
UNKNOWN_WEIGHT = 4.0
"""Acceptance believed of a pair that nobody has tried, in trials."""
POSITION_WEIGHT = 12.0
"""Trials after which a position trusts itself more than the position before it."""
MATCH_WEIGHT = 12.0
"""Trials after which a class of matches trusts itself more than all matches together."""
REQUEST_WEIGHT = 16.0
"""Trials after which a request trusts itself more than its pair."""
PAIR_HALF_LIFE = 1500.0
"""Tokens after which a pair's evidence counts half."""
REQUEST_HALF_LIFE = 96.0
"""Trials after which a request's own evidence counts half."""
LEAST_WEIGHT = 16.0
"""However old, a pair's evidence at a position keeps at most this much weight by standing still: the rate survives a
long silence, and a few probes suffice to turn it."""
MOST_PRIOR_TRIALS = 400.0
"""Trials handed in count as at most this many per position: they were made elsewhere."""


def row_of(proposer: Proposer, verifier: Verifier, match_tokens: int = 0) -> int:
    """Index of the table row that holds this pair's evidence: one per pair for drafts, one per class for lookup."""
    verifier_index = VERIFIERS.index(verifier)
    if proposer == "draft":
        return verifier_index
    match_class = 0
    for index, lower in enumerate(MATCH_LENGTHS):
        if match_tokens >= lower:
            match_class = index
    return len(VERIFIERS) + verifier_index * len(MATCH_LENGTHS) + match_class


NUM_ROWS = len(VERIFIERS) * (1 + len(MATCH_LENGTHS))


@dataclass(slots=True)
class Own:
    """One request's own evidence for one proposer: acceptances beyond what its pair predicted, and trials."""

    excess: float = 0.0
    trials: float = 0.0


class AcceptanceModel:
    """Estimates of acceptance, and the evidence behind them."""

    def __init__(self) -> None:
        self._accepted = np.zeros((NUM_ROWS, MAX_POSITIONS))
        self._trials = np.zeros((NUM_ROWS, MAX_POSITIONS))
        self._own: dict[tuple[str, Proposer], Own] = {}
        self._rates = self._estimate()

    @property
    def rates(self) -> Array:
        """Conditional acceptance [row, position] of the pairs, before any request's own evidence."""
        return self._rates

    def survival(self, rows: Sequence[int], requests: Sequence[str], proposer: Proposer, depth: int) -> Array:
        """Probability [request, position] that a request's first tokens up to that position are all kept."""
        rates = self._rates[np.asarray(rows, dtype=np.intp), :depth]
        shift = np.array([self._shift(request, proposer) for request in requests])
        return np.cumprod(np.clip(rates + shift[:, None], 0.0, 1.0), axis=1)

    def mean_survival(self, verifiers: Sequence[Verifier], depth: int) -> Array:
        """Survival [depth] of a drafted token, averaged over requests verified by *verifiers*."""
        rows = [row_of("draft", verifier) for verifier in verifiers]
        survival: Array = np.cumprod(self._rates[rows, :depth], axis=1).mean(axis=0)
        return survival

    def observe(self, outcomes: Iterable[RequestOutcome], tokens_kept: int) -> None:
        """Learn from one step's proposals; every token kept lets the evidence fade, proposed or not."""
        fade = 0.5 ** (tokens_kept / PAIR_HALF_LIFE)
        # Only what exceeds the least weight fades: a pair that is silent keeps its rate, though not its certainty.
        keep = np.where(
            self._trials > LEAST_WEIGHT, np.maximum(fade, LEAST_WEIGHT / np.maximum(self._trials, 1e-9)), 1.0
        )
        self._accepted *= keep
        self._trials *= keep
        for outcome in outcomes:
            self._learn(outcome)
        self._rates = self._estimate()

    def _learn(self, outcome: RequestOutcome) -> None:
        accepted = min(outcome.num_accepted, outcome.num_drafted, MAX_POSITIONS)
        trials = min(accepted + 1, outcome.num_drafted, MAX_POSITIONS)
        if trials <= 0:
            return
        row = row_of(outcome.proposer, outcome.verifier, outcome.lookup_match_tokens)
        own = self._own.setdefault((outcome.request_id, outcome.proposer), Own())
        fade = 0.5 ** (trials / REQUEST_HALF_LIFE)
        own.excess = own.excess * fade + accepted - float(self._rates[row, :trials].sum())
        own.trials = own.trials * fade + trials
        self._trials[row, :trials] += 1.0
        self._accepted[row, :accepted] += 1.0

    def forget(self, request_id: str) -> None:
        """Drop a finished request's own evidence."""
        for proposer in PROPOSERS:
            self._own.pop((request_id, proposer), None)

    def trials_of(self, request_id: str, proposer: Proposer) -> float:
        """How much own evidence a request has, in trials."""
        own = self._own.get((request_id, proposer))
        return own.trials if own else 0.0

    def _shift(self, request_id: str, proposer: Proposer) -> float:
        own = self._own.get((request_id, proposer))
        return own.excess / (own.trials + REQUEST_WEIGHT) if own else 0.0

    def _estimate(self) -> Array:
        """Rates [row, position]: each position shrunk to the one before, each class of matches to all matches."""
        accepted, trials = self._accepted, self._trials
        drafts, lookups = _pooled(accepted, trials)
        rates = np.empty_like(accepted)
        rates[: len(VERIFIERS)] = drafts
        weight = MATCH_WEIGHT
        prior = np.repeat(lookups, len(MATCH_LENGTHS), axis=0)
        rates[len(VERIFIERS) :] = (accepted[len(VERIFIERS) :] + weight * prior) / (trials[len(VERIFIERS) :] + weight)
        return rates

    def priors(self) -> tuple[AcceptancePrior, ...]:
        """What was learned of every pair that was tried, to hand on; classes of matches are pooled."""
        found: list[AcceptancePrior] = []
        accepted, trials = _pool(self._accepted), _pool(self._trials)
        rates = np.concatenate(_pooled(self._accepted, self._trials))
        pairs = [(proposer, verifier) for proposer in PROPOSERS for verifier in VERIFIERS]
        for index, (proposer, verifier) in enumerate(pairs):
            known = int(np.count_nonzero(trials[index] > 0))
            if known and accepted[index].sum() >= 0:
                found.append(
                    AcceptancePrior(
                        proposer=proposer,
                        verifier=verifier,
                        rates=tuple(float(min(1.0, rate)) for rate in rates[index, :known]),
                        weights=tuple(float(weight) for weight in trials[index, :known]),
                    )
                )
        return tuple(found)

    def adopt(self, priors: Iterable[AcceptancePrior]) -> None:
        """Take evidence in where there is less of it here than handed in; never twice."""
        for prior in priors:
            first = row_of(prior.proposer, prior.verifier)
            rows = range(first, first + (1 if prior.proposer == "draft" else len(MATCH_LENGTHS)))
            for row in rows:
                for position, (rate, weight) in enumerate(zip(prior.rates, prior.weights, strict=False)):
                    if position >= MAX_POSITIONS:
                        break
                    missing = min(weight, MOST_PRIOR_TRIALS) / len(rows) - self._trials[row, position]
                    if missing > 0:
                        self._trials[row, position] += missing
                        self._accepted[row, position] += missing * rate
        self._rates = self._estimate()


def _pool(counts: Array) -> Array:
    """Counts [pair, position], lookup's classes summed: drafts' three verifiers first, then lookup's."""
    lookups = counts[len(VERIFIERS) :].reshape(len(VERIFIERS), len(MATCH_LENGTHS), -1).sum(axis=1)
    return np.concatenate((counts[: len(VERIFIERS)], lookups))


def _pooled(accepted: Array, trials: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rates by pair, each position shrunk to the one before it: (drafts [3, position], lookups [3, position])."""
    accepted, trials = _pool(accepted), _pool(trials)
    rates = np.empty_like(accepted)
    before = (accepted[:, 0] + UNKNOWN_WEIGHT * UNKNOWN_RATE) / (trials[:, 0] + UNKNOWN_WEIGHT)
    rates[:, 0] = before
    for position in range(1, MAX_POSITIONS):
        before = (accepted[:, position] + POSITION_WEIGHT * before) / (trials[:, position] + POSITION_WEIGHT)
        rates[:, position] = before
    return rates[: len(VERIFIERS)], rates[len(VERIFIERS) :]
