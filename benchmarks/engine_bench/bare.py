"""The reference: the model's plain transformers forward over a preallocated cache, eager or compiled for a shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StaticCache

from engine_bench.timing import Contender


class BareModel:
    """A model as transformers loads it, in bfloat16, with torch's own attention."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
        ).eval()
        self.config = self.model.config

    def step(self, batch: int, rows: int, context: int) -> "BareStep":
        """*batch* requests, each with its last *rows* of *context* tokens."""
        return BareStep(self, batch, rows, context)


class BareStep:
    """Steps of one shape: the cache is exactly as long as the context, so no key is computed in vain."""

    def __init__(self, bare: BareModel, batch: int, rows: int, context: int) -> None:
        self._model = bare.model
        config = bare.config
        self._before = context - rows
        self._cache = StaticCache(config=config, max_cache_len=context)
        self._cache.early_initialization(
            batch, config.num_key_value_heads, config.head_dim, torch.bfloat16, torch.device("cpu")
        )
        for layer in self._cache.layers:
            for kept in (layer.keys, layer.values):
                kept.copy_(torch.randn(1, *kept.shape[1:], dtype=kept.dtype).expand_as(kept))
        self._positions = torch.arange(self._before, context)[None].expand(batch, rows).contiguous()

    def contender(self, ids: torch.Tensor) -> Contender:
        """The eager forward of *ids* [batch, rows]."""
        return Contender(lambda: self.logits(ids), self._rewind)

    def compiled(self, ids: torch.Tensor) -> Contender:
        """The forward compiled by inductor for exactly this shape, its weights frozen in; takes some 20 s."""
        from torch._dynamo import config as dynamo
        from torch._inductor import config as inductor  # heavy, and only wanted here

        def forward(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self._model(
                input_ids=ids, position_ids=positions, past_key_values=self._cache, use_cache=True
            ).logits
            return logits

        compiled: Callable[..., torch.Tensor] = torch.compile(forward, dynamic=False, fullgraph=True)

        @torch.no_grad()
        def run() -> torch.Tensor:
            return compiled(ids, self._positions)

        with inductor.patch(freezing=True), dynamo.patch(recompile_limit=64, accumulated_recompile_limit=1024):
            for _ in range(2):
                self._rewind()
                run()
        return Contender(run, self._rewind)

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """[batch, rows, vocab]; the cache must be where the context before the rows ends (`contender` sees to it)."""
        logits: torch.Tensor = self._model(
            input_ids=ids, position_ids=self._positions, past_key_values=self._cache, use_cache=True
        ).logits
        return logits

    def _rewind(self) -> None:
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._before)
