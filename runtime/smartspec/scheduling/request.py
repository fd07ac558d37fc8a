"""One request: what was asked, and how far it has come."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

from msgspec import Struct

from smartspec.policy.types import SpeculationMode, Verifier

FinishReason = Literal["stop", "length", "abort"]

MAX_SCORED_TOKENS = 256
"""Prompt tokens scored in a step: each needs a row of logits, as wide as the vocabulary."""


class RequestStatus(Enum):
    """Where a request is: `WAITING` in the queue (new or preempted), `RUNNING` in the batch, or `FINISHED`."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to end. `top_k` 0, `top_p` 1 and `min_p` 0 filter nothing.

    The penalties and `logit_bias` (token id, what is added) are as in OpenAI's and vLLM's APIs, and so are
    `allowed_token_ids` (none: all) and `bad_words`: sequences of token ids that the output never has.
    `seed` is the user's, None when none was named. `stop` strings are matched on text, by whoever detokenises;
    everything else is on token ids. `logprobs` asks for each chosen token's log probability and those of so many of the
    most probable ones beside it, `prompt_logprobs` for the same of the prompt's tokens.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    @property
    def penalises(self) -> bool:
        """Whether logits depend on which tokens the text has."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    @property
    def edits_logits(self) -> bool:
        """Whether logits of single tokens are raised or lowered."""
        return bool(self.logit_bias) or self.penalises

    @property
    def bans_tokens(self) -> bool:
        """Whether tokens are ruled out, `min_tokens` apart."""
        return bool(self.allowed_token_ids) or bool(self.bad_words)

    @property
    def adjusts_logits(self) -> bool:
        """Whether anything is done to the logits before temperature."""
        return self.min_tokens > 0 or self.edits_logits or self.bans_tokens

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken each time."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class SpeculationParams:
    """The request field `speculation`: *mode*, and with `fixed` (or as a ceiling with `auto`) *max_tokens*. *explain*
    asks who proposed which token."""

    mode: SpeculationMode = "auto"
    max_tokens: int | None = None
    explain: bool = False


class TokenLogprob(Struct, frozen=True, gc=False):
    """What the model itself says of one token: its log probability, its rank (1: most probable), and the most probable
    tokens at its place with theirs, as many as were asked for."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class LogitRule(Protocol):
    """What may follow a text, beyond `SamplingParams`: a grammar, say. One instance serves one sequence.

    Everything it does must be a function of the text and of the tokens ahead alone, never of how often or in what
    portions it was asked: steps bring any number of tokens, drafts are asked about tokens that are then rejected, and
    a preempted request comes back with the same text. State that follows the committed text is a cache of that
    function; committed tokens are never taken back.
    """

    failure: str | None = None
    """Why the rule can say no more, if so: the request ends with its text incomplete."""

    def adjust(self, logits: Any, text: "RuledText", ahead: Sequence[int], first: int) -> None:
        """Write to *logits*, a float32 tensor [len(ahead) + 1 - first, vocab], in place.

        Row i is for the token after `text` and `ahead[: first + i]`, which are speculated. The draft asks for one row
        at a time (`first == len(ahead)`), the target for all at once (`first == 0`). `vocab` may be narrower than the
        tokenizer's, or wider (a padded one). Where `ahead` holds a token that the rule forbids, the rows behind it
        are never used and may be left alone; no row may be left without any finite logit.
        """

    def permits(self, text: "RuledText", ahead: Sequence[int]) -> int:
        """How many tokens of *ahead* may follow *text*, one after the other; unless it is known, all of them."""
        return len(ahead)

    def forces(self, text: "RuledText") -> Sequence[int]:
        """The tokens that *text* goes on with, as far as there is only one way to go on."""
        return ()


@dataclass(eq=False, slots=True, weakref_slot=True)
class RuledText:
    """One request's prompt and output, committed tokens only, with what adjusts the logits behind it.

    `token_ids` is the request's own list and grows with it. Made once a request (`eq=False`: it is itself), so that
    what was counted so far can be kept by it.
    """

    sampling: SamplingParams
    token_ids: Sequence[int]
    num_prompt_tokens: int
    rule: LogitRule | None = None

    @classmethod
    def of(
        cls, sampling: SamplingParams, token_ids: Sequence[int], num_prompt_tokens: int, rule: LogitRule | None = None
    ) -> "RuledText | None":
        """None where nothing adjusts the logits."""
        if rule is None and not sampling.adjusts_logits:
            return None
        return cls(sampling, token_ids, num_prompt_tokens, rule)

    @property
    def num_output_tokens(self) -> int:
        """Committed output."""
        return len(self.token_ids) - self.num_prompt_tokens

    def output_from(self, start: int) -> Sequence[int]:
        """Committed output tokens from the *start*-th on."""
        return self.token_ids[self.num_prompt_tokens + start :]


@dataclass(eq=False, slots=True)
class Request:
    """State of one request, owned by the scheduler; `eq=False`: a request is itself, not its contents.

    `num_computed_tokens` chases `num_tokens`: that covers chunked prefill, preemption and speculation alike.
    `num_draft_computed_tokens` is the same for the draft model's KV and may lag behind.
    `noise_seed` keys all randomness: the user's seed, or one drawn at arrival.

    `tenant` is whom fairness counts it for; of one tenant's requests those of a smaller `priority` go first, then those
    that came first (`queue_number`). It waited `queue_seconds` for its first step.

    `cache_salt`: only requests with an equal one share a prefix. `num_cached_tokens` were found computed when the
    request first left the queue; `num_shared_tokens` of its tokens lie in blocks found, not computed, this time.
    `prompt_logprobs` are those of its prompt tokens from the second on, as far as they were wanted and computed.
    `prediction_token_ids` are what the client expects most of the output to be; of those drafted so far so many were
    accepted and rejected. `shows_special_tokens`: they are text, too.
    `rule` adjusts its logits beyond what `sampling` says; `ruled` is None where nothing adjusts them.
    `block_keys` are those of its full blocks, as far as anyone has asked; `num_published_blocks` were published.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    noise_seed: int
    arrival_time: float
    speculation: SpeculationParams = SpeculationParams()
    eos_token_ids: frozenset[int] = frozenset()
    priority: int = 0
    tenant: str = ""
    queue_number: int = 0
    queue_seconds: float = 0.0
    cache_salt: str = ""
    rule: LogitRule | None = None
    prediction_token_ids: Sequence[int] = ()
    shows_special_tokens: bool = False
    num_prediction_accepted: int = 0
    num_prediction_rejected: int = 0
    token_ids: list[int] = field(default_factory=list)
    verifier: Verifier = "greedy"
    num_computed_tokens: int = 0
    num_draft_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    status: RequestStatus = RequestStatus.WAITING
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    num_shared_tokens: int = 0
    num_published_blocks: int = 0
    block_keys: list[bytes] = field(default_factory=list)
    ruled: RuledText | None = field(init=False)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        self.ruled = RuledText.of(self.sampling, self.token_ids, len(self.prompt_token_ids), self.rule)

    @property
    def precedence(self) -> int:
        """Its priority where others are concerned: a tenant that has a name can be urgent only among its own."""
        return 0 if self.tenant else self.priority

    @property
    def num_tokens(self) -> int:
        """Prompt plus generated tokens."""
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def is_scoring(self) -> bool:
        """Whether log probabilities of prompt tokens are still to come: each needs its row computed."""
        wanted = self.sampling.prompt_logprobs is not None
        return wanted and len(self.prompt_logprobs) < len(self.prompt_token_ids) - 1

    def prompt_targets(self, start: int, end: int) -> list[int]:
        """The prompt tokens to score when tokens *start* to *end* are computed: each row foretells the next one."""
        if self.sampling.prompt_logprobs is None:
            return []
        return self.prompt_token_ids[max(start, len(self.prompt_logprobs)) + 1 : end + 1]

    def chunk(self, budget: int, scorable: int) -> int:
        """How many of its remaining tokens go into a step with room for *budget*, *scorable* of them to be scored."""
        num_tokens = min(self.num_remaining_tokens, budget)
        return min(num_tokens, scorable) if self.is_scoring else num_tokens

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens so far."""
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def num_remaining_tokens(self) -> int:
        """Committed tokens whose KV is not computed yet: 1 when the request decodes, more while it prefills."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """The generated tokens."""
        return self.token_ids[self.num_prompt_tokens :]
