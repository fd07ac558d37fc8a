"""What crosses the seams of a step: the scheduler's plan, the runner's result, and what the engine reports.

What there is one of for each request and step is a msgspec Struct: made in a tenth of a frozen dataclass's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

from smartspec.policy.types import Decision, Proposer, StepFeatures, StepSeconds, Verifier
from smartspec.scheduling.request import FinishReason, RuledText, SamplingParams, TokenLogprob

CopySource = Literal["lookup", "prediction", "grammar"]
"""Where tokens that the proposer "lookup" proposes were copied from. The policy weighs them all alike, by the length of
the match."""


class Proposal(Struct, frozen=True, gc=False):
    """A tree of speculative tokens below a request's last committed token.

    Node i holds `token_ids[i]` and hangs under node `parents[i]` (-1: under the last committed token); parents come
    before children. A chain has `parents == (-1, 0, 1, ...)`.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]

    @classmethod
    def chain(cls, token_ids: Sequence[int]) -> "Proposal":
        """The usual case: each token below the one before."""
        return cls(tuple(token_ids), tuple(range(-1, len(token_ids) - 1)))

    @property
    def is_chain(self) -> bool:
        """Whether no node has a sibling."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    def __len__(self) -> int:
        return len(self.token_ids)


class ScheduledRequest(Struct, frozen=True, gc=False):
    """One request's part of a step.

    `token_ids` are the committed tokens whose KV is computed now, from absolute position `start`; the speculative
    nodes follow them. `samples` says whether the last of them is the request's newest token, so that a next token is
    drawn. `proposer` with `num_speculative_tokens` is the policy's choice; `lookup_tokens` are the copied tokens when
    the proposer is "lookup". `draft_start` is the draft model's own progress (<= start), and `catchup_token_ids` the
    committed tokens from `draft_start` up to and including the newest that the draft must be fed before it drafts.
    `ruled` is the text with what adjusts its logits, None for most. `prompt_targets` are the prompt tokens that the
    last rows foretell and whose log probabilities are wanted (a row that samples comes behind them).
    Blocks for all rows, speculative ones included, are in `block_table` already.
    """

    request_id: str
    token_ids: Sequence[int]
    start: int
    samples: bool
    block_table: Sequence[int]
    sampling: SamplingParams
    noise_seed: int
    verifier: Verifier
    num_output_tokens: int = 0
    proposer: Proposer | None = None
    num_speculative_tokens: int = 0
    lookup_tokens: tuple[int, ...] = ()
    lookup_match_tokens: int = 0
    lookup_source: CopySource = "lookup"
    ruled: RuledText | None = None
    prompt_targets: Sequence[int] = ()
    draft_start: int = 0
    catchup_token_ids: Sequence[int] = ()

    @property
    def source(self) -> Proposer | CopySource | None:
        """Who proposes, and with copied tokens where they were copied from."""
        return self.lookup_source if self.proposer == "lookup" else self.proposer


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """The plan of one step. Empty `scheduled` means that there is nothing to do.

    `first_scheduled` are the requests that leave the queue for the first time in this step; of `prefix_query_tokens`
    tokens of theirs `prefix_hit_tokens` were found in the prefix cache (both 0 without one).
    """

    scheduled: tuple[ScheduledRequest, ...]
    decision: Decision
    num_prefill_tokens: int = 0
    num_preempted: int = 0
    first_scheduled: tuple[str, ...] = ()
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Rows of the target's forward: committed tokens plus speculative nodes."""
        return sum(len(r.token_ids) + r.num_speculative_tokens for r in self.scheduled)


class SampledTokens(Struct, frozen=True, gc=False):
    """What the runner found for one request that samples: `token_ids` to commit in order (the accepted ones, then one
    recovered or bonus token), of `num_drafted` proposed nodes `num_accepted` were kept. `logprobs` parallels
    `token_ids` when asked for, from the raw distribution (before temperature and filters)."""

    token_ids: tuple[int, ...]
    num_drafted: int = 0
    num_accepted: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRunnerOutput:
    """The result of one step: `sampled[request_id]` for every scheduled request that samples.

    `num_draft_computed[request_id]` is the draft model's progress in tokens after the step, for requests that used it
    (already cut back to what was accepted). `features` is what really ran, `seconds` how long.
    `prompt_logprobs[request_id]` parallels the plan's `prompt_targets`.
    """

    sampled: dict[str, SampledTokens]
    num_draft_computed: dict[str, int]
    features: StepFeatures
    seconds: StepSeconds
    prompt_logprobs: dict[str, list[TokenLogprob]] = field(default_factory=dict)


class RequestOutput(Struct, frozen=True, gc=False):
    """New tokens of one request after a step, and its end if it came. The first `num_accepted` of them were proposed,
    by `proposer`; the others are the target's own. With the first ones comes what was asked of the prompt's tokens,
    from the second on (nothing foretells the first)."""

    request_id: str
    new_token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    num_drafted: int = 0
    num_accepted: int = 0
    proposer: Proposer | CopySource | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step as data; exporters and traces observe it."""

    decision: Decision
    features: StepFeatures
    seconds: StepSeconds
    tokens_kept: int
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    num_preempted: int = 0
    drafted_by_proposer: dict[str, int] = field(default_factory=dict)
    accepted_by_proposer: dict[str, int] = field(default_factory=dict)
    k_by_request: tuple[tuple[str, int], ...] = ()
    """(proposer or "none", k) for every decoding request of the step: the histogram's raw data."""
    accepted_by_position: tuple[int, ...] = ()
    num_drafts: int = 0
    catchup_tokens: int = 0
    queue_seconds: tuple[float, ...] = ()
    """From arrival to this step, for every request whose first step this is."""
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one engine step brought; `first_scheduled` as in its plan."""

    outputs: tuple[RequestOutput, ...]
    stats: StepStats | None
    first_scheduled: tuple[str, ...] = ()
