"""How likely a proposed token is kept: conditional by position, per proposer and verifier, per request.

`rates[j]` is the probability that position j is accepted *given that all before it were*. Positions after the first
rejection are censored: nobody knows what would have become of them, so they are no trials (accepted / drafted, the
usual metric, is biased low in this formula). Evidence fades with the tokens generated, never with the clock.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from smartspec.policy.goodput import Ints
from smartspec.policy.own_evidence import OwnEvidence
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
PAIR_HALF_LIFE = 500.0
"""Tokens after which a pair's evidence counts half."""
LEAST_WEIGHT = 16.0
"""Standing still, a pair's evidence at a position fades no further than this: its rate survives a long silence, and
a few probes suffice to turn it."""
MOST_PRIOR_TRIALS = 400.0
"""Trials handed in count as at most this many per position: they were made elsewhere."""

_PAIR = {verifier: index for index, verifier in enumerate(VERIFIERS)}
_CLASS = tuple(sum(length >= lower for lower in MATCH_LENGTHS[1:]) for length in range(MATCH_LENGTHS[-1] + 1))
_CLASSES = np.array(_CLASS, dtype=np.intp)


def row_of(proposer: Proposer, verifier: Verifier, match_tokens: int = 0) -> int:
    """Index of the table row that holds this pair's evidence: one per pair for drafts, one per class for lookup."""
    if proposer == "draft":
        return _PAIR[verifier]
    return NUM_PAIRS + _PAIR[verifier] * len(MATCH_LENGTHS) + _CLASS[min(match_tokens, MATCH_LENGTHS[-1])]


def rows_of(proposer: Proposer, verifiers: Sequence[Verifier], match_tokens: Ints) -> Ints:
    """`row_of` for many requests."""
    pairs = np.array([_PAIR[verifier] for verifier in verifiers], dtype=np.intp)
    if proposer == "draft":
        return pairs
    rows: Ints = NUM_PAIRS + pairs * len(MATCH_LENGTHS) + _CLASSES[np.minimum(match_tokens, MATCH_LENGTHS[-1])]
    return rows


class AcceptanceModel:
    """Estimates of acceptance, and the evidence behind them."""

    def __init__(self) -> None:
        self._accepted = np.zeros((NUM_ROWS, MAX_POSITIONS))
        self._trials = np.zeros((NUM_ROWS, MAX_POSITIONS))
        self._own = {proposer: OwnEvidence() for proposer in PROPOSERS}
        self._tried_in = np.full(NUM_ROWS, -1, dtype=np.intp)
        self.step = 0
        self._rates = self._estimate()

    @property
    def rates(self) -> Array:
        """Conditional acceptance [row, position] of the pairs, before any request's own evidence."""
        return self._rates

    @property
    def spread(self) -> float:
        """Standard deviation of a draft's acceptance between requests."""
        return self._own["draft"].spread

    def pooled(self, rows: Sequence[int] | Ints, depth: int) -> Array:
        """Survival [row, depth] by one acceptance rate per proposer and verifier, as the paper has it."""
        kept, tried = _pool(self._accepted).sum(axis=1), _pool(self._trials).sum(axis=1)
        rate = (kept + UNKNOWN_WEIGHT * UNKNOWN_RATE) / (tried + UNKNOWN_WEIGHT)
        index = np.asarray(rows, dtype=np.intp)
        pairs = np.where(index < NUM_PAIRS, index, NUM_PAIRS + (index - NUM_PAIRS) // len(MATCH_LENGTHS))
        return np.asarray(rate[pairs][:, None] ** np.arange(1, depth + 1), dtype=np.float64)

    def survival(self, rows: Sequence[int] | Ints, requests: Sequence[str], proposer: Proposer, depth: int) -> Array:
        """Probability [request, position] that a request's first tokens up to that position are all kept."""
        shift = self._own[proposer].shift(requests)
        rates = self._rates[np.asarray(rows, dtype=np.intp), :depth] + shift[:, None]
        survival: Array = np.minimum(np.maximum(rates, 0.0), 1.0).cumprod(axis=1)
        return survival

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
        tried = [outcome for outcome in outcomes if outcome.num_drafted > 0]
        for proposer in PROPOSERS:
            self._learn(proposer, [outcome for outcome in tried if outcome.proposer == proposer])
        self._rates = self._estimate()

    def _learn(self, proposer: Proposer, outcomes: list[RequestOutcome]) -> None:
        if not outcomes:
            return
        rows = np.array([row_of(proposer, o.verifier, o.lookup_match_tokens) for o in outcomes], dtype=np.intp)
        drafted = np.minimum(np.array([o.num_drafted for o in outcomes]), MAX_POSITIONS)
        accepted = np.minimum(np.array([o.num_accepted for o in outcomes]), drafted)
        # The first rejection is the last trial: what would have come after it was never put to the test.
        trials = np.minimum(accepted + 1, drafted)
        rates = self._rates[rows, : int(drafted.max())]
        was_tried = np.arange(rates.shape[1]) < trials[:, None]
        expected, chance = (np.where(was_tried, values, 0.0).sum(axis=1) for values in (rates, rates * (1.0 - rates)))
        requests = [o.request_id for o in outcomes]
        own = self._own[proposer]
        own.learn(requests, trials, accepted, expected, chance)
        own.mark(requests, self.step)
        self._tried_in[rows] = self.step
        self._trials += _reached(rows, trials)
        self._accepted += _reached(rows, accepted)

    def forget(self, request_id: str) -> None:
        """Drop a finished request's own evidence, learning from it how much requests differ."""
        for own in self._own.values():
            own.forget(request_id)

    def steps_since_tried(self, requests: Sequence[str], proposer: Proposer) -> Ints:
        """How many steps ago *proposer* was last tried for each request [R]; very many where it never was."""
        return self._age(self._own[proposer].last_tried(requests))

    def steps_since_row_tried(self, rows: Ints) -> Ints:
        """The same for rows of the table: what was last tried with any request of that pair and class."""
        return self._age(self._tried_in[rows])

    def _age(self, last: Ints) -> Ints:
        return np.where(last < 0, np.iinfo(np.intp).max, self.step - last)

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


def _reached(rows: Ints, lengths: Ints) -> Array:
    """How many outcomes of each table row were at least as long as each position [row, position]."""
    width = MAX_POSITIONS + 1
    counts = np.bincount(rows * width + lengths, minlength=NUM_ROWS * width).reshape(NUM_ROWS, width)
    longer: Array = counts[:, :0:-1].cumsum(axis=1)[:, ::-1].astype(np.float64)
    return longer
