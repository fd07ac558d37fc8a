"""What is offered to be copied: what a grammar forces, or else the longer match, in the prediction or in the text."""

from collections.abc import Sequence
from typing import Any

from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Proposer, SpeculationMode
from smartspec.scheduling.block_pool import BlockPool
from smartspec.scheduling.prefix_cache import PrefixCache
from smartspec.scheduling.prompt_lookup import MAX_MATCH_TOKENS, NO_MATCH, Match
from smartspec.scheduling.request import LogitRule, Request, RuledText, SamplingParams, SpeculationParams
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


def asking(
    request_id: str = "r",
    *,
    predicted: Sequence[int] = (),
    output: Sequence[int] = (),
    rule: LogitRule | None = None,
    max_tokens: int = 50,
    mode: SpeculationMode = "auto",
) -> Request:
    """A request after *output*."""
    request = Request(
        request_id, list(PROMPT), SamplingParams(max_tokens=max_tokens), 0, 0.0, SpeculationParams(mode),
        rule=rule, prediction_token_ids=predicted,
    )  # fmt: skip
    request.token_ids += output
    return request


def room_for(requests: Sequence[Request], proposers: tuple[Proposer, ...] = ("lookup",)) -> SpeculationRoom:
    """Where all of *requests* hold a block."""
    pool = BlockPool(16, 16)
    for request in requests:
        pool.grow(request.block_table, 16)
    return SpeculationRoom(pool, PrefixCache(pool, enabled=False), proposers, max_model_len=200, max_catchup_tokens=64)


def offered(*, proposers: tuple[Proposer, ...] = ("lookup",), ceiling: int = 8, **asked: Any) -> Match:
    """What one request is offered to copy."""
    request = asking(**asked)
    room = room_for([request], proposers)
    ((_, match),) = room.offers([request], PolicySettings(max_speculative_tokens=ceiling))
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


def test_each_of_a_batch_is_offered_its_own() -> None:
    """Whatever its neighbours are, and whichever of them are looked up."""
    rule = Rule(forced=[9, 9])
    batch = [
        asking("plain"), asking("off", mode="off"), asking("forced", rule=rule), asking("cut", rule=Rule(permitted=1)),
        asking("predicted", predicted=[7, 8, 9], output=[7, 8]), asking("full", max_tokens=1),
        asking("short", max_tokens=3),
    ]  # fmt: skip
    room = room_for(batch)
    offers = room.offers(batch, PolicySettings(max_speculative_tokens=3))
    assert [candidate.request_id for candidate, _ in offers] == [request.request_id for request in batch]
    assert [candidate.max_speculative_tokens for candidate, _ in offers] == [3, 0, 3, 3, 3, 0, 2]
    assert [match.token_ids for _, match in offers] == [(4, 5, 1), (), (9, 9), (4,), (9,), (), (4, 5)]
    rule.forced = ()
    batch.reverse()
    *_, (_, no_longer_forced), _, plain = room.offers(batch, PolicySettings(max_speculative_tokens=3))
    assert no_longer_forced == Match((4, 5, 1), 3) == plain[1]
    for request in batch:
        room.forget(request.request_id)
    assert room.is_idle


def test_nothing_is_indexed_where_nobody_may_speculate() -> None:
    """With the policy off only those who insist are looked up."""
    batch = [asking("plain"), asking("fixed", mode="fixed")]
    room = room_for(batch)
    assert [len(match.token_ids) for _, match in room.offers(batch, PolicySettings(policy="off"))] == [0, 8]
    room.forget("fixed")
    assert room.is_idle


def test_while_the_policy_rests_only_those_who_insist_are_looked_up() -> None:
    """Nobody pays for an index that no choice will use; when choices are made again, it has caught up. What a grammar
    forces or a client predicts is offered at any time, but not where speculation is off."""
    batch = [
        asking("auto"), asking("insists", mode="fixed"), asking("forced", rule=Rule(forced=[9])),
        asking("predicted", predicted=[7, 8, 9], output=[7, 8]),
    ]  # fmt: skip
    room = room_for(batch)
    settings = PolicySettings(max_speculative_tokens=2)
    assert [match.token_ids for _, match in room.offers(batch, settings, copies=False)] == [(), (4, 5), (9,), (9,)]
    batch[0].token_ids += [4, 5]
    assert [match.token_ids for _, match in room.offers(batch, settings)] == [(1, 2), (4, 5), (9,), (9,)]
    off = PolicySettings(policy="off", max_speculative_tokens=2)
    assert [match.token_ids for _, match in room.offers(batch, off)] == [(), (4, 5), (), ()]
