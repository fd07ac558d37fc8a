"""The same weights in transformers' own hands: what `generate()` says, and where it can hardly decide."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from smartspec.config import ModelConfig
from smartspec.execution import checkpoint, self_check
from smartspec.execution.checkpoint import Source
from smartspec.execution.self_check import Verdict

CLOSE = {torch.float32: 1e-4}
CLOSE_LOW_PRECISION = 0.1
"""Two tokens count as undecided whose logits lie closer than this share of the row's standard deviation: rounding in
another order may tell them apart either way, most of all in 16 bits."""


@dataclass(frozen=True)
class Reference:
    """Greedy texts by prompt, at which of their tokens the model was undecided, and how the model can be served."""

    texts: list[list[int]]
    undecided: list[list[bool]]
    verdict: Verdict


def generate(config: ModelConfig, prompts: Sequence[Sequence[int]], num_tokens: int) -> Reference:
    """*num_tokens* tokens for each of *prompts*, alone and greedily, past any end of text. The model is loaded for it
    and let go again, so that two copies of it are never in memory. Raises ConfigError when it cannot be loaded."""
    source = Source("target", config.target, config.revision, config.trust_remote_code)
    device = checkpoint.choose_device(config.device)
    loaded = checkpoint.read_config(source)
    dtype = checkpoint.choose_dtype(config.dtype, loaded, device)
    model = checkpoint.read_model(source, loaded, dtype=dtype, device=device)
    # Checkpoints bring penalties and temperatures of their own: greedy means greedy here.
    model.generation_config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    close = CLOSE.get(dtype, CLOSE_LOW_PRECISION)
    texts, undecided = [], []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=device)
            output = model.generate(ids, attention_mask=torch.ones_like(ids))
            logits = model(output, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            best = logits.topk(2, dim=1).values
            texts.append(output[0, len(prompt) :].tolist())
            undecided.append((best[:, 0] - best[:, 1] < close * logits.std(dim=1)).tolist())
    return Reference(texts, undecided, self_check.check(model))
