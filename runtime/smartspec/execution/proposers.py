"""Who guesses ahead: a draft model, step by step, or the text itself (prompt lookup, decided with the plan).

How many tokens each request gets is fixed before the first is drawn, and nothing here drops one afterwards: under
rejection sampling, a length that depended on drawn tokens would bias the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from smartspec.execution.batch import Segment
from smartspec.execution.logit_rules import LogitRules, Span
from smartspec.execution.noise import Purpose, sample, seed_tensor, stream_keys
from smartspec.execution.sampler import SamplingTensors, process_logits
from smartspec.scheduling.output import Proposal, ScheduledRequest, SchedulerOutput


class DraftModel(Protocol):
    """The part of `PagedModel` that drafting needs."""

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Float32 logits [sum of `num_logits`, vocab] in segment order; keys and values are written to the cache."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """What was proposed in a step, by request id, and what it took.

    `draft_probs[request_id]` is float32 [len(proposal), vocab], only where a rejection verifier needs it. `num_fed` is
    the draft KV's length now, speculative tokens included. `batch_by_depth[j]` requests drew their token j;
    `context_tokens` is the sum, over draft forwards, of what they attended to; `catchup_tokens` committed tokens were
    fed before the first draw.
    """

    proposals: dict[str, Proposal] = field(default_factory=dict)
    draft_probs: dict[str, Tensor] = field(default_factory=dict)
    batch_by_depth: tuple[int, ...] = ()
    context_tokens: int = 0
    catchup_tokens: int = 0
    num_fed: dict[str, int] = field(default_factory=dict)


class Proposer:
    """Carries out a plan's choices of proposer and length.

    *vocab_size* is the target's, so that the draft never names a token the target does not know (None: as the draft's).
    Catch-up is fed at most *max_num_batched_tokens* tokens a forward.
    """

    def __init__(
        self,
        draft: DraftModel | None,
        *,
        vocab_size: int | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        max_num_batched_tokens: int = 2048,
    ) -> None:
        self._draft = draft
        self._vocab_size = vocab_size
        self._rules = LogitRules(eos_token_ids)
        self._max_num_batched_tokens = max_num_batched_tokens

    def propose(self, plan: SchedulerOutput) -> Drafts:
        """Draft for the plan's requests; without any that drafts, no forward runs."""
        drafts = Drafts(
            {
                r.request_id: Proposal.chain(r.lookup_tokens[: r.num_speculative_tokens])
                for r in plan.scheduled
                if r.proposer == "lookup" and r.num_speculative_tokens and r.lookup_tokens
            }
        )
        drafting = [r for r in plan.scheduled if r.proposer == "draft" and r.num_speculative_tokens]
        if not drafting:
            return drafts
        if self._draft is None:
            raise ValueError(f"request {drafting[0].request_id} is to be drafted, but no draft model is loaded")
        # The longest first: the requests that still draft at a depth are then always the first ones.
        drafting.sort(key=lambda r: -r.num_speculative_tokens)
        return self._draft_chains(self._draft, drafting, drafts.proposals)

    @torch.inference_mode()
    def _draft_chains(
        self, draft: DraftModel, requests: list[ScheduledRequest], proposals: dict[str, Proposal]
    ) -> Drafts:
        lengths = [r.draft_start + len(r.catchup_token_ids) for r in requests]
        chains: list[list[int]] = [[] for _ in requests]
        draws = _Draws(requests, lengths, self._rules)
        batch_by_depth: list[int] = []
        context_tokens = 0
        active = len(requests)
        for depth in range(requests[0].num_speculative_tokens):
            while requests[active - 1].num_speculative_tokens <= depth:
                active -= 1
            batch_by_depth.append(active)
            context_tokens += sum(lengths[:active]) + depth * active
            if depth == 0:
                logits = self._catch_up(draft, requests)
            else:
                logits = draft.forward(
                    [Segment(chains[i][-1:], lengths[i] + depth - 1, requests[i].block_table, 1) for i in range(active)]
                )
            for chain, token in zip(chains, draws.draw(logits[:, : self._vocab_size], chains), strict=False):
                chain.append(token)
        return Drafts(
            proposals | {r.request_id: Proposal.chain(chain) for r, chain in zip(requests, chains, strict=True)},
            draws.draft_probs(),
            tuple(batch_by_depth),
            context_tokens,
            sum(len(r.catchup_token_ids) for r in requests),
            {r.request_id: n + r.num_speculative_tokens - 1 for r, n in zip(requests, lengths, strict=True)},
        )

    def _catch_up(self, draft: DraftModel, requests: Sequence[ScheduledRequest]) -> Tensor:
        """Feed the committed tokens the draft has not seen; the logits after each request's newest."""
        segments = [Segment(r.catchup_token_ids, r.draft_start, r.block_table, 1) for r in requests]
        outputs = [draft.forward(chunk) for chunk in _split(segments, self._max_num_batched_tokens)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _Draws:
    """How one step's requests, sorted by falling length, draw their draft tokens.

    Each as the target would: under the request's own processing. A coupled request draws with the target's own noise
    of that position; a rejection request with noise of its own, and the distribution drawn from is kept.
    """

    def __init__(self, requests: list[ScheduledRequest], lengths: list[int], rules: LogitRules) -> None:
        self._requests = requests
        self._rules = rules
        self._ruled = [(i, r.ruled) for i, r in enumerate(requests) if r.ruled is not None]
        self._random = [i for i, r in enumerate(requests) if not (r.verifier == "greedy" or r.sampling.is_greedy)]
        self._rejection = [i for i in self._random if requests[i].verifier == "rejection"]
        self._starts: list[int] = []
        kept = 0
        for i in self._rejection:
            self._starts.append(kept)
            kept += requests[i].num_speculative_tokens
        self._num_kept = kept
        self._kept: Tensor | None = None
        self._keys = self._make_keys(lengths)
        self._params: SamplingTensors | None = None
        self._num_params = 0

    def draw(self, logits: Tensor, chains: Sequence[Sequence[int]]) -> list[int]:
        """The next tokens of the first `len(logits)` requests, whose tokens so far are *chains*."""
        active, depth = len(logits), len(chains[0])
        spans = [Span(i, text, chains[i], depth) for i, text in self._ruled if i < active]
        self._rules.adjust(logits, spans)
        random = [i for i in self._random if i < active]
        if not random:
            return logits.argmax(dim=1).tolist()
        rows = logits if len(random) == active else logits[torch.tensor(random, device=logits.device)]
        log_probs = process_logits(rows, self._sampling_tensors(random, logits.device))
        keys = self._keys[: len(random), depth].to(logits.device)
        drawn = sample(log_probs, keys).tolist()
        self._keep(log_probs, random, active, depth)
        if len(random) == active:
            return drawn
        tokens = logits.argmax(dim=1).tolist()
        for i, token in zip(random, drawn, strict=True):
            tokens[i] = token
        return tokens

    def draft_probs(self) -> dict[str, Tensor]:
        """The distributions that rejection requests drew from, [their length, vocab] each."""
        if self._kept is None:
            return {}
        requests = [self._requests[i] for i in self._rejection]
        return {
            r.request_id: self._kept[start : start + r.num_speculative_tokens]
            for r, start in zip(requests, self._starts, strict=True)
        }

    def _keep(self, log_probs: Tensor, random: list[int], active: int, depth: int) -> None:
        """Store the probabilities of rejection rows, each request's depths side by side."""
        rejection = {i for i in self._rejection if i < active}
        if not rejection:
            return
        if self._kept is None:
            self._kept = log_probs.new_empty(self._num_kept, log_probs.shape[1])
        places = torch.tensor([start + depth for start in self._starts[: len(rejection)]], device=log_probs.device)
        if len(rejection) < len(random):
            index = [row for row, i in enumerate(random) if i in rejection]
            log_probs = log_probs[torch.tensor(index, device=log_probs.device)]
        self._kept.index_copy_(0, places, log_probs.exp())

    def _sampling_tensors(self, random: list[int], device: torch.device) -> SamplingTensors:
        """Parameters of the rows that draw, rebuilt only when requests have dropped out."""
        if self._params is None or self._num_params != len(random):
            self._params = SamplingTensors.of([self._requests[i].sampling for i in random], device)
            self._num_params = len(random)
        return self._params

    def _make_keys(self, lengths: list[int]) -> Tensor:
        """Keys of noise [requests that draw at random, depth], at once for all depths."""
        requests = [self._requests[i] for i in self._random]
        purposes = [Purpose.DRAFT if r.verifier == "rejection" else Purpose.TOKEN for r in requests]
        first = torch.tensor([lengths[i] for i in self._random], dtype=torch.int64)
        depths = torch.arange(max((r.num_speculative_tokens for r in requests), default=0))
        return stream_keys(
            seed_tensor([r.noise_seed for r in requests])[:, None],
            first[:, None] + depths,
            torch.tensor(purposes, dtype=torch.int64)[:, None],
        )


def _split(segments: Sequence[Segment], max_tokens: int) -> Iterator[list[Segment]]:
    """The same rows in forwards of at most *max_tokens*; a segment cut in pieces has its logits in the last."""
    chunk: list[Segment] = []
    room = max_tokens
    for segment in segments:
        done, total = 0, len(segment.token_ids)
        while total - done > room:
            if room:
                piece = segment.token_ids[done : done + room]
                chunk.append(Segment(piece, segment.start + done, segment.block_table))
                done += room
            yield chunk
            chunk, room = [], max_tokens
        chunk.append(
            segment
            if not done
            else Segment(segment.token_ids[done:], segment.start + done, segment.block_table, segment.num_logits)
        )
        room -= total - done
    yield chunk
