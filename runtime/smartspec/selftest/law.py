"""Whether rejection sampling keeps the target's law: a chi-square test through the whole engine.

The law of a text over a whole vocabulary cannot be written down, so the pair's own distributions are cut to their most
probable tokens and made a Markov chain: what follows a token is what target and draft really say after it, behind one
prompt. Everything else is the engine as it serves: scheduler, proposers, verifiers, noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from smartspec.execution.batch import Segment
from smartspec.execution.loader import LoadedModel, Model
from smartspec.policy.types import Proposer
from smartspec.scheduling.request import SamplingParams
from smartspec.selftest.report import Check
from smartspec.selftest.runs import Served, fixed, requests_of, run

VOCAB = 24
NUM_TOKENS = 4
K = 3
BATCH = 256
CERTAIN = 0.5
"""Chains whose most probable token is more likely than this on average are made warmer: where all is certain, a wrong
law looks right."""
AGREED = 0.5
"""Where a draft is accepted more often than this, what sets it apart from the target is made more of: a wrong recovery
shows in rejected tokens alone."""
LEAST_EXPECTED = 5.0
LEAST_P_VALUE = 1e-6
"""The noise is the same on every run, so that a verdict is too; sound code fails for one pair in a million."""


class Chain:
    """Stands where a model does: the logits after a token are that token's row of *table* [vocab, vocab]."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.vocab_size = len(table)

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """As a model's forward, without a cache."""
        rows = [token for s in segments for token in s.token_ids[len(s.token_ids) - s.num_logits :]]
        return self.table[torch.tensor(rows, dtype=torch.int64)]


@dataclass(frozen=True)
class Chains:
    """The target's and the draft's chains over the same tokens, as tables of logits [vocab, vocab]."""

    target: Tensor
    draft: Tensor | None


def chains_of(model: LoadedModel, prompt: Sequence[int]) -> Chains:
    """The pair's own distributions behind *prompt*, over the target's most probable tokens there."""
    first = _logits(model.target, prompt)
    if model.draft is not None:  # tokens that only the draft believes in are what must be rejected
        size = min(len(first), model.draft.vocab_size)
        first[:size] = torch.maximum(first[:size].log_softmax(0), _logits(model.draft, prompt)[:size].log_softmax(0))
    tokens = first.topk(min(VOCAB, len(first))).indices.tolist()
    if model.draft is not None:
        tokens = [token for token in tokens if token < model.draft.vocab_size]

    def table(of: Model) -> Tensor:
        return torch.stack([_logits(of, [*prompt, token])[tokens] for token in tokens])

    target, draft = table(model.target), None if model.draft is None else table(model.draft)
    warmth = _warmth(target)
    return Chains(target / warmth, None if draft is None else _estranged(draft / warmth, target / warmth))


def check(served: Served, chains: Chains, proposer: Proposer, num_draws: int) -> Check:
    """Chi-square of later tokens, alone and in pairs, of *num_draws* texts whose tokens *proposer* proposes."""
    title = f"chi-square, rejection, {proposer}"
    draft = None if chains.draft is None or proposer != "draft" else Chain(chains.draft)
    model = replace(
        served.model,
        target=cast(Model, Chain(chains.target)),
        draft=cast(Model | None, draft),
        eos_token_ids=frozenset(),
        num_blocks=16 * BATCH,
        block_size=16,
        max_model_len=4 * VOCAB + NUM_TOKENS,
        proposers=(proposer,),
    )
    prompt = _prompt(chains.target)
    sampling = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    found = run(
        replace(served, model=model).with_batches_of(BATCH),
        fixed(K),
        requests_of([prompt] * num_draws, sampling, "rejection"),
    )
    texts = torch.tensor([found.texts[str(i)] for i in range(num_draws)])
    law = _law(chains.target, prompt[-1])
    p_values = [_p_value(texts[:, axes], _marginal(law, axes)) for axes in ([1], [2], [0, 1], [1, 2])]
    worst = min(p_values)
    rate = found.num_accepted / max(1, found.num_drafted)
    return Check(
        title,
        "ok" if worst > LEAST_P_VALUE else "failed",
        f"least p-value {worst:.2g} of {num_draws} texts; {rate:.0%} of {found.num_drafted} proposed tokens accepted",
    )


def _logits(model: Model, token_ids: Sequence[int]) -> Tensor:
    """The last row's, on the CPU; the first blocks of the cache are written to."""
    blocks = range(-(-len(token_ids) // model.block_size))
    with torch.inference_mode():
        row = model.forward([Segment(list(token_ids), 0, blocks, 1)])[0]
    return row.float().cpu().clone()  # a copy made outside may be written to


def _warmth(table: Tensor) -> float:
    warmth = 1.0
    while warmth < 64.0 and float((table / warmth).softmax(1).amax(1).mean()) > CERTAIN:
        warmth *= 1.25
    return warmth


def _estranged(draft: Tensor, target: Tensor) -> Tensor:
    """*draft* with its difference from *target* stretched until it is accepted no more than `AGREED` on average; a
    draft that is the target's twin guesses in reverse."""
    apart, probs = draft - target, target.softmax(1)
    for stretch in (1.25**step for step in range(24)):
        stranger = target + stretch * apart
        if float(torch.minimum(stranger.softmax(1), probs).sum(1).mean()) <= AGREED:
            return stranger
    return target.flip(1)


def _prompt(table: Tensor) -> list[int]:
    """A text that ends on token 0 and has shown before what may follow each token after it: lookup finds a match."""
    likely = table.argmax(dim=1).tolist()
    return [*(token for x in range(len(table)) for token in (0, x, likely[x])), 0]


def _law(table: Tensor, start: int) -> Tensor:
    """The joint law of the first three tokens [vocab, vocab, vocab] in float64."""
    steps = table.double().softmax(dim=1)
    return steps[start][:, None, None] * steps[:, :, None] * steps[None, :, :]


def _marginal(law: Tensor, axes: list[int]) -> Tensor:
    others = [axis for axis in range(3) if axis not in axes]
    return law.sum(dim=others)


def _p_value(texts: Tensor, law: Tensor) -> float:
    """Chi-square of *texts* [draws, axes] under *law*, rare cells pooled."""
    cells = texts[:, 0] if texts.shape[1] == 1 else texts[:, 0] * law.shape[1] + texts[:, 1]
    counts = torch.bincount(cells, minlength=law.numel()).double()
    expected, order = (law.flatten() * len(texts)).sort()
    # From the rarest on, cells are put together until each pool is expected often enough.
    pools, room = [], 0.0
    pool = 0
    for value in expected.tolist():
        pools.append(pool)
        room += value
        if room >= LEAST_EXPECTED:
            pool, room = pool + 1, 0.0
    index = torch.tensor(pools).clamp_max(max(pool - 1, 0))
    size = int(index[-1]) + 1
    observed = torch.zeros(size, dtype=torch.float64).index_add_(0, index, counts[order])
    wanted = torch.zeros(size, dtype=torch.float64).index_add_(0, index, expected)
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((size - 1) / 2, dtype=torch.float64), statistic / 2))
