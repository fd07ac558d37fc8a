"""Which proposed tokens stand, and which token follows them: the text is the target's, speculation or not.

Three verifiers, mixed freely in one call:

* `greedy`: accept while the proposal is the target's most probable token; the first that is not is replaced by it.
* `coupled`: the token at absolute position t *is* argmax(log target_probs + Gumbel(seed, t)); accept while the proposal
  equals it. The text is a function of seed and target alone, for any proposer and length (arXiv 2408.07978).
* `rejection`: accept with probability min(1, target_probs / draft_probs), else recover from the normalised positive
  residual; when all stand, a bonus token follows (arXiv 2211.17192). Most accepted, but the text is equal only in law.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import torch
from msgspec import Struct
from torch import Tensor

from smartspec.execution.logit_rules import LogitRules, Span
from smartspec.execution.logprobs import score
from smartspec.execution.noise import Purpose, sample, seed_tensor, stream_keys, uniform
from smartspec.execution.sampler import SamplingTensors, process_logits
from smartspec.policy.types import Verifier
from smartspec.scheduling.output import Proposal, SampledTokens
from smartspec.scheduling.request import RuledText, SamplingParams, TokenLogprob


class VerificationRow(Struct, frozen=True, gc=False):
    """One request that samples: what it proposed, and all that its randomness and processing depend on.

    `position` is the absolute position of the first token to choose: the committed length. `draft_probs` is float
    [len(proposal), draft vocab], the distributions the proposal was drawn from; None says that the proposal is
    deterministic (copied, or an argmax). `ruled` is the committed text with what adjusts its logits, if anything does.
    """

    sampling: SamplingParams
    noise_seed: int
    position: int
    verifier: Verifier
    proposal: Proposal | None = None
    draft_probs: Tensor | None = None
    ruled: RuledText | None = None

    @property
    def num_proposed(self) -> int:
        """Tokens proposed, 0 without speculation."""
        return 0 if self.proposal is None else len(self.proposal)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Requests that one method verifies: `rows[i]` owns the logits from `offsets[i]`, one row more than it proposed."""

    rows: list[VerificationRow]
    offsets: list[int]
    logits: Tensor

    @classmethod
    def select(
        cls, rows: Sequence[VerificationRow], offsets: Sequence[int], logits: Tensor, which: list[int]
    ) -> "_Batch":
        """The requests *which*, with their logits packed."""
        chosen = [rows[i] for i in which]
        if len(chosen) == len(rows):
            return cls(chosen, list(offsets), logits)
        index = [row for i in which for row in range(offsets[i], offsets[i] + rows[i].num_proposed + 1)]
        return cls(chosen, _offsets(chosen), logits[torch.tensor(index, device=logits.device)])

    def log_probs(self) -> Tensor:
        """The target's distribution in each row, as it is sampled from."""
        params = [row.sampling for row in self.rows for _ in range(row.num_proposed + 1)]
        return process_logits(self.logits, SamplingTensors.of(params, self.logits.device))

    def keys(self) -> Tensor:
        """The key of noise for choosing a token in each row."""
        positions = [row.position + j for row in self.rows for j in range(row.num_proposed + 1)]
        seeds = [row.noise_seed for row in self.rows for _ in range(row.num_proposed + 1)]
        return _keys(seeds, positions, Purpose.TOKEN, self.logits.device)


@torch.inference_mode()
def verify(logits: Tensor, rows: Sequence[VerificationRow], rules: LogitRules | None = None) -> list[SampledTokens]:
    """Accept a prefix of each proposal and choose one token more.

    *logits* is float32 [sum(num_proposed + 1), vocab]: per request one row for each proposed token and one past the
    last, in order; those that *rules* adjust are written to. Returns one result per row of *rows*; it depends on that
    row alone, not on the others.
    """
    offsets = _offsets(rows)
    total = offsets[-1] + rows[-1].num_proposed + 1 if rows else 0
    if logits.shape[0] != total:
        raise ValueError(f"logits must have {total} rows for these proposals, got {logits.shape[0]}")
    for row in rows:
        _check(row)
    spans = [
        Span(offset, row.ruled, row.proposal.token_ids if row.proposal else ())
        for row, offset in zip(rows, offsets, strict=True)
        if row.ruled is not None
    ]
    raw = _raw_logits(logits, rows, offsets)
    if spans:
        (rules or LogitRules()).adjust(logits, spans)

    greedy = [i for i, row in enumerate(rows) if row.verifier == "greedy" or row.sampling.is_greedy]
    coupled = [i for i, row in enumerate(rows) if row.verifier == "coupled" and not row.sampling.is_greedy]
    rejection = [i for i, row in enumerate(rows) if row.verifier == "rejection" and not row.sampling.is_greedy]
    tokens: list[tuple[int, ...]] = [()] * len(rows)
    for which, method in ((greedy, _verify_greedy), (coupled, _verify_coupled), (rejection, _verify_rejection)):
        if which:
            for i, kept in zip(which, method(_Batch.select(rows, offsets, logits, which)), strict=True):
                tokens[i] = kept
    logprobs = _logprobs(raw, rows, tokens)
    return [
        SampledTokens(kept, num_drafted=row.num_proposed, num_accepted=len(kept) - 1, logprobs=logprobs.get(i, ()))
        for i, (row, kept) in enumerate(zip(rows, tokens, strict=True))
    ]


def residual_log_probs(target_log_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """log max(target_probs - draft_probs, 0), not normalised: what a rejected token is recovered from, row by row.

    A draft vocabulary narrower than the target's has no mass on the rest. Where rounding leaves no residual at all,
    both distributions are equal and the target's own is returned.
    """
    residual = target_log_probs.exp()
    residual[:, : draft_probs.shape[1]] -= draft_probs
    residual.clamp_min_(0.0)
    empty = residual.amax(dim=1, keepdim=True) == 0.0
    return torch.where(empty, target_log_probs, residual.log_())


def _verify_greedy(batch: _Batch) -> list[tuple[int, ...]]:
    """Accept while equal to the most probable token."""
    return _accept_while_equal(batch, batch.logits.argmax(dim=1).tolist())


def _verify_coupled(batch: _Batch) -> list[tuple[int, ...]]:
    """Accept while equal to the token that the noise of its position chooses."""
    return _accept_while_equal(batch, sample(batch.log_probs(), batch.keys()).tolist())


def _accept_while_equal(batch: _Batch, chosen: list[int]) -> list[tuple[int, ...]]:
    """The target's own tokens up to the first that the proposal did not foresee, or one past the proposal."""
    results: list[tuple[int, ...]] = []
    for row, offset in zip(batch.rows, batch.offsets, strict=True):
        end = 0
        if row.proposal is not None:
            for proposed in row.proposal.token_ids:
                if proposed != chosen[offset + end]:
                    break
                end += 1
        results.append(tuple(chosen[offset : offset + end + 1]))
    return results


def _verify_rejection(batch: _Batch) -> list[tuple[int, ...]]:
    """Accept by the ratio of probabilities; recover where it failed, or add a bonus."""
    log_probs = batch.log_probs()
    device = log_probs.device
    num_accepted = _count_accepted(batch, log_probs)
    outcomes = list(zip(batch.rows, num_accepted, strict=True))
    last = torch.tensor([o + n for o, n in zip(batch.offsets, num_accepted, strict=True)], device=device)
    final = log_probs[last]
    rejected = [i for i, (row, n) in enumerate(outcomes) if n < row.num_proposed]
    if rejected:
        at = torch.tensor(rejected, device=device)
        draft = _draft_rows([(batch.rows[i], num_accepted[i]) for i in rejected], final.shape[1], device)
        final[at] = residual_log_probs(final[at], draft)
    purposes = [Purpose.RECOVER if n < row.num_proposed else Purpose.TOKEN for row, n in outcomes]
    seeds, positions = [row.noise_seed for row in batch.rows], [row.position + n for row, n in outcomes]
    chosen = sample(final, _keys(seeds, positions, purposes, device)).tolist()
    return [
        (*(row.proposal.token_ids[:n] if row.proposal else ()), token)
        for row, n, token in zip(batch.rows, num_accepted, chosen, strict=True)
    ]


def _count_accepted(batch: _Batch, log_probs: Tensor) -> list[int]:
    """How many proposed tokens of each request pass, each with probability min(1, target_probs / draft_probs)."""
    owners = zip(batch.rows, batch.offsets, strict=True)
    proposals = [(row, offset, row.proposal) for row, offset in owners if row.proposal]
    device = log_probs.device
    if not proposals:
        return [0] * len(batch.rows)
    tokens = torch.tensor([token for _, _, proposal in proposals for token in proposal.token_ids], device=device)
    places = torch.tensor([offset + j for row, offset, _ in proposals for j in range(row.num_proposed)], device=device)
    seeds = [row.noise_seed for row, _, _ in proposals for _ in range(row.num_proposed)]
    positions = [row.position + j for row, _, _ in proposals for j in range(row.num_proposed)]
    draft = torch.ones(len(tokens), dtype=torch.float64, device=device)
    start = 0
    for row, _, _ in proposals:
        end = start + row.num_proposed
        if row.draft_probs is not None:
            draft[start:end] = row.draft_probs.gather(1, tokens[start:end, None])[:, 0].double()
        start = end
    target = log_probs[places, tokens].exp().double()
    # In float64 u * draft < draft for every u below 1: a token as probable under both is never rejected.
    passed = (uniform(_keys(seeds, positions, Purpose.ACCEPT, device)) * draft < target).tolist()
    counts: list[int] = []
    start = 0
    for row in batch.rows:
        run = passed[start : start + row.num_proposed]
        counts.append(run.index(False) if False in run else len(run))
        start += row.num_proposed
    return counts


def _draft_rows(rejected: Sequence[tuple[VerificationRow, int]], vocab: int, device: torch.device) -> Tensor:
    """The draft's distribution at each rejected position, [rejected, vocab]; one-hot for deterministic proposals."""
    draft = torch.zeros(len(rejected), vocab, device=device)
    for i, (row, j) in enumerate(rejected):
        if row.draft_probs is not None:
            draft[i, : row.draft_probs.shape[1]] = row.draft_probs[j]
        elif row.proposal is not None:
            draft[i, row.proposal.token_ids[j]] = 1.0
    return draft


def _raw_logits(logits: Tensor, rows: Sequence[VerificationRow], offsets: list[int]) -> dict[int, Tensor]:
    """The logits of requests that ask for log probabilities, as the model gave them: copies where they are adjusted."""
    raw: dict[int, Tensor] = {}
    for i, row in enumerate(rows):
        if row.sampling.logprobs is not None:
            own = logits[offsets[i] : offsets[i] + row.num_proposed + 1]
            raw[i] = own if row.ruled is None else own.clone()
    return raw


def _logprobs(
    raw: dict[int, Tensor], rows: Sequence[VerificationRow], tokens: list[tuple[int, ...]]
) -> dict[int, tuple[TokenLogprob, ...]]:
    """Of the chosen tokens, by the number of the request in *rows*."""
    if not raw:
        return {}
    logits = torch.cat([own[: len(tokens[i])] for i, own in raw.items()])
    scored = iter(
        score(
            logits,
            [token for i in raw for token in tokens[i]],
            [rows[i].sampling.logprobs or 0 for i in raw for _ in tokens[i]],
        )
    )
    return {i: tuple(islice(scored, len(tokens[i]))) for i in raw}


def _check(row: VerificationRow) -> None:
    """Refuse what the verifiers cannot judge."""
    if row.proposal is not None and not row.proposal.is_chain:
        raise ValueError(f"proposal must be a chain, got a tree with parents {row.proposal.parents}")
    if row.draft_probs is not None and row.draft_probs.shape[0] != row.num_proposed:
        raise ValueError(f"draft_probs must have {row.num_proposed} rows, got {row.draft_probs.shape[0]}")


def _offsets(rows: Sequence[VerificationRow]) -> list[int]:
    """Where each request's rows of logits begin."""
    return [0, *accumulate(row.num_proposed + 1 for row in rows)][: len(rows)]


def _keys(
    seeds: Sequence[int], positions: Sequence[int], purposes: Sequence[int] | int, device: torch.device
) -> Tensor:
    """Keys of noise, one per seed and position."""
    purpose = purposes if isinstance(purposes, int) else torch.tensor(purposes, device=device)
    return stream_keys(seed_tensor(seeds, device), torch.tensor(positions, device=device), purpose)
