"""Which tokens to speculate: the exact maximum of tokens kept per predicted second, over the whole batch at once.

Every candidate node (request r, position j) brings S[r, j] expected tokens: the probability that it and all before it
are kept. S falls with j, so the best nodes in sorted order are prefix-closed per request, and the best plan *of a
given size* takes the first b of them. One sorted list is not enough, because each depth costs a draft forward of its
own: for each greatest depth D the nodes within it are taken in order, and the ratio is maximised over every (D, b).
Costs have stairs, so no search stops at the first decrease (source: arXiv 2406.14066, section 4; the (D, b) form and
the parametric order for unequal marginal costs, after Dinkelbach, are this project's).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.costs import Costs
from smartspec.policy.regression import Array, Ints
from smartspec.policy.scan import search


@dataclass(frozen=True)
class Problem:
    """The requests of one step, R of them, and what each may speculate.

    `draft` and `lookup` [R, K] are survival probabilities per position, 0 beyond what the request may take from that
    proposer. `first_rows` [R] are the rows of a request's first draft forward (committed tokens the draft has not
    seen, discounted as the caller sees fit), `context` [R] its context tokens. `forced` [R] are the tokens a request
    takes whatever they cost, or -1 where the policy is free. `worth` [R] is what a token of each counts in the goodput.
    """

    draft: Array
    lookup: Array
    first_rows: Array
    context: Array
    forced: Ints
    worth: Array
    max_nodes: int
    tpot_target_seconds: float | None = None

    @property
    def most_nodes(self) -> int:
        """Nodes that a plan can have at all."""
        return min(self.draft.size, max(0, self.max_nodes))


@dataclass(frozen=True)
class Plan:
    """`num_tokens` [R], `num_nodes` in sum, from the draft where `uses_draft` [R], else from lookup; expected `tokens`
    kept by all requests in `seconds`, what they are `worth`, and that per second as `goodput`; `tpot_seconds` is the
    predicted time per output token of the request that fares worst, counting the whole step (0 where no target made
    anyone look)."""

    num_tokens: Ints
    uses_draft: NDArray[np.bool_]
    num_nodes: int
    tokens: float
    worth: float
    seconds: float
    goodput: float
    tpot_seconds: float


def optimise(problem: Problem, costs: Costs, *, rate: float, margin: float = 0.0, drafting: bool = True) -> Plan:
    """The plan of greatest goodput; among those within the TPOT target, where one is.

    *rate* is a guess of the goodput (tokens per second; the last step's), used only to weigh unequal marginal costs
    and refined here. *drafting* says whether the draft was used in the last step, and *margin* by what share the
    other way (with the draft, without it) must be better to be taken instead: 0.02 is 2 %.
    """
    target = math.inf if problem.tpot_target_seconds is None else problem.tpot_target_seconds
    forwards = costs.forwards(problem.first_rows)
    lengths, drafts, num_nodes, figures = search(
        problem.draft, problem.lookup, problem.worth, problem.forced, problem.first_rows, problem.context,
        costs.target[: problem.most_nodes + 1], forwards, costs.draft_context, costs.sunk, target,
        rate, margin, drafting,
    )  # fmt: skip
    return Plan(lengths, drafts, num_nodes, *figures)
