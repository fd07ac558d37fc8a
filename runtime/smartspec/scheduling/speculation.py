"""How much each decoding request could speculate, and the slots for what the policy chose."""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Candidate, Decision, Proposer
from smartspec.scheduling.block_pool import BlockPool
from smartspec.scheduling.output import CopySource
from smartspec.scheduling.prediction import Prediction
from smartspec.scheduling.prefix_cache import PrefixCache
from smartspec.scheduling.prompt_lookup import MAX_MATCH_TOKENS, NO_MATCH, Match, PromptLookups
from smartspec.scheduling.request import Request

MAX_SPECULATIVE_TOKENS = 32
"""No proposal is longer, whatever anyone asks (the bound of `PolicySettings.max_speculative_tokens`)."""


class Grant(Struct, frozen=True, gc=False):
    """Speculative slots given to one request for this step, with the tokens to copy, and where from, when the proposer
    is "lookup"."""

    proposer: Proposer
    num_tokens: int
    lookup_tokens: tuple[int, ...] = ()
    lookup_match_tokens: int = 0
    lookup_source: CopySource = "lookup"


class SpeculationRoom:
    """Says what is possible and grants what is chosen, never at the price of anyone's blocks or tokens.

    *max_catchup_tokens* bounds what the draft model is fed in one step before it drafts.
    """

    def __init__(
        self,
        pool: BlockPool,
        prefixes: PrefixCache,
        proposers: Iterable[Proposer],
        *,
        max_model_len: int,
        max_catchup_tokens: int,
    ) -> None:
        self._pool = pool
        self._prefixes = prefixes
        self._proposers = frozenset(proposers)
        self._max_model_len = max_model_len
        self._max_catchup_tokens = max_catchup_tokens
        self._lookups = PromptLookups()
        self._predictions: dict[str, Prediction] = {}

    def offers(
        self, requests: list[Request], settings: PolicySettings, *, copies: bool = True
    ) -> list[tuple[Candidate, Match]]:
        """*requests* as the policy sees them, and the tokens that stand ready to be copied for each; without *copies*
        only for those that insist on a length, or whose grammar or client may know what follows."""
        rooms = self._rooms(requests, min(settings.max_speculative_tokens, MAX_SPECULATIVE_TOKENS))
        matches = self._matches(requests, rooms, is_on=settings.policy != "off", everybody=copies)
        can_draft = "draft" in self._proposers
        offers = []
        for request, room, match in zip(requests, rooms, matches, strict=True):
            mode, num_tokens = request.speculation.mode, len(request.token_ids)
            drafts = can_draft and mode != "off"
            if drafts and request.num_draft_computed_tokens < request.num_shared_tokens:
                self._prefixes.advance_draft(request)
            candidate = Candidate(
                request_id=request.request_id,
                context_tokens=num_tokens,
                max_speculative_tokens=room,
                verifier=request.verifier,
                mode=mode,
                draft_lag_tokens=num_tokens - request.num_draft_computed_tokens if drafts else None,
                lookup_tokens=len(match.token_ids),
                lookup_match_tokens=match.match_tokens,
            )
            offers.append((candidate, match))
        return offers

    def grant(
        self, decision: Decision, requests: list[Request], offers: list[tuple[Candidate, Match]], max_nodes: int
    ) -> dict[str, Grant]:
        """Slots for what the policy chose, and only for that: a request without a choice reserves nothing.

        Feeding the draft model whole prompts is bounded like the target's own prefill: whoever would exceed the bound
        waits a step. The first always passes, for a prompt may be longer than the bound.
        """
        grants: dict[str, Grant] = {}
        if not decision.choices:
            return grants
        num_catchup = 0
        for request, (candidate, match) in zip(requests, offers, strict=True):
            choice = decision.choices.get(request.request_id)
            if choice is None:
                continue
            lag = candidate.draft_lag_tokens
            num_tokens = min(choice.num_tokens, candidate.max_speculative_tokens, max_nodes, self._free_slots(request))
            if choice.proposer == "lookup":
                num_tokens = min(num_tokens, candidate.lookup_tokens)
            elif lag is None or (num_catchup and num_catchup + lag > self._max_catchup_tokens):
                continue
            if num_tokens < 1:
                continue
            self._pool.grow(request.block_table, request.num_tokens + num_tokens)
            max_nodes -= num_tokens
            if choice.proposer == "lookup":
                grant = Grant("lookup", num_tokens, match.token_ids[:num_tokens], match.match_tokens, match.source)
            else:
                grant = Grant("draft", num_tokens)
                num_catchup += lag or 0
            grants[request.request_id] = grant
        return grants

    def forget(self, request_id: str) -> None:
        """Drop the index of a request that has ended."""
        self._lookups.forget(request_id)
        self._predictions.pop(request_id, None)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept for any request."""
        return not self._lookups and not self._predictions

    def _rooms(self, requests: list[Request], most: int) -> list[int]:
        """Speculative tokens that each of *requests* has a use and a place for, *most* at most; one more token always
        comes from the target."""
        block_size, num_free = self._pool.block_size, self._pool.num_free
        rooms = []
        for request in requests:
            speculation, num_tokens, room = request.speculation, len(request.token_ids), 0
            if speculation.mode != "off":
                room = min(
                    request.sampling.max_tokens - num_tokens + len(request.prompt_token_ids) - 1,
                    self._max_model_len - num_tokens - 1,
                    (len(request.block_table) + num_free) * block_size - num_tokens,
                    most if speculation.max_tokens is None else min(speculation.max_tokens, most),
                )
            rooms.append(max(0, room))
        return rooms

    def _free_slots(self, request: Request) -> int:
        """KV slots beyond the newest token: in the request's own blocks and in the free ones."""
        return (len(request.block_table) + self._pool.num_free) * self._pool.block_size - request.num_tokens

    def _matches(self, requests: list[Request], rooms: list[int], *, is_on: bool, everybody: bool) -> list[Match]:
        """What each of *requests* may copy into its room: *everybody*, or only who may know more than its own text; and
        where speculation is not on, only those that insist on a length."""
        matches = [NO_MATCH] * len(requests)
        if not self._proposers:
            return matches
        # Where nobody may speculate, nobody pays for an index: it catches up by itself when it is asked again.
        wanted = rooms.copy()
        if not (is_on and everybody):
            for place, request in enumerate(requests):
                knows_more = is_on and (request.rule is not None or request.prediction_token_ids)
                if not knows_more and request.speculation.mode != "fixed":
                    wanted[place] = 0
        forced = self._forced(requests, wanted)
        for place in forced:
            wanted[place] = 0
        if "lookup" in self._proposers:
            matches = self._lookups.find(requests, wanted)
        for place, request in enumerate(requests):
            if request.prediction_token_ids and wanted[place]:
                matches[place] = self._longer(matches[place], request, wanted[place])
            if request.rule is not None and matches[place].token_ids:
                matches[place] = _permitted(matches[place], request)
        for place, match in forced.items():
            matches[place] = match
        return matches

    @staticmethod
    def _forced(requests: list[Request], rooms: list[int]) -> dict[int, Match]:
        """What grammars let follow alone, by place. Nothing is more likely: what is left open is how the model spells
        it."""
        forced = {}
        for place, request in enumerate(requests):
            rule, text, room = request.rule, request.ruled, rooms[place]
            if rule is not None and text is not None and room and (token_ids := rule.forces(text)):
                forced[place] = Match(tuple(token_ids[:room]), MAX_MATCH_TOKENS, "grammar")
        return forced

    def _longer(self, match: Match, request: Request, room: int) -> Match:
        """What to copy: from the client's prediction, or *match*, from the text itself, where more of it matches."""
        prediction = self._predictions.get(request.request_id)
        if prediction is None:
            prediction = self._predictions[request.request_id] = Prediction(
                request.prediction_token_ids, request.token_ids, request.num_prompt_tokens
            )
        predicted = prediction.find(room)
        return predicted if predicted.match_tokens >= match.match_tokens else match


def _permitted(match: Match, request: Request) -> Match:
    """*match* up to where the rule of *request* forbids it."""
    if request.rule is None or request.ruled is None:
        return match
    permitted = request.rule.permits(request.ruled, match.token_ids)
    return msgspec.structs.replace(match, token_ids=match.token_ids[:permitted]) if permitted else NO_MATCH
