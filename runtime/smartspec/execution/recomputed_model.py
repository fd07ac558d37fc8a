"""The slow way that is always right: every request's whole text through the model, as transformers itself runs it.

For models that cannot be run over a paged cache: their masks or their state are not ours to keep. Only token ids are
kept, in blocks like keys and values would be, so that scheduling, preemption, speculation and its roll-back need not
know the difference.
"""

import inspect
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from smartspec.execution.batch import Segment
from smartspec.execution.ragged import Ints

_MOST_TOKENS = 8192
"""Padded tokens of one forward, at most (a single longer request excepted)."""


class RecomputedModel:
    """*model* under the interface of `PagedModel`. `batches`: requests may share a forward, padded on the right, where
    causal attention keeps the padding out of sight; otherwise each has a forward of its own."""

    def __init__(self, model: PreTrainedModel, *, num_blocks: int, block_size: int, batches: bool) -> None:
        self.model = model.eval()
        self.num_blocks, self.block_size = num_blocks, block_size
        self.vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        self.device = model.device
        self._batches = batches
        self._tokens = np.zeros((num_blocks, block_size), dtype=np.int64)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        """float32 logits [sum(num_logits), vocab], rows in segment order; token ids of all rows are stored."""
        for segment in segments:
            self._store(segment)
        wanted = [(i, self._text(s)) for i, s in enumerate(segments) if s.num_logits]
        logits: dict[int, torch.Tensor] = {}
        for group in self._groups(wanted):
            self._run([(i, text, segments[i].num_logits) for i, text in group], logits)
        rows = [logits[i] for i, _ in wanted]
        return torch.cat(rows) if rows else torch.empty((0, self.vocab_size), device=self.device)

    def _store(self, segment: Segment) -> None:
        places = np.arange(segment.start, segment.start + len(segment.token_ids))
        blocks = np.fromiter(segment.block_table, np.int64, len(segment.block_table))
        self._tokens[blocks[places // self.block_size], places % self.block_size] = segment.token_ids

    def _text(self, segment: Segment) -> Ints:
        length = segment.start + len(segment.token_ids)
        blocks = np.fromiter(segment.block_table, np.int64, len(segment.block_table))
        text: Ints = self._tokens[blocks[: -(-length // self.block_size)]].reshape(-1)[:length]
        return text

    def _groups(self, texts: list[tuple[int, Ints]]) -> Iterator[list[tuple[int, Ints]]]:
        """Requests that share a forward: alike in length, and not too many."""
        group: list[tuple[int, Ints]] = []
        for item in sorted(texts, key=lambda item: -len(item[1])):
            longest = len(group[0][1]) if group else 0
            if group and (not self._batches or longest * (len(group) + 1) > _MOST_TOKENS):
                yield group
                group = []
            group.append(item)
        if group:
            yield group

    def _run(self, group: list[tuple[int, Ints, int]], logits: dict[int, torch.Tensor]) -> None:
        input_ids = np.zeros((len(group), max(len(text) for _, text, _ in group)), dtype=np.int64)
        for row, (_, text, _) in enumerate(group):
            input_ids[row, : len(text)] = text
        needed = np.unique(np.concatenate([np.arange(len(text) - n, len(text)) for _, text, n in group]))
        options = {"logits_to_keep": torch.from_numpy(needed).to(self.device)} if self._keeps else {}
        output = self.model(input_ids=torch.from_numpy(input_ids).to(self.device), use_cache=False, **options).logits
        if not self._keeps:
            output = output[:, torch.from_numpy(needed).to(self.device)]
        for row, (index, text, count) in enumerate(group):
            last = int(np.searchsorted(needed, len(text) - 1)) + 1
            logits[index] = output[row, last - count : last].float()
