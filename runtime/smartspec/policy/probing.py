"""Trying what the estimates advise against, now and then, because only what is tried stays known.

After a time without speculation its acceptance is a memory, and after a time with it nobody knows what a plain step
takes. A probe costs throughput if the estimates were right; that regret is booked against a stated share of all step
time, so that probing can neither die (as where speculation is switched off for good) nor hurt.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartspec.native import njit
from smartspec.policy.acceptance import AcceptanceModel
from smartspec.policy.batch_arrays import BatchColumns
from smartspec.policy.costs import Costs
from smartspec.policy.goodput import Plan, Problem
from smartspec.policy.regression import Array, Ints
from smartspec.policy.uniform import evaluate

SHARE = 0.003
"""Regret allowed, as a share of step time."""
POOR_SHARE = 0.015
"""The same while the time model errs badly."""
ADVANCE_STEPS = 1.0
"""Regret paid for in advance, in steps, until the first step with a choice: a cold start learns little from steps that
are all alike."""
CREDIT_STEPS = 0.5
"""The most that a quiet time saves up, in mean steps: more is spent at once when a flood comes, and felt there."""
DEPTH = 2
"""Tokens a probe speculates for a request while nobody speculates; one while others do."""
GROUP = 8
"""One in so many requests is probed at once: forwards are dear, rows are cheap."""
SIGMAS = 2.0
"""A plain step is tried while it might be the better one within this many standard deviations of its predicted time."""
MEAN_STEPS = 100.0
"""Steps that the mean step time is taken over."""
REST_STEPS = 4
"""Steps until probes are looked for again when there was none to make: looking takes time, too."""
STALE_CLASS_STEPS = 100
"""A class of matches is probed when none of it was copied for this many steps."""
STALE_STEPS = 24
"""A request is probed when it was not tried for this many steps."""


class Prober:
    """Adds probes to plans while their regret is paid for."""

    def __init__(self) -> None:
        self.credit_seconds = 0.0
        self.regret_seconds = 0.0
        self.num_probes = 0
        self._mean_step_seconds = 0.0
        self._rest = 0

    def earn(self, seconds: float, *, poor: bool, free: bool) -> None:
        """Book a step's time; *poor* says that the time model errs badly, *free* that the policy was free to choose,
        for regret is a share of such steps alone."""
        if not self._mean_step_seconds:
            self._mean_step_seconds = seconds
            self.credit_seconds = ADVANCE_STEPS * seconds
        self._mean_step_seconds += (seconds - self._mean_step_seconds) / MEAN_STEPS
        if free:
            share = POOR_SHARE if poor else SHARE
            self.credit_seconds = min(self.credit_seconds + share * seconds, CREDIT_STEPS * self._mean_step_seconds)

    def report(self) -> dict[str, float]:
        """Counts and seconds for `explain`."""
        return {
            "count": self.num_probes,
            "regret_seconds": self.regret_seconds,
            "credit_seconds": self.credit_seconds,
            "share_of_step_time": SHARE,
        }

    def probe(
        self,
        plan: Plan,
        problem: Problem,
        costs: Costs,
        columns: BatchColumns,
        acceptance: AcceptanceModel,
        *,
        plain_uncertainty: Callable[[], float],
    ) -> Plan | None:
        """A plan to run instead of *plan* for what it teaches, or None. *plain_uncertainty* is the standard deviation
        of the predicted seconds of a step without speculation."""
        self._rest = max(0, self._rest - 1)
        if self._rest or not self._mean_step_seconds:
            return None
        self._rest = REST_STEPS  # unless one pays
        free = problem.forced < 0
        if (plan.num_tokens[free] > 0).any():
            plain = evaluate(problem, costs, np.where(free, 0, plan.num_tokens), plan.uses_draft)
            optimistic = max(plain.seconds - costs.sunk - SIGMAS * plain_uncertainty(), 1e-9)
            if plain.worth / optimistic > plan.goodput and self._pays(plain, plan):
                return plain
        if self.credit_seconds <= 0.0:
            return None
        drafted, copied, by_class = acceptance.ages(columns.verifiers, columns.matches, columns.slots)
        index, silent, from_draft, age = _neglected(
            problem.forced, plan.num_tokens, plan.uses_draft, problem.draft, problem.lookup, columns.matches,
            drafted, copied, by_class,
        )  # fmt: skip
        if index >= 0:
            copying = self._try_copying(index, plan, problem, costs)
            if copying is not None:
                return copying
        return self._try_silent(silent, from_draft, age, plan, problem, costs, columns.lag) if len(silent) else None

    def _try_copying(self, index: int, plan: Plan, problem: Problem, costs: Costs) -> Plan | None:
        """Copy for that request what the plan would have drafted: a good draft would else keep prompt lookup, which
        costs no forward, unknown for ever."""
        num_tokens, uses_draft = plan.num_tokens.copy(), plan.uses_draft.copy()
        num_tokens[index] = min(num_tokens[index], np.count_nonzero(problem.lookup[index]))
        uses_draft[index] = False
        tried = evaluate(problem, costs, num_tokens, uses_draft)
        return tried if self._pays(tried, plan) else None

    def _try_silent(
        self,
        silent: Ints,
        from_draft: NDArray[np.bool_],
        age: Ints,
        plan: Plan,
        problem: Problem,
        costs: Costs,
        lag: Array,
    ) -> Plan | None:
        """Speculate a little for some of *silent*, whom the plan leaves out; *from_draft*, *age* and *lag* [R] are who
        would draft, and for how many steps and tokens each has been left alone."""
        # In turn by age, which is fair, and by what the draft must catch up with, which is cheap.
        keys = (lag[silent], -age[silent]) if self.num_probes % 2 else (-age[silent], lag[silent])
        chosen = silent[np.lexsort(keys)][: max(1, len(age) // GROUP)]
        num_tokens, uses_draft = plan.num_tokens.copy(), plan.uses_draft.copy()
        depth = DEPTH if not plan.num_tokens.any() else 1
        for index in chosen.tolist():
            chances = problem.draft[index] if from_draft[index] else problem.lookup[index]
            num_tokens[index] = min(depth, int(np.count_nonzero(chances)))
            uses_draft[index] = from_draft[index]
        if num_tokens.sum() > problem.max_nodes:
            return None
        tried = evaluate(problem, costs, num_tokens, uses_draft)
        # What the draft must catch up with is an investment to a plan, but to a probe it is a price, paid in full.
        full = _late_seconds(tried, problem, costs, lag) - _late_seconds(plan, problem, costs, lag)
        tried = replace(tried, seconds=tried.seconds + full)
        return tried if self._pays(tried, plan) else None

    def _pays(self, tried: Plan, plan: Plan) -> bool:
        """Whether the regret of *tried* is paid for; books it if so."""
        regret = max(0.0, (tried.seconds - plan.seconds) - (tried.worth - plan.worth) / max(plan.goodput, 1e-9))
        # A regret beyond all credit would never be paid for: full credit buys it, and the debt delays the next one.
        if self.credit_seconds < min(regret, CREDIT_STEPS * self._mean_step_seconds):
            return False
        self._rest = 0
        self.credit_seconds -= regret
        self.regret_seconds += regret
        self.num_probes += 1
        return True


@njit(
    "Tuple((int64, int64[::1], boolean[::1], int64[::1]))(int64[::1], int64[::1], boolean[::1], float64[:,::1], "
    "float64[:,::1], int64[::1], int64[::1], int64[::1], int64[::1])",
    cache=True,
)
def _neglected(
    forced: Any, num_tokens: Any, uses_draft: Any, draft: Any, lookup: Any, matches: Any, drafted: Any, copied: Any,
    by_class: Any,
) -> Any:  # fmt: skip
    """Whom a plan leaves untried for long, of those free to choose. `drafted`, `copied` and `by_class` [R] are ages in
    steps (see `AcceptanceModel.ages`), the rest as in `Problem` and `Plan`.

    Returns who has the longest match of those who draft and whose class of matches nobody copied lately (-1: nobody);
    and those who take nothing, had nothing lately, and might have something. What they might have is, for each [R],
    from the draft or not, by what was longer untried; and for how long it was.
    """
    num = len(forced)
    index, longest = -1, -1
    silent, count = np.empty(num, dtype=np.int64), 0
    from_draft, age = np.zeros(num, dtype=np.bool_), np.zeros(num, dtype=np.int64)
    for r in range(num):
        can_draft, can_copy = draft[r, 0] > 0.0, lookup[r, 0] > 0.0
        from_draft[r] = can_draft and (not can_copy or drafted[r] >= copied[r])
        age[r] = drafted[r] if from_draft[r] else copied[r]
        if forced[r] >= 0:
            continue
        if uses_draft[r] and can_copy and by_class[r] >= STALE_CLASS_STEPS and matches[r] > longest:
            index, longest = r, matches[r]
        if num_tokens[r] == 0 and (can_draft or can_copy) and age[r] >= STALE_STEPS:
            silent[count] = r
            count += 1
    return index, silent[:count], from_draft, age


def _late_seconds(plan: Plan, problem: Problem, costs: Costs, lag: Array) -> float:
    """What catching up, by `lag` [R] tokens, takes beyond what *plan* counts of it."""
    late, counted = (
        costs.draft_seconds(plan.num_tokens, plan.uses_draft, rows, problem.context)
        for rows in (lag, problem.first_rows)
    )
    return late - counted
