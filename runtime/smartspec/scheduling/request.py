"""One request: what was asked, and how far it has come."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from smartspec.policy.types import SpeculationMode, Verifier

FinishReason = Literal["stop", "length", "abort"]


class RequestStatus(Enum):
    """Where a request is: `WAITING` in the queue (new or preempted), `RUNNING` in the batch, or `FINISHED`."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to end. `top_k` 0, `top_p` 1 and `min_p` 0 filter nothing.

    `seed` is the user's, None when none was named. `stop` strings are matched on text, by whoever detokenises;
    everything else is on token ids. `logprobs` asks for the chosen token's log probability.
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
    logprobs: bool = False

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken each time."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class SpeculationParams:
    """The request field `speculation`: *mode*, and with `fixed` (or as a ceiling with `auto`) *max_tokens*."""

    mode: SpeculationMode = "auto"
    max_tokens: int | None = None


@dataclass(eq=False, slots=True)
class Request:
    """State of one request, owned by the scheduler; `eq=False`: a request is itself, not its contents.

    `num_computed_tokens` chases `num_tokens`: that covers chunked prefill, preemption and speculation alike.
    `num_draft_computed_tokens` is the same for the draft model's KV and may lag behind.
    `noise_seed` keys all randomness: the user's seed, or one drawn at arrival.

    `cache_salt`: only requests with an equal one share a prefix. `num_cached_tokens` were found computed when the
    request first left the queue; `num_shared_tokens` of its tokens lie in blocks found, not computed, this time.
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
    cache_salt: str = ""
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

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt plus generated tokens."""
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

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
