"""A `BatchState` as arrays: what the optimiser weighs, and what its plan makes of the step."""

from typing import NamedTuple

import numpy as np
from msgspec.structs import astuple
from numpy.typing import NDArray

from smartspec.policy.acceptance import VERIFIER, AcceptanceModel, numbers_of
from smartspec.policy.costs import Costs
from smartspec.policy.goodput import Plan, Problem
from smartspec.policy.regression import Array, Ints
from smartspec.policy.types import BatchState, Candidate, Choice, SpeculationMode, StepFeatures
from smartspec.policy.worth import long_run_worth

CATCHUP_STEPS = 16.0
"""Feeding the draft what it missed is an investment: its cost is weighed as if spread over this many steps."""
MOST_TOKENS = 32

_CHOICES = tuple(tuple(Choice(proposer, num) for num in range(MOST_TOKENS + 1)) for proposer in ("lookup", "draft"))
"""All choices there are: they are frozen, and made once."""


class Columns(NamedTuple):
    """The candidates of a step by field [R]. `verifiers` are numbers of `VERIFIER`; `lag` is at least 1, whoever
    `can_draft`; `slots` say where the acceptance model keeps what each request has shown."""

    request_ids: tuple[str, ...]
    context: Array
    room: Ints
    verifiers: Ints
    modes: tuple[SpeculationMode, ...]
    lag: Array
    can_draft: NDArray[np.bool_]
    copies: Ints
    matches: Ints
    slots: Ints


def columns_of(candidates: tuple[Candidate, ...], acceptance: AcceptanceModel) -> Columns:
    """At least one candidate, in columns."""
    request_ids, context, room, verifiers, modes, lags, copies, matches = zip(*map(astuple, candidates), strict=True)
    lag = np.array(lags, dtype=np.float64)  # None is not a number
    return Columns(
        request_ids,
        np.array(context, dtype=np.float64),
        np.array(room, dtype=np.intp),
        numbers_of(verifiers, VERIFIER),
        modes,
        np.fmax(lag, 1.0),
        ~np.isnan(lag),
        np.array(copies, dtype=np.intp),
        np.array(matches, dtype=np.intp),
        acceptance.slots_of(request_ids),
    )


def problem_of(
    columns: Columns,
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


def plain_features(batch: BatchState) -> StepFeatures:
    """What the step will consist of without speculation."""
    candidates = batch.candidates
    return StepFeatures(
        target_tokens=len(candidates) + batch.prefill_tokens,
        context_tokens=sum([c.context_tokens for c in candidates]) + batch.prefill_context_tokens,
        num_requests=len(candidates) + batch.num_prefills,
        prefill_tokens=batch.prefill_tokens,
    )


def choices_of(request_ids: tuple[str, ...], plan: Plan) -> dict[str, Choice]:
    """*plan* by request id; requests without speculation are not in it."""
    return {
        request_id: _CHOICES[drafts][num]
        for request_id, drafts, num in zip(request_ids, plan.uses_draft.tolist(), plan.num_tokens.tolist(), strict=True)
        if num
    }
