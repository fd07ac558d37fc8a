"""One transformers model over its own paged cache: rows of many requests in, logits out."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from smartspec.execution.attention import LayerGeometry, answering, survey, use_paged_attention
from smartspec.execution.batch import Segment
from smartspec.execution.compiled_attention import CompiledAttention
from smartspec.execution.kv_cache import allocate
from smartspec.execution.packed_linear import Product
from smartspec.execution.ragged import Ints, RaggedBatch, pack
from smartspec.execution.torch_attention import TorchAttention

_SERIAL_WORK = 1 << 25
"""Multiply-adds of a step below which threads cost more than they bring: about a millisecond of one core."""


Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(token ids [1, T], positions [1, T], rows whose logits are wanted [L]) to logits [1, L, vocab]."""


def eager(model: PreTrainedModel) -> Forward:
    """*model* as transformers runs it."""

    def forward(input_ids: torch.Tensor, position_ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, logits_to_keep=kept
        ).logits
        return logits

    return forward


class AttentionBackend(Protocol):
    """Paged attention over the caches of all layers."""

    invariant: bool

    def begin(self, batch: RaggedBatch) -> None:
        """Prepare for a step."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Store, then attend; see `CompiledAttention.attend`."""


class PagedModel:
    """*model* with keys and values in blocks. It is put on paged attention, in evaluation mode, and kept so.

    `products` are the model's packed linear layers (`packed_linear.pack_linears`).
    `row_multiple`: rows are padded to a multiple of it, for matrix products whose bits depend on the number of rows.
    `hurries`: steps too small to be shared by threads run on one; their bits may then differ from larger steps', which
    only a draft can afford.
    Raises UnsupportedModelError when transformers does not let the model's attention be replaced.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        num_blocks: int,
        block_size: int,
        layers: Sequence[LayerGeometry] | None = None,
        products: Sequence[Product] = (),
        row_multiple: int = 1,
        hurries: bool = False,
    ) -> None:
        model.eval()
        use_paged_attention(model)
        self.model = model
        self.layers = list(layers if layers is not None else survey(model))
        self.products = products
        self.num_blocks, self.block_size, self.row_multiple = num_blocks, block_size, row_multiple
        self.vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        self.device = model.device
        self._hurries = hurries and self.device.type == "cpu"
        self._num_parameters: int = sum(p.numel() for p in model.parameters())
        self._num_parameters += sum(product.in_features * product.out_features for product in products)
        caches = allocate(self.layers, num_blocks=num_blocks, block_size=block_size, device=self.device)
        kinds = {layer.dtype for layer in self.layers}
        compiled = self.device.type == "cpu" and kinds in ({torch.float32}, {torch.bfloat16})
        self.attention: AttentionBackend = (CompiledAttention if compiled else TorchAttention)(self.layers, caches)
        self._next_layer = 0
        self.run_by(eager(model))

    def run_by(self, forward: Forward, *, least_rows: int = 1) -> None:
        """Let *forward* do what `eager(self.model)` does; it is given at least *least_rows* rows and logits."""
        self._forward = forward
        self._least_rows = max(least_rows, *(product.weight.least_rows for product in self.products), 1)

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Answer the next attention call of the running forward (see `attention.ForwardPass`)."""
        layer = self._next_layer
        self._next_layer = layer + 1
        return self.attention.attend(layer, query, key, value)

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        """float32 logits [sum(num_logits), vocab], rows in segment order; keys and values of all rows are stored."""
        batch = pack(segments, self.block_size, row_multiple=self.row_multiple, least_rows=self._least_rows)
        threads = torch.get_num_threads()
        if threads == 1 or not self._is_small(batch):
            return self._run(batch)
        torch.set_num_threads(1)
        try:
            return self._run(batch)
        finally:
            torch.set_num_threads(threads)

    def _is_small(self, batch: RaggedBatch) -> bool:
        if not self._hurries:
            return False
        attention = sum(g.num_heads * (g.key_dim + g.value_dim) for g in self.layers)
        work = len(batch.input_ids) * self._num_parameters + batch.context_tokens * attention
        return work <= _SERIAL_WORK

    def _run(self, batch: RaggedBatch) -> torch.Tensor:
        self.attention.begin(batch)
        self._next_layer = 0
        with answering(self):
            logits = self._forward(
                torch.from_numpy(batch.input_ids)[None].to(self.device),
                torch.from_numpy(batch.positions)[None].to(self.device),
                self._kept(batch.logit_rows),
            )
        return logits[0, : len(batch.logit_rows)].float()

    def _kept(self, rows: Ints) -> torch.Tensor:
        """The rows whose logits are wanted, padded as rows are: the last layer multiplies them too."""
        padded = -(-max(len(rows), self._least_rows) // self.row_multiple) * self.row_multiple
        kept = torch.zeros(padded, dtype=torch.int64)
        kept[: len(rows)] = torch.from_numpy(rows)
        return kept.to(self.device)
