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
from smartspec.scheduling.prompt_lookup import MAX_MATCH_TOKENS, NO_MATCH, Match, PromptLookup
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
        self._lookups: dict[str, PromptLookup] = {}
        self._predictions: dict[str, Prediction] = {}

    def offer(self, request: Request, settings: PolicySettings, *, looks: bool = True) -> tuple[Candidate, Match]:
        """*request* as the policy sees it, and the tokens that prompt lookup has for it."""
        room = min(self._room(request), settings.max_speculative_tokens)
        match = self._match(request, room, settings) if looks or request.speculation.mode == "fixed" else NO_MATCH
        drafts = "draft" in self._proposers and request.speculation.mode != "off"
        if drafts and request.num_draft_computed_tokens < request.num_shared_tokens:
            self._prefixes.advance_draft(request)
        num_tokens = len(request.token_ids)
        candidate = Candidate(
            request_id=request.request_id,
            context_tokens=num_tokens,
            max_speculative_tokens=room,
            verifier=request.verifier,
            mode=request.speculation.mode,
            draft_lag_tokens=num_tokens - request.num_draft_computed_tokens if drafts else None,
            lookup_tokens=len(match.token_ids),
            lookup_match_tokens=match.match_tokens,
        )
        return candidate, match

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
        self._lookups.pop(request_id, None)
        self._predictions.pop(request_id, None)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept for any request."""
        return not self._lookups and not self._predictions

    def _room(self, request: Request) -> int:
        """Speculative tokens *request* has a use and a place for; one more token always comes from the target."""
        if request.speculation.mode == "off":
            return 0
        wish, num_tokens = request.speculation.max_tokens, len(request.token_ids)
        room = min(
            request.sampling.max_tokens - num_tokens + len(request.prompt_token_ids) - 1,
            self._max_model_len - num_tokens - 1,
            self._free_slots(request),
            MAX_SPECULATIVE_TOKENS if wish is None else min(wish, MAX_SPECULATIVE_TOKENS),
        )
        return max(0, room)

    def _free_slots(self, request: Request) -> int:
        """KV slots beyond the newest token: in the request's own blocks and in the free ones."""
        return (len(request.block_table) + self._pool.num_free) * self._pool.block_size - request.num_tokens

    def _match(self, request: Request, room: int, settings: PolicySettings) -> Match:
        # Where nobody may speculate, nobody pays for an index: it catches up by itself when it is asked again.
        is_wanted = settings.policy != "off" or request.speculation.mode == "fixed"
        if not is_wanted or not room or not self._proposers:
            return NO_MATCH
        rule, text = request.rule, request.ruled
        if rule is not None and text is not None and (forced := rule.forces(text)):
            # Nothing is more likely: what is left open is how the model spells it.
            return Match(tuple(forced[:room]), MAX_MATCH_TOKENS, "grammar")
        match = self._longest(request, room)
        if rule is not None and text is not None and match.token_ids:
            permitted = rule.permits(text, match.token_ids)
            match = msgspec.structs.replace(match, token_ids=match.token_ids[:permitted]) if permitted else NO_MATCH
        return match

    def _longest(self, request: Request, room: int) -> Match:
        """What to copy: from the client's prediction, or from the text itself where more of it matches."""
        request_id, match = request.request_id, NO_MATCH
        if "lookup" in self._proposers:
            lookup = self._lookups.get(request_id)
            if lookup is None:
                lookup = self._lookups[request_id] = PromptLookup(request.token_ids)
            match = lookup.find(room)
        if request.prediction_token_ids:
            prediction = self._predictions.get(request_id)
            if prediction is None:
                prediction = self._predictions[request_id] = Prediction(
                    request.prediction_token_ids, request.token_ids, request.num_prompt_tokens
                )
            predicted = prediction.find(room)
            if predicted.match_tokens >= match.match_tokens:
                match = predicted
        return match
