"""What is offered to be copied: what a grammar forces, or else the longer match, in the prediction or in the text."""

from collections.abc import Sequence
from typing import Any

from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Proposer
from smartspec.scheduling.block_pool import BlockPool
from smartspec.scheduling.prefix_cache import PrefixCache
from smartspec.scheduling.prompt_lookup import MAX_MATCH_TOKENS, NO_MATCH, Match
from smartspec.scheduling.request import LogitRule, Request, RuledText, SamplingParams
from smartspec.scheduling.speculation import SpeculationRoom

PROMPT = [1, 2, 3, 4, 5, 1, 2, 3]
"""Its own text goes on with 4, 5 after a match of three tokens."""


class Rule(LogitRule):
    """Forces *forced*, and permits so many tokens ahead."""

    def __init__(self, forced: Sequence[int] = (), permitted: int = 99) -> None:
        self.forced, self.permitted = forced, permitted

    def adjust(self, logits: Any, text: RuledText, ahead: Sequence[int], first: int) -> None:
        """Not asked here."""
        raise NotImplementedError

    def forces(self, text: RuledText) -> Sequence[int]:
        """What must follow."""
        return self.forced

    def permits(self, text: RuledText, ahead: Sequence[int]) -> int:
        """How much may follow."""
        return min(self.permitted, len(ahead))


def offered(
    *,
    predicted: Sequence[int] = (),
    output: Sequence[int] = (),
    rule: LogitRule | None = None,
    proposers: tuple[Proposer, ...] = ("lookup",),
    max_tokens: int = 50,
    ceiling: int = 8,
) -> Match:
    """What a request is offered to copy after *output*."""
    request = Request(
        "r", list(PROMPT), SamplingParams(max_tokens=max_tokens), 0, 0.0, rule=rule, prediction_token_ids=predicted
    )
    request.token_ids += output
    pool = BlockPool(16, 16)
    pool.grow(request.block_table, 16)
    room = SpeculationRoom(pool, PrefixCache(pool, enabled=False), proposers, max_model_len=200, max_catchup_tokens=64)
    _, match = room.offer(request, PolicySettings(max_speculative_tokens=ceiling))
    return match


def test_the_longer_match_is_offered() -> None:
    """At first the text's own match is the longer one; when more of the answer was as predicted, the prediction is."""
    assert offered(predicted=[7, 8, 9, 10]).source == "lookup"
    match = offered(predicted=[7, 8, 9, 10, 11], output=[7, 8, 9])
    assert (match.source, match.token_ids, match.match_tokens) == ("prediction", (10, 11), 3)


def test_a_prediction_needs_no_prompt_lookup() -> None:
    """Another proposer is enough to say that this model can be speculated upon; without any it cannot."""
    assert offered(predicted=[7, 8], proposers=("draft",)).source == "prediction"
    assert offered(predicted=[7, 8], proposers=()) == NO_MATCH


def test_what_is_forced_comes_first_and_within_the_room() -> None:
    """A forced continuation is trusted like the longest match, and cut where max_tokens ends."""
    match = offered(predicted=[7, 8], rule=Rule(forced=range(20, 40)), max_tokens=5)
    assert (match.source, match.token_ids, match.match_tokens) == ("grammar", (20, 21, 22, 23), MAX_MATCH_TOKENS)


def test_a_copy_ends_where_the_rule_forbids_it() -> None:
    """What would be rejected for sure takes no place in the step."""
    assert offered(rule=Rule(permitted=1)).token_ids == (4,)
    assert offered(rule=Rule(permitted=0)) == NO_MATCH


def test_nothing_is_looked_up_that_the_policy_could_not_take() -> None:
    """A copy is as long as the policy's ceiling at most, and at a ceiling of 0 nobody pays for the looking."""
    assert offered(ceiling=2) == Match((4, 5), 3)
    assert offered(ceiling=0) is NO_MATCH
