"""How likely a proposed token is kept: conditional by position, per proposer and verifier, per request.

`rates[j]` is the probability that position j is accepted *given that all before it were*. Positions after the first
rejection are censored: nobody knows what would have become of them, so they are no trials (accepted / drafted, the
usual metric, is biased low in this formula). Evidence fades with the tokens generated, never with the clock.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from msgspec.structs import astuple
from numba import njit

from smartspec.policy.own_evidence import NOBODY, PROPOSERS, OwnEvidence
from smartspec.policy.regression import Array, Ints
from smartspec.policy.settings import AcceptancePrior
from smartspec.policy.types import Proposer, RequestOutcome, Verifier

MAX_POSITIONS = 32
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
PAIR_HALF_LIFE = 500.0
"""Tokens after which a pair's evidence counts half."""
LEAST_WEIGHT = 16.0
"""Standing still, a pair's evidence at a position fades no further than this: its rate survives a long silence, and
a few probes suffice to turn it."""
SMALLEST_CHANCE = 1e-12
"""No position that may be speculated is quite without a chance: 0 says that there is nothing to be had."""
MOST_PRIOR_TRIALS = 400.0
"""Trials handed in count as at most this many per position: they were made elsewhere."""

DRAFT, LOOKUP = range(len(PROPOSERS))
"""Proposers and verifiers as numbers, for compiled loops: places in `PROPOSERS` and `VERIFIERS`."""
VERIFIER = {verifier: index for index, verifier in enumerate(VERIFIERS)}
_PROPOSER = {proposer: index for index, proposer in enumerate(PROPOSERS)}
_CLASSES = np.array([sum(length >= lower for lower in MATCH_LENGTHS[1:]) for length in range(MATCH_LENGTHS[-1] + 1)])
"""The class of a match by its length; the last one holds for all that are longer."""


def row_of(proposer: Proposer, verifier: Verifier, match_tokens: int = 0) -> int:
    """Index of the table row that holds this pair's evidence: one per pair for drafts, one per class for lookup."""
    if proposer == "draft":
        return VERIFIER[verifier]
    return int(lookup_rows(np.array([VERIFIER[verifier]]), np.array([match_tokens]))[0])


def lookup_rows(verifiers: Ints, match_tokens: Ints) -> Ints:
    """The table rows [R] of prompt lookup after such matches, for verifiers by number; a draft's row is its
    verifier's number."""
    rows: Ints = NUM_PAIRS + verifiers * len(MATCH_LENGTHS) + _CLASSES[np.minimum(match_tokens, MATCH_LENGTHS[-1])]
    return rows


class AcceptanceModel:
    """Estimates of acceptance, and the evidence behind them."""

    def __init__(self) -> None:
        self._accepted = np.zeros((NUM_ROWS, MAX_POSITIONS))
        self._trials = np.zeros((NUM_ROWS, MAX_POSITIONS))
        self._own = OwnEvidence()
        self._tried_in = np.full(NUM_ROWS, -1, dtype=np.intp)
        self.step = 0
        self._rates = np.empty((NUM_ROWS, MAX_POSITIONS))
        self._estimate()

    @property
    def rates(self) -> Array:
        """Conditional acceptance [row, position] of the pairs, before any request's own evidence."""
        return self._rates

    @property
    def spread(self) -> float:
        """Standard deviation of a draft's acceptance between requests."""
        return self._own.spread(DRAFT)

    def slots_of(self, requests: Sequence[str]) -> Ints:
        """Where the own evidence of each request [R] lies: what `survival` and `steps_since_tried` go by."""
        return self._own.slots_of(requests)

    def survival(self, proposer: int, rows: Ints, slots: Ints, caps: Ints, depth: int) -> Array:
        """Probability [R, depth] that a request's first tokens up to that position are all kept, from the pair of its
        table row and its own evidence; 0 from `caps` [R] tokens on, and only there."""
        own = self._own
        found: Array = _survival(
            self._rates, own.excess[proposer], own.trials[proposer], own.weight(proposer), rows, slots, caps, depth
        )
        return found

    def pooled(self, proposer: int, rows: Ints, caps: Ints, depth: int) -> Array:
        """`survival` by one acceptance rate per proposer and verifier, as the paper has it."""
        kept, tried = _pool(self._accepted).sum(axis=1), _pool(self._trials).sum(axis=1)
        rates = (kept + UNKNOWN_WEIGHT * UNKNOWN_RATE) / (tried + UNKNOWN_WEIGHT)
        by_row = np.concatenate((rates[:NUM_PAIRS], np.repeat(rates[NUM_PAIRS:], len(MATCH_LENGTHS))))
        own, nobody = self._own, np.full(len(rows), NOBODY)
        found: Array = _survival(
            np.repeat(by_row[:, None], depth, axis=1), own.excess[proposer], own.trials[proposer],
            own.weight(proposer), rows, nobody, caps, depth,
        )  # fmt: skip
        return found

    def mean_survival(self, verifiers: Sequence[Verifier], depth: int, *, below: float = 0.0) -> Array:
        """Survival [depth] of a drafted token, averaged over *verifiers*, for a request that fares worse than its
        pair by *below* standard deviations between requests."""
        rates = self._rates[[row_of("draft", verifier) for verifier in verifiers], :depth] - below * self.spread
        survival: Array = np.cumprod(np.clip(rates, 0.0, 1.0), axis=1).mean(axis=0)
        return survival

    def observe(self, outcomes: Sequence[RequestOutcome], tokens_kept: int) -> None:
        """Learn from one step's proposals; every token kept lets the evidence fade, proposed or not."""
        self.step += 1
        _fade(self._accepted, self._trials, 0.5 ** (tokens_kept / PAIR_HALF_LIFE))
        if outcomes:
            self._learn(outcomes)
        self._estimate()

    def _learn(self, outcomes: Sequence[RequestOutcome]) -> None:
        requests, by, verified, drafts, kept, matched = zip(*map(astuple, outcomes), strict=True)
        proposers = np.array([_PROPOSER[proposer] for proposer in by], dtype=np.intp)
        verifiers = np.array([VERIFIER[verifier] for verifier in verified], dtype=np.intp)
        drafted, accepted = np.array(drafts, dtype=np.intp), np.array(kept, dtype=np.intp)
        matches = np.array(matched, dtype=np.intp)
        rows = np.where(proposers == DRAFT, verifiers, lookup_rows(verifiers, matches))
        slots = self._own.slots_for(requests)
        self._own.learn(slots, proposers, drafted, accepted, rows, self._rates, self.step)
        _count(self._accepted, self._trials, self._tried_in, rows, drafted, accepted, self.step)

    def forget(self, request_id: str) -> None:
        """Drop a finished request's own evidence, learning from it how much requests differ."""
        self._own.forget(request_id)

    def steps_since_tried(self, slots: Ints, proposer: int) -> Ints:
        """How many steps ago *proposer* was last tried for each request [R]; very many where it never was."""
        return self._age(self._own.last_tried[proposer, slots])

    def steps_since_row_tried(self, rows: Ints) -> Ints:
        """The same for rows of the table: what was last tried with any request of that pair and class."""
        return self._age(self._tried_in[rows])

    def _age(self, last: Ints) -> Ints:
        return np.where(last < 0, np.iinfo(np.intp).max, self.step - last)

    def _estimate(self) -> None:
        _estimate(self._accepted, self._trials, self._rates)

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
        self._estimate()

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


@njit(
    "float64[:,::1](float64[:,::1], float64[::1], float64[::1], float64, int64[::1], int64[::1], int64[::1], int64)",
    cache=True,
)  # type: ignore[untyped-decorator]
def _survival(rates: Any, excess: Any, trials: Any, weight: float, rows: Any, slots: Any, caps: Any, depth: int) -> Any:
    """`AcceptanceModel.survival`: products of the pair's `rates` [row, position], each shifted by the request's own
    excess per trial, shrunk by how little it was tried."""
    found = np.zeros((len(rows), depth))
    for r in range(len(rows)):
        shift = excess[slots[r]] / (trials[slots[r]] + weight)
        chance = 1.0
        for j in range(min(depth, caps[r])):
            chance *= min(max(rates[rows[r], j] + shift, 0.0), 1.0)
            found[r, j] = max(chance, SMALLEST_CHANCE)
    return found


@njit("(float64[:,::1], float64[:,::1], float64)", cache=True)  # type: ignore[untyped-decorator]
def _fade(accepted: Any, trials: Any, fade: float) -> None:
    """Let evidence [row, position] fade, but never below `LEAST_WEIGHT`."""
    for row in range(trials.shape[0]):
        for j in range(trials.shape[1]):
            if trials[row, j] > LEAST_WEIGHT:
                keep = max(fade, LEAST_WEIGHT / trials[row, j])
                accepted[row, j] *= keep
                trials[row, j] *= keep


@njit("(float64[:,::1], float64[:,::1], int64[::1], int64[::1], int64[::1], int64[::1], int64)", cache=True)  # type: ignore[untyped-decorator]
def _count(accepted: Any, trials: Any, tried_in: Any, rows: Any, drafted: Any, kept: Any, step: int) -> None:
    """Add outcomes [N] to their rows of the table: tokens kept, and the first one that was not."""
    for i in range(len(rows)):
        last = min(kept[i] + 1, drafted[i], MAX_POSITIONS)
        for j in range(last):
            trials[rows[i], j] += 1.0
        for j in range(min(kept[i], last)):
            accepted[rows[i], j] += 1.0
        if last > 0:
            tried_in[rows[i]] = step


@njit("(float64[:,::1], float64[:,::1], float64[:,::1])", cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _estimate(accepted: Any, trials: Any, rates: Any) -> None:
    """Rates [row, position], in place: each position shrunk to the one before, each class of matches to all matches;
    positions that nobody tried are like the last one tried by anybody."""
    classes = len(MATCH_LENGTHS)
    known = 0
    for j in range(MAX_POSITIONS):
        if trials[:, j].any():
            known += 1
    for pair in range(2 * NUM_PAIRS):
        first, last = pair, pair + 1
        if pair >= NUM_PAIRS:
            first = NUM_PAIRS + (pair - NUM_PAIRS) * classes
            last = first + classes
        rate, weight = UNKNOWN_RATE, UNKNOWN_WEIGHT
        for j in range(MAX_POSITIONS):
            if j == 0 or j < known:
                rate = (accepted[first:last, j].sum() + weight * rate) / (trials[first:last, j].sum() + weight)
                weight = POSITION_WEIGHT
            for row in range(first, last):
                rates[row, j] = rate
                if pair >= NUM_PAIRS:
                    rates[row, j] = (accepted[row, j] + MATCH_WEIGHT * rate) / (trials[row, j] + MATCH_WEIGHT)
