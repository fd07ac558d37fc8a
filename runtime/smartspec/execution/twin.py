"""A small random model of the same kind: what only shows in long texts shows here in short ones.

A sliding window of 4096 that got lost is invisible in a check of a few dozen tokens, and so are compressed keys that
begin after 128. In the twin such numbers are 8 at most, there are a few layers of each kind, everything is narrow, and
float32 leaves no room for excuses.
"""

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from smartspec.execution import rope

WINDOW = 8
_LAYERS = 4
_MOST_PARAMETERS = 60_000_000
_WINDOW_NAMES = ("window", "attention_chunk_size", "local_attention", "index_topk", "index_block_size", "compress_rate")
_NO_WINDOWS = ("max_window_layers", "use_sliding_window")
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")


def build(config: Any) -> PreTrainedModel | None:
    """A random twin of the model of *config*, in float32 on the CPU with eager attention, or None if the config cannot
    be made small."""
    for shrink in (_narrow, _shallow):
        small = copy.deepcopy(config)
        try:
            shrink(small.get_text_config(decoder=True))
            if _num_parameters(small) > _MOST_PARAMETERS:
                continue
            return _random(small)
        # A config is whatever its model makes of it; what it says to unusual numbers is unknown here.
        except Exception:
            continue
    return None


def has_window(config: Any) -> bool:
    """Whether anything in *config* speaks of a view that is not simply of all that came before."""
    return bool(_windows(config.get_text_config(decoder=True)))


def _shallow(text: Any) -> None:
    """Few layers, one of each kind at least, and small windows."""
    depth = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or []
    order = [kinds.index(kind) for kind in dict.fromkeys(kinds)] or [0]
    chosen = sorted(set(order) | set(range(min(depth, _LAYERS))))[: max(_LAYERS, len(order))]
    if not set(order) <= set(chosen):
        chosen = sorted(order)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, [value[i] for i in chosen])
    text.num_hidden_layers = len(chosen)
    for name, value in _windows(text).items():
        setattr(text, name, value)


def _narrow(text: Any) -> None:
    """Shallow, and narrow too: few heads of the same size, few experts, few words."""
    _shallow(text)
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups == 0:
        explicit = vars(text).get("head_dim")
        kv_heads = min(groups, 2)
        text.num_attention_heads = kv_heads * min(heads // groups, 4)
        if getattr(text, "num_key_value_heads", None):
            text.num_key_value_heads = kv_heads
        text.hidden_size = 64 if explicit else text.num_attention_heads * (text.hidden_size // heads)
    for name, value in list(vars(text).items()):
        if isinstance(value, int) and not isinstance(value, bool):
            if ("intermediate" in name or name in ("ffn_dim", "n_inner")) and value > 128:
                setattr(text, name, 128)
            elif name in _COUNTS:
                setattr(text, name, min(value, 4))
            elif name in _TOP:
                setattr(text, name, min(value, 2))
            elif name.endswith("_token_id"):
                setattr(text, name, 0)
    text.vocab_size = min(text.vocab_size, 256)


def _windows(text: Any) -> dict[str, Any]:
    """What bounds, thins or compresses what a row sees, by name, made small; what no text can exceed bounds nothing."""
    small: dict[str, Any] = {}
    longest = rope.length_limit(text, None)
    for name, value in vars(text).items():
        if isinstance(value, dict) and "compress" in name:
            counts = {key: n for key, n in value.items() if type(n) is int}
            if counts:
                small[name] = value | {key: min(n, WINDOW) for key, n in counts.items()}
        elif type(value) is int and 0 < value < longest and name not in _NO_WINDOWS:
            if name.endswith("topk_blocks"):
                small[name] = 1
            elif any(part in name for part in _WINDOW_NAMES):
                small[name] = min(value, WINDOW)
    return small


def _num_parameters(config: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def _random(config: Any) -> PreTrainedModel:
    """Weights large enough that attention matters to the logits."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(noise * 0.1)
    return model.eval().requires_grad_(False)
