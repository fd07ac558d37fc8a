"""A `BatchState` as arrays: what the optimiser weighs, and what its plan makes of the step."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.acceptance import VERIFIER, AcceptanceModel
from smartspec.policy.columns import NOTHING, by_letter, columns_of
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
    _, context, room, verifiers, modes, lag, copies, matches = columns_of(candidates)
    request_ids = [candidate.request_id for candidate in candidates]
    return BatchColumns(
        request_ids,
        context.astype(np.float64),
        room,
        _VERIFIER[verifiers],
        modes,
        np.maximum(lag, 1).astype(np.float64),
        lag != NOTHING,
        copies,
        matches,
        acceptance.slots_of(request_ids),
    )


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
    room = np.minimum(columns.room, ceiling)
    drafts, copies = room * columns.can_draft, np.minimum(room, columns.copies)
    if by_paper:
        copies *= ~columns.can_draft
        draft, lookup = acceptance.pooled(columns.verifiers, columns.matches, drafts, copies, depth)
        worth = np.ones(len(room))
    else:
        draft, lookup = acceptance.survival(columns.verifiers, columns.matches, columns.slots, drafts, copies, depth)
        worth = long_run_worth(draft, lookup, costs)
    first_rows = np.minimum(columns.lag, 2.0) + np.maximum(columns.lag - 2.0, 0.0) / CATCHUP_STEPS
    return Problem(draft, lookup, first_rows, columns.context, forced, worth, max_nodes, tpot_target_seconds)


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
