"""How likely a proposed token is kept: conditional by position, per proposer and verifier, per request.

`rates[j]` is the probability that position j is accepted *given that all before it were*. Positions after the first
rejection are censored: nobody knows what would have become of them, so they are no trials (accepted / drafted, the
usual metric, is biased low in this formula). Evidence fades with the tokens generated, never with the clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from smartspec.policy.regression import Array
from smartspec.policy.settings import AcceptancePrior
from smartspec.policy.types import Proposer, RequestOutcome, Verifier

MAX_POSITIONS = 32
PROPOSERS: tuple[Proposer, ...] = ("draft", "lookup")
VERIFIERS: tuple[Verifier, ...] = ("coupled", "rejection", "greedy")
MATCH_LENGTHS: tuple[int, ...] = (1, 2, 3, 5, 9)
"""Lower bounds of the classes of prompt lookup's evidence: the number of tokens that matched."""
NUM_PAIRS = len(VERIFIERS)
NUM_ROWS = NUM_PAIRS * (1 + len(MATCH_LENGTHS))

UNKNOWN_RATE = 0.6
UNKNOWN_WEIGHT = 4.0
"""Acceptance believed of a pair that nobody has tried, in trials."""
POSITION_WEIGHT = 12.0
"""Trials after which a position trusts itself more than the position before it."""
MATCH_WEIGHT = 12.0
"""Trials after which a class of matches trusts itself more than all matches together."""
PAIR_HALF_LIFE = 1500.0
"""Tokens after which a pair's evidence counts half."""
REQUEST_HALF_LIFE = 96.0
"""Trials after which a request's own evidence counts half."""
LEAST_WEIGHT = 16.0
"""Standing still, a pair's evidence at a position fades no further than this: its rate survives a long silence, and
a few probes suffice to turn it."""
MOST_PRIOR_TRIALS = 400.0
"""Trials handed in count as at most this many per position: they were made elsewhere."""
BETWEEN_REQUESTS = 0.12
"""Standard deviation of acceptance between requests, as believed before any has finished."""
BETWEEN_FINISHED = 40.0
"""The spread between requests is a mean over about this many finished ones."""


def row_of(proposer: Proposer, verifier: Verifier, match_tokens: int = 0) -> int:
    """Index of the table row that holds this pair's evidence: one per pair for drafts, one per class for lookup."""
    pair = VERIFIERS.index(verifier)
    if proposer == "draft":
        return pair
    match_class = sum(match_tokens >= lower for lower in MATCH_LENGTHS[1:])
    return NUM_PAIRS + pair * len(MATCH_LENGTHS) + match_class


@dataclass(slots=True)
class Own:
    """One request's own evidence for one proposer: acceptances beyond what its pair predicted, and the trials; what
    their sum would vary by chance alone; and the step it was last tried in."""

    excess: float = 0.0
    trials: float = 0.0
    chance: float = 0.0
    last_tried: int = -1


class AcceptanceModel:
    """Estimates of acceptance, and the evidence behind them."""

    def __init__(self) -> None:
        self._accepted = np.zeros((NUM_ROWS, MAX_POSITIONS))
        self._trials = np.zeros((NUM_ROWS, MAX_POSITIONS))
        self._own: dict[tuple[str, Proposer], Own] = {}
        self._between = BETWEEN_REQUESTS**2
        self.step = 0
        self._rates = self._estimate()

    @property
    def rates(self) -> Array:
        """Conditional acceptance [row, position] of the pairs, before any request's own evidence."""
        return self._rates

    @property
    def spread(self) -> float:
        """Standard deviation of acceptance between requests."""
        return float(self._between**0.5)

    def pooled(self, rows: Sequence[int], depth: int) -> Array:
        """Survival [row, depth] by one acceptance rate per proposer and verifier, as the paper has it."""
        kept, tried = _pool(self._accepted).sum(axis=1), _pool(self._trials).sum(axis=1)
        rate = (kept + UNKNOWN_WEIGHT * UNKNOWN_RATE) / (tried + UNKNOWN_WEIGHT)
        pairs = [row if row < NUM_PAIRS else NUM_PAIRS + (row - NUM_PAIRS) // len(MATCH_LENGTHS) for row in rows]
        survival: Array = rate[pairs][:, None] ** np.arange(1, depth + 1)
        return survival

    def survival(self, rows: Sequence[int], requests: Sequence[str], proposer: Proposer, depth: int) -> Array:
        """Probability [request, position] that a request's first tokens up to that position are all kept."""
        get, between = self._own.get, self._between
        owns = [get((request, proposer)) for request in requests]
        # Empirical Bayes: the more requests differ beyond chance, the sooner each one trusts itself.
        weight = 0.2 / between
        shift = np.array([own.excess / (own.trials + weight) if own else 0.0 for own in owns])
        rates = self._rates[np.asarray(rows, dtype=np.intp), :depth] + shift[:, None]
        return np.cumprod(np.minimum(np.maximum(rates, 0.0), 1.0), axis=1)

    def mean_survival(self, verifiers: Sequence[Verifier], depth: int, *, below: float = 0.0) -> Array:
        """Survival [depth] of a drafted token, averaged over *verifiers*, for a request that fares worse than its
        pair by *below* standard deviations between requests."""
        rates = self._rates[[row_of("draft", verifier) for verifier in verifiers], :depth] - below * self.spread
        survival: Array = np.cumprod(np.clip(rates, 0.0, 1.0), axis=1).mean(axis=0)
        return survival

    def observe(self, outcomes: Iterable[RequestOutcome], tokens_kept: int) -> None:
        """Learn from one step's proposals; every token kept lets the evidence fade, proposed or not."""
        self.step += 1
        fade = 0.5 ** (tokens_kept / PAIR_HALF_LIFE)
        fades = self._trials > LEAST_WEIGHT
        keep = np.where(fades, np.maximum(fade, LEAST_WEIGHT / np.maximum(self._trials, LEAST_WEIGHT)), 1.0)
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
        expected = self._rates[row, :trials].tolist()
        own = self._own.setdefault((outcome.request_id, outcome.proposer), Own())
        fade = 0.5 ** (trials / REQUEST_HALF_LIFE)
        own.excess = own.excess * fade + accepted - sum(expected)
        own.trials = own.trials * fade + trials
        own.chance = own.chance * fade * fade + sum(rate * (1.0 - rate) for rate in expected)
        own.last_tried = self.step
        self._trials[row, :trials] += 1.0
        self._accepted[row, :accepted] += 1.0

    def forget(self, request_id: str) -> None:
        """Drop a finished request's own evidence, learning from it how much requests differ."""
        for proposer in PROPOSERS:
            own = self._own.pop((request_id, proposer), None)
            if own and own.trials >= 8.0:
                beyond = (own.excess**2 - own.chance) / own.trials**2
                between = self._between + (beyond - self._between) / BETWEEN_FINISHED
                self._between = min(max(between, 0.05**2), 0.25**2)

    def last_tried(self, request_id: str, proposer: Proposer) -> int:
        """The step in which *proposer* was last tried for a request, -1 where it never was."""
        own = self._own.get((request_id, proposer))
        return own.last_tried if own else -1

    def _estimate(self) -> Array:
        """Rates [row, position]: each position shrunk to the one before, each class of matches to all matches."""
        accepted, trials = _pool(self._accepted), _pool(self._trials)
        known = int(np.count_nonzero(trials.any(axis=0)))
        rates = np.empty_like(self._trials)
        pooled = np.empty_like(trials)
        before = (accepted[:, 0] + UNKNOWN_WEIGHT * UNKNOWN_RATE) / (trials[:, 0] + UNKNOWN_WEIGHT)
        pooled[:, 0] = before
        for position in range(1, known):
            before = (accepted[:, position] + POSITION_WEIGHT * before) / (trials[:, position] + POSITION_WEIGHT)
            pooled[:, position] = before
        pooled[:, max(1, known) :] = before[:, None]
        rates[:NUM_PAIRS] = pooled[:NUM_PAIRS]
        all_matches = np.repeat(pooled[NUM_PAIRS:], len(MATCH_LENGTHS), axis=0)
        own_trials = self._trials[NUM_PAIRS:]
        rates[NUM_PAIRS:] = (self._accepted[NUM_PAIRS:] + MATCH_WEIGHT * all_matches) / (own_trials + MATCH_WEIGHT)
        return rates

    def priors(self) -> tuple[AcceptancePrior, ...]:
        """What was learned of every pair that was tried, to hand on; classes of matches are pooled."""
        found: list[AcceptancePrior] = []
        accepted, trials = _pool(self._accepted), _pool(self._trials)
        pairs = [(proposer, verifier) for proposer in PROPOSERS for verifier in VERIFIERS]
        for (proposer, verifier), kept, tried in zip(pairs, accepted, trials, strict=True):
            known = int(np.count_nonzero(tried))
            if known:
                rates = np.clip(kept[:known] / tried[:known], 0.0, 1.0)
                found.append(AcceptancePrior(proposer, verifier, tuple(rates.tolist()), tuple(tried[:known].tolist())))
        return tuple(found)

    def adopt(self, priors: Iterable[AcceptancePrior]) -> None:
        """Take evidence in where there is less of it here than handed in, so that none of it counts twice."""
        for prior in priors:
            first = row_of(prior.proposer, prior.verifier)
            count = 1 if prior.proposer == "draft" else len(MATCH_LENGTHS)
            given = list(zip(prior.rates, prior.weights, strict=False))[:MAX_POSITIONS]
            for row in range(first, first + count):
                for position, (rate, weight) in enumerate(given):
                    missing = min(weight, MOST_PRIOR_TRIALS) / count - self._trials[row, position]
                    if missing > 0:
                        self._trials[row, position] += missing
                        self._accepted[row, position] += missing * rate
        self._rates = self._estimate()

    def table(self) -> list[dict[str, object]]:
        """Every pair and class of matches with evidence, as JSON-ready rows."""
        found: list[dict[str, object]] = []
        for proposer in PROPOSERS:
            for verifier in VERIFIERS:
                for match in (0,) if proposer == "draft" else MATCH_LENGTHS:
                    row = row_of(proposer, verifier, match)
                    known = int(np.count_nonzero(self._trials[row]))
                    if known:
                        found.append(
                            {
                                "proposer": proposer,
                                "verifier": verifier,
                                "match_tokens": match or None,
                                "rates": [round(rate, 4) for rate in self._rates[row, :known].tolist()],
                                "trials": [round(weight, 1) for weight in self._trials[row, :known].tolist()],
                            }
                        )
        return found


def _pool(counts: Array) -> Array:
    """Counts [pair, position], the classes of matches summed: drafts' verifiers first, then lookup's."""
    lookups = counts[NUM_PAIRS:].reshape(NUM_PAIRS, len(MATCH_LENGTHS), -1).sum(axis=1)
    return np.concatenate((counts[:NUM_PAIRS], lookups))
