"""The seam between the server and the engine behind it: what the server may ask, and what it gets.

`smartspec.async_engine.client.AsyncEngine` is the real one; tests of the server alone stand a fake beside it.
What there is one of for each sequence and step is a msgspec Struct, as in `output.py`.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import Struct

from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Proposer
from smartspec.scheduling.grammar import Grammar, GrammarSpec
from smartspec.scheduling.output import CopySource, StepStats
from smartspec.scheduling.request import FinishReason, LogitRule, SamplingParams, SpeculationParams


class QueueFullError(Exception):
    """No room in the queue; try again in about `retry_after_seconds` (computed from queue and throughput)."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"the queue is full; retry after {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


class NotAcceptingError(Exception):
    """The engine is loading, draining or has failed; the message says which."""


class InvalidRequestError(ValueError):
    """The request cannot be served; `param` names the field at fault."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class StalePolicyError(ValueError):
    """A policy of an older generation than the one in force, or priors with another key, was pushed."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate."""

    request_id: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    speculation: SpeculationParams = SpeculationParams()
    cache_salt: str = ""
    """Computed prefixes are shared only with requests of the same salt."""
    tenant: str = ""
    """Whom fairness counts it for; requests without a tenant are all one's, and leave no room for others."""
    priority: int = 0
    """A smaller one goes before the tenant's other requests."""
    rule: LogitRule | None = None
    """Adjusts the logits beyond what `sampling` says; made for this sequence alone."""
    prediction_token_ids: Sequence[int] = ()
    """What the client expects most of the answer to be: drafted from, never a part of the text by itself."""
    shows_special_tokens: bool = False
    """Whether special tokens are part of the text, as where they tell calls of tools from content."""
    is_streamed: bool = True
    """Whether each delta is wanted as it comes. If not, they come some dozens at a time: waking the reader for every
    step would take cores from the engine, for nobody."""


class StepExplanation(Struct, frozen=True, gc=False):
    """Where one step's tokens came from: of `num_drafted` proposed by `proposer` the first `num_accepted` tokens were
    kept, the others are the target's own. `pieces` has one text for each token; joined they are the delta's text. A
    token that ends inside a character, or may begin a stop string, has none: the text comes with a later token.
    """

    proposer: Proposer | CopySource | None
    num_drafted: int
    num_accepted: int
    pieces: tuple[str, ...]


class ScoredToken(Struct, frozen=True, gc=False):
    """A token with what the model itself says of it: log probability, rank (1: most probable), and the most probable
    tokens at its place, as many as were asked for. `octets` is its bytes; None where they are not known."""

    token_id: int
    text: str
    octets: bytes | None
    logprob: float
    rank: int
    top: tuple["ScoredToken", ...] = ()


class GenerationDelta(Struct, frozen=True, gc=False):
    """What one step added to a sequence. `text` never ends inside a character or a possible stop string; after the
    last delta (`finish_reason` set) all deltas' texts joined are the whole text, cut before a stop string.

    `time` is when the step was done, by the engine's clock: a reader may come later.
    `num_prompt_tokens` and `num_generation_tokens` are the totals so far; tokens past a stop are not among them.
    `num_cached_tokens` of the prompt were found computed. It waited `queue_seconds` for its first step.
    `logprobs` parallels `token_ids` when it was asked for; `prompt_logprobs`, in the first delta, are those of the
    prompt from its second token on. `explanation` is there when that was. Of the tokens drafted from the client's
    prediction so far, `num_prediction_accepted` were kept and `num_prediction_rejected` were not. `refusal`, with the
    finish reason "abort", says what in the request itself was at fault. `stop_reason`, with the finish reason "stop",
    is the request's stop string or stop token that ended the text; None for the model's own end.
    """

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_generation_tokens: int
    time: float
    logprobs: tuple[ScoredToken, ...] = ()
    prompt_logprobs: tuple[ScoredToken, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    queue_seconds: float = 0.0
    num_prediction_accepted: int = 0
    num_prediction_rejected: int = 0
    refusal: str | None = None
    explanation: StepExplanation | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was loaded, and what it can promise."""

    model: str
    max_model_len: int
    dtype: str
    device: str
    attention: str
    """"paged", "padded" (fallback) or "stateful" (no speculation)."""
    invariant: bool
    """Whether the same seed gives the same text under any load and policy on this device."""
    proposers: tuple[str, ...]
    num_blocks: int
    block_size: int
    key: str
    created: int
    target: str
    draft: str | None = None
    vocab_size: int | None = None
    """Token ids from 0 to this, exclusive, exist; None: not known."""


class Tokenizer(Protocol):
    """Text to ids and back."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of *text*."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of *token_ids*."""

    @property
    def chat_template(self) -> str | None:
        """The template that writes conversations with tools, if the model has one."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token that is no text by itself (half a character); None where the vocabulary does not say."""

    def token_of(self, text: str) -> int | None:
        """The token of its own that *text* has beside the vocabulary of plain text, if it has one."""

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The prompt for *messages*, ready for an answer; raises InvalidRequestError("messages", ...) when refused."""


class EngineClient(Protocol):
    """An engine as the server sees it. Everything here is called on the event loop and returns at once."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded; raises NotAcceptingError while loading."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer; raises NotAcceptingError while loading."""

    @property
    def failure(self) -> str | None:
        """Why the engine can no longer serve, or None while it can: liveness."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Queue *request* and yield its deltas. Closing the generator early aborts the request and frees its blocks
        before the next step. Raises QueueFullError, NotAcceptingError or InvalidRequestError before the first delta:
        at the call, not at the first iteration."""

    async def compile_grammar(self, spec: GrammarSpec) -> Grammar:
        """The grammar of *spec*, for rules of requests to come; waits until it is compiled. Raises GrammarError when
        it cannot be, QueueFullError when too many others wait, or NotAcceptingError."""

    def refuse_if_full(self, tenant: str) -> None:
        """Raise what `generate` would raise for the smallest request of *tenant*: QueueFullError, or NotAcceptingError.
        Cheap, so that a flood can be turned away before anybody reads what it asks."""

    def load(self) -> LoadReport:
        """Load now and over the recent window."""

    def settings(self) -> PolicySettings:
        """The policy in force."""

    def apply_settings(self, settings: PolicySettings) -> PolicySettings:
        """Make *settings* the policy from the next step on; raises StalePolicyError for an older generation or
        priors with another key. Returns what is in force; pushing what is in force changes nothing."""

    def speculation(self) -> dict[str, Any]:
        """What the policy chose lately and why, as JSON-ready data."""

    def subscribe(self, observer: Callable[[StepStats], None]) -> None:
        """Call *observer* on the event loop with each step's statistics."""

    def start_draining(self) -> None:
        """Accept no more requests; what runs or waits is finished."""

    async def wait_drained(self) -> None:
        """Return when nothing runs or waits."""
