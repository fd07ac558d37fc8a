"""How likely a proposed token is kept: conditional by position, per proposer and verifier, per request.

`rates[j]` is the probability that position j is accepted *given that all before it were*. Positions after the first
rejection are censored: nobody knows what would have become of them, so they are no trials (accepted / drafted, the
usual metric, is biased low in this formula). Evidence fades with the tokens generated, never with the clock.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from smartspec.policy.chances import (
    DRAFT,
    LOOKUP,
    MATCH_LENGTHS,
    MAX_POSITIONS,
    NUM_PAIRS,
    NUM_ROWS,
    PROPOSERS,
    UNKNOWN_RATE,
    UNKNOWN_WEIGHT,
    VERIFIERS,
    ages,
    count_outcomes,
    estimate_rates,
    fade_evidence,
    lookup_row,
    rows_of,
    survival,
)
from smartspec.policy.columns import by_letter, columns_of
from smartspec.policy.own_evidence import NOBODY, OwnEvidence
from smartspec.policy.regression import Array, Ints
from smartspec.policy.settings import AcceptancePrior
from smartspec.policy.types import Proposer, RequestOutcome, Verifier

PAIR_HALF_LIFE = 500.0
"""Tokens after which a pair's evidence counts half."""
MOST_PRIOR_TRIALS = 400.0
"""Trials handed in count as at most this many per position: they were made elsewhere."""

VERIFIER = {verifier: index for index, verifier in enumerate(VERIFIERS)}
_VERIFIER = by_letter(VERIFIER)
_PROPOSER = by_letter({proposer: index for index, proposer in enumerate(PROPOSERS)})


def row_of(proposer: Proposer, verifier: Verifier, match_tokens: int = 0) -> int:
    """Index of the table row that holds this pair's evidence: one per pair for drafts, one per class for lookup."""
    return VERIFIER[verifier] if proposer == "draft" else int(lookup_row(VERIFIER[verifier], match_tokens))


class Proposed(NamedTuple):
    """Tokens that one step's requests proposed, by proposer, and those of them that were not kept."""

    draft_tokens: int
    lookup_tokens: int
    wasted_tokens: int


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

    def survival(
        self, verifiers: Ints, matches: Ints, slots: Ints, drafts: Ints, copies: Ints, depth: int
    ) -> tuple[Array, Array]:
        """Probabilities [R, depth] that a request's first tokens up to that position are all kept, if drafted and if
        copied after such a match: from its pair and its own evidence. 0 from `drafts` and `copies` [R] tokens on."""
        own = self._own
        found: tuple[Array, Array] = survival(
            self._rates, own.excess, own.trials, own.weight(DRAFT), own.weight(LOOKUP),
            verifiers, matches, slots, drafts, copies, depth,
        )  # fmt: skip
        return found

    def pooled(self, verifiers: Ints, matches: Ints, drafts: Ints, copies: Ints, depth: int) -> tuple[Array, Array]:
        """`survival` by one acceptance rate per proposer and verifier, as the paper has it."""
        kept, tried = _pool(self._accepted).sum(axis=1), _pool(self._trials).sum(axis=1)
        rates = (kept + UNKNOWN_WEIGHT * UNKNOWN_RATE) / (tried + UNKNOWN_WEIGHT)
        by_row = np.concatenate((rates[:NUM_PAIRS], np.repeat(rates[NUM_PAIRS:], len(MATCH_LENGTHS))))
        own, nobody = self._own, np.full(len(verifiers), NOBODY)
        found: tuple[Array, Array] = survival(
            np.repeat(by_row[:, None], depth, axis=1), own.excess, own.trials, own.weight(DRAFT), own.weight(LOOKUP),
            verifiers, matches, nobody, drafts, copies, depth,
        )  # fmt: skip
        return found

    def mean_survival(self, verifiers: Sequence[Verifier], depth: int, *, below: float = 0.0) -> Array:
        """Survival [depth] of a drafted token, averaged over *verifiers*, for a request that fares worse than its
        pair by *below* standard deviations between requests."""
        counts = Counter(verifiers)
        rates = self._rates[[VERIFIER[verifier] for verifier in counts], :depth] - below * self.spread
        shares = np.array(list(counts.values())) / len(verifiers)
        survival: Array = shares @ np.cumprod(np.clip(rates, 0.0, 1.0), axis=1)
        return survival

    def observe(self, outcomes: Sequence[RequestOutcome], tokens_kept: int) -> Proposed:
        """Learn from one step's proposals; every token kept lets the evidence fade, proposed or not."""
        self.step += 1
        fade_evidence(self._accepted, self._trials, 0.5 ** (tokens_kept / PAIR_HALF_LIFE))
        proposed = self._learn(outcomes) if outcomes else Proposed(0, 0, 0)
        self._estimate()
        return proposed

    def _learn(self, outcomes: Sequence[RequestOutcome]) -> Proposed:
        _, proposers, verifiers, drafted, accepted, matches = columns_of(outcomes)
        proposers, verifiers = _PROPOSER[proposers], _VERIFIER[verifiers]
        slots = self._own.slots_for([outcome.request_id for outcome in outcomes])
        rows = rows_of(proposers, verifiers, matches)
        self._own.learn(slots, proposers, drafted, accepted, rows, self._rates, self.step)
        counted = count_outcomes(self._accepted, self._trials, self._tried_in, rows, drafted, accepted, self.step)
        return Proposed(*counted)

    def forget(self, request_id: str) -> None:
        """Drop a finished request's own evidence, learning from it how much requests differ."""
        self._own.forget(request_id)

    def ages(self, verifiers: Ints, matches: Ints, slots: Ints) -> tuple[Ints, Ints, Ints]:
        """How many steps ago [R] the draft was last tried for each request, when prompt lookup was, and when prompt
        lookup was for anybody of its pair and class of matches; very many where it never was."""
        found: tuple[Ints, Ints, Ints] = ages(
            self._own.last_tried, self._tried_in, verifiers, matches, slots, self.step
        )
        return found

    def _estimate(self) -> None:
        estimate_rates(self._accepted, self._trials, self._rates)

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
