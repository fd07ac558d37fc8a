"""A `BatchState` as arrays: what the optimiser weighs, and what its plan makes of the step."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smartspec.native import njit
from smartspec.policy.acceptance import VERIFIER, AcceptanceModel
from smartspec.policy.columns import by_letter, columns_of
from smartspec.policy.costs import Costs
from smartspec.policy.goodput import Plan, Problem
from smartspec.policy.regression import Array, Ints
from smartspec.policy.types import BatchState, Candidate, Choice, StepFeatures
from smartspec.policy.worth import long_run_worth

CATCHUP_STEPS = 16.0
"""Feeding the draft what it missed is an investment: its cost is weighed as if spread over this many steps."""
MOST_TOKENS = 32

_CHOICES = tuple(Choice(proposer, num) for proposer in ("lookup", "draft") for num in range(MOST_TOKENS + 1))
"""All choices there are: they are frozen, and made once."""
_VERIFIER = by_letter(VERIFIER)


class BatchColumns(NamedTuple):
    """The candidates of a step by field [R]. `verifiers` are numbers of `VERIFIER`, `modes` first letters; `lag` is at
    least 1, whoever `can_draft`; `slots` say where the acceptance model keeps what each request has shown."""

    request_ids: list[str]
    context: Array
    room: Ints
    verifiers: Ints
    modes: Ints
    lag: Array
    can_draft: NDArray[np.bool_]
    copies: Ints
    matches: Ints
    slots: Ints


def batch_columns(candidates: tuple[Candidate, ...], acceptance: AcceptanceModel) -> BatchColumns:
    """At least one candidate, in batch."""
    found = columns_of(candidates)
    _, _, room, _, modes, _, copies, matches = found
    context, verifiers, lag, can_draft = _typed(found, _VERIFIER)
    request_ids = [candidate.request_id for candidate in candidates]
    slots = acceptance.slots_of(request_ids)
    return BatchColumns(request_ids, context, room, verifiers, modes, lag, can_draft, copies, matches, slots)


@njit("Tuple((float64[::1], int64[::1], float64[::1], boolean[::1]))(int64[:,::1], int64[::1])", cache=True)
def _typed(found: Any, verifier: Any) -> Any:
    """`context`, `verifiers`, `lag` and `can_draft` of `BatchColumns`, of the columns as they were read."""
    num = found.shape[1]
    context, verifiers, lag = np.empty(num), np.empty(num, np.int64), np.empty(num)
    can_draft = np.empty(num, np.bool_)
    for r in range(num):
        context[r], verifiers[r] = found[1, r], verifier[found[3, r]]
        lag[r], can_draft[r] = max(found[5, r], 1), found[5, r] >= 0  # -1: none
    return context, verifiers, lag, can_draft


class Wishes(NamedTuple):
    """What the candidates of a step ask for: tokens that each takes whatever they cost (`forced` [R]; -1: as the policy
    chooses), the `least` and the `most` of those, and `context_tokens` of all."""

    forced: Ints
    least: int
    most: int
    context_tokens: int


def wishes_of(columns: BatchColumns, by_mode: Ints) -> Wishes:
    """`by_mode` says what to force by a mode's first letter."""
    return Wishes(*_wishes(columns.modes, by_mode, columns.context))


@njit("Tuple((int64[::1], int64, int64, int64))(int64[::1], int64[::1], float64[::1])", cache=True)
def _wishes(modes: Any, by_mode: Any, context: Any) -> Any:
    forced = np.empty(len(modes), np.int64)
    least, most, tokens = by_mode[modes[0]], by_mode[modes[0]], 0.0
    for r in range(len(modes)):
        forced[r] = by_mode[modes[r]]
        least, most = min(least, forced[r]), max(most, forced[r])
        tokens += context[r]
    return forced, least, most, int(tokens)


def problem_of(
    columns: BatchColumns,
    acceptance: AcceptanceModel,
    costs: Costs,
    forced: Ints,
    ceiling: int,
    *,
    max_nodes: int,
    tpot_target_seconds: float | None = None,
    by_paper: bool = False,
) -> Problem:
    """The optimiser's view of a batch when nobody may speculate more than *ceiling* tokens. *by_paper*: all requests
    and positions of a pair have the same acceptance, all tokens the same worth, and who can draft does not copy."""
    depth = max(1, ceiling)
    drafts, copies, first_rows = _allowed(
        columns.room, columns.can_draft, columns.copies, columns.lag, ceiling, by_paper
    )
    if by_paper:
        draft, lookup = acceptance.pooled(columns.verifiers, columns.matches, drafts, copies, depth)
        worth = np.ones(len(drafts))
    else:
        draft, lookup = acceptance.survival(columns.verifiers, columns.matches, columns.slots, drafts, copies, depth)
        worth = long_run_worth(draft, lookup, costs)
    return Problem(draft, lookup, first_rows, columns.context, forced, worth, max_nodes, tpot_target_seconds)


@njit(
    "Tuple((int64[::1], int64[::1], float64[::1]))(int64[::1], boolean[::1], int64[::1], float64[::1], int64, boolean)",
    cache=True,
)
def _allowed(room: Any, can_draft: Any, copies: Any, lag: Any, ceiling: int, by_paper: bool) -> Any:
    """How many tokens each request may draft and copy [R], and what its first draft forward counts for [R]."""
    num = len(room)
    drafted, copied, first_rows = np.zeros(num, np.int64), np.zeros(num, np.int64), np.empty(num)
    for r in range(num):
        most = min(room[r], ceiling)
        if can_draft[r]:
            drafted[r] = most
        if not (by_paper and can_draft[r]):
            copied[r] = min(most, copies[r])
        first_rows[r] = min(lag[r], 2.0) + max(lag[r] - 2.0, 0.0) / CATCHUP_STEPS
    return drafted, copied, first_rows


def plain_features(batch: BatchState, context_tokens: int) -> StepFeatures:
    """What the step will consist of without speculation, when those who decode attend to *context_tokens*."""
    num = len(batch.candidates)
    return StepFeatures(
        target_tokens=num + batch.prefill_tokens,
        context_tokens=context_tokens + batch.prefill_context_tokens,
        num_requests=num + batch.num_prefills,
        prefill_tokens=batch.prefill_tokens,
    )


def choices_of(request_ids: list[str], plan: Plan) -> dict[str, Choice]:
    """*plan* by request id; requests without speculation are not in it."""
    codes = plan.num_tokens + (MOST_TOKENS + 1) * plan.uses_draft
    return {request_id: _CHOICES[code] for request_id, code in zip(request_ids, codes.tolist(), strict=True) if code}
