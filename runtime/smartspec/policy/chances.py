"""Acceptance as arithmetic on tables, compiled: what evidence says of a request's next tokens, and how it is counted.

Tables have a row for each pair of proposer and verifier, and for prompt lookup one for each class of matches, and a
column for each position. numba looks at a function's own file to see whether what it has on disk is up to date, so all
constants and functions that these use are here.
"""

from typing import Any

import numpy as np

from smartspec.native import njit
from smartspec.policy.types import Proposer, Verifier

MAX_POSITIONS = 32
PROPOSERS: tuple[Proposer, ...] = ("draft", "lookup")
DRAFT, LOOKUP = 0, 1
"""Proposers by number: places in `PROPOSERS`. Verifiers' numbers are their places in `VERIFIERS`."""
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
LEAST_WEIGHT = 16.0
"""Standing still, a pair's evidence at a position fades no further than this: its rate survives a long silence, and
a few probes suffice to turn it."""
NEVER = 1 << 62
"""Steps since what was never done."""
SMALLEST_CHANCE = 1e-12
"""No position that may be speculated is quite without a chance: 0 says that there is nothing to be had."""

_CLASS = np.array([sum(length >= lower for lower in MATCH_LENGTHS[1:]) for length in range(MATCH_LENGTHS[-1] + 1)])
"""The class of a match by its length; the last one holds for all that are longer."""


@njit("int64(int64, int64)", cache=True)
def lookup_row(verifier: int, match_tokens: int) -> int:
    """The table row of prompt lookup after a match."""
    return int(NUM_PAIRS + verifier * len(MATCH_LENGTHS) + _CLASS[min(match_tokens, MATCH_LENGTHS[-1])])


@njit("int64[::1](int64[::1], int64[::1], int64[::1])", cache=True)
def rows_of(proposers: Any, verifiers: Any, matches: Any) -> Any:
    """`row_of` of many, by number."""
    rows = verifiers.copy()
    for i in range(len(rows)):
        if proposers[i] == LOOKUP:
            rows[i] = lookup_row(verifiers[i], matches[i])
    return rows


@njit("(float64[::1], float64, int64, float64[::1])", cache=True)
def _chances(rates: Any, shift: float, room: int, found: Any) -> None:
    """Put the chances of the first *room* positions into *found*, in place."""
    chance = 1.0
    for j in range(room):
        chance *= min(max(rates[j] + shift, 0.0), 1.0)
        found[j] = max(chance, SMALLEST_CHANCE)


@njit(
    "UniTuple(float64[:,::1], 2)(float64[:,::1], float64[:,::1], float64[:,::1], float64, float64, "
    "int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64)",
    cache=True,
)
def survival(
    rates: Any,
    excess: Any,
    trials: Any,
    draft_weight: float,
    lookup_weight: float,
    verifiers: Any,
    matches: Any,
    slots: Any,
    drafts: Any,
    copies: Any,
    depth: int,
) -> Any:
    """`AcceptanceModel.survival`: products of the pair's `rates` [row, position], each shifted by the request's own
    excess [proposer, slot] per trial, shrunk by how little it was tried."""
    num = len(verifiers)
    drafted, copied = np.zeros((num, depth)), np.zeros((num, depth))
    for r in range(num):
        slot, row = slots[r], lookup_row(verifiers[r], matches[r])
        shift = excess[DRAFT, slot] / (trials[DRAFT, slot] + draft_weight)
        _chances(rates[verifiers[r]], shift, min(drafts[r], depth), drafted[r])
        shift = excess[LOOKUP, slot] / (trials[LOOKUP, slot] + lookup_weight)
        _chances(rates[row], shift, min(copies[r], depth), copied[r])
    return drafted, copied


@njit("UniTuple(int64[::1], 3)(int64[:,::1], int64[::1], int64[::1], int64[::1], int64[::1], int64)", cache=True)
def ages(last_tried: Any, tried_in: Any, verifiers: Any, matches: Any, slots: Any, step: int) -> Any:
    """`AcceptanceModel.ages`, of the steps [proposer, slot] and [row] they were tried in; -1 is never."""
    drafted, copied, by_class = np.empty_like(slots), np.empty_like(slots), np.empty_like(slots)
    for r in range(len(slots)):
        row = lookup_row(verifiers[r], matches[r])
        for age, last in (
            (drafted, last_tried[DRAFT, slots[r]]),
            (copied, last_tried[LOOKUP, slots[r]]),
            (by_class, tried_in[row]),
        ):
            age[r] = step - last if last >= 0 else NEVER
    return drafted, copied, by_class


@njit("(float64[:,::1], float64[:,::1], float64)", cache=True)
def fade_evidence(accepted: Any, trials: Any, fade: float) -> None:
    """Let evidence [row, position] fade, but never below `LEAST_WEIGHT`."""
    for row in range(trials.shape[0]):
        for j in range(trials.shape[1]):
            if trials[row, j] > LEAST_WEIGHT:
                keep = max(fade, LEAST_WEIGHT / trials[row, j])
                accepted[row, j] *= keep
                trials[row, j] *= keep


@njit(
    "Tuple((int64, int64, int64))"
    "(float64[:,::1], float64[:,::1], int64[::1], int64[::1], int64[::1], int64[::1], int64)",
    cache=True,
)
def count_outcomes(accepted: Any, trials: Any, tried_in: Any, rows: Any, drafted: Any, kept: Any, step: int) -> Any:
    """Add outcomes [N] to their rows of the table: tokens kept, and the first one that was not. Returns the sums of
    what was drafted, of what was copied, and of what of both was not kept."""
    by_draft, by_lookup, wasted = 0, 0, 0
    for i in range(len(rows)):
        if rows[i] < NUM_PAIRS:
            by_draft += drafted[i]
        else:
            by_lookup += drafted[i]
        wasted += drafted[i] - kept[i]
        last = min(kept[i] + 1, drafted[i], MAX_POSITIONS)
        for j in range(last):
            trials[rows[i], j] += 1.0
        for j in range(min(kept[i], last)):
            accepted[rows[i], j] += 1.0
        if last > 0:
            tried_in[rows[i]] = step
    return by_draft, by_lookup, wasted


@njit("(float64[:,::1], float64[:,::1], float64[:,::1])", cache=True, error_model="numpy")
def estimate_rates(accepted: Any, trials: Any, rates: Any) -> None:
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
