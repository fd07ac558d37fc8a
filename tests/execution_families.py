"""Tiny random models of many families, for tests."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCAB = 128
_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "n_routed_experts": 4,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}


def _config(name: str, **changes: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**(_SMALL | changes))


PAGED = {
    "llama": _config("LlamaConfig"),
    "qwen2, window above the first layer": _config(
        "Qwen2Config", use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": _config("Qwen3Config", head_dim=16),
    "mistral, window": _config("MistralConfig", sliding_window=8),
    "gemma2, soft cap and window": _config("Gemma2Config", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3, two ropes and window": _config(
        "Gemma3TextConfig", num_hidden_layers=6, head_dim=16, sliding_window=8, query_pre_attn_scalar=16
    ),
    "gpt_oss, sinks and window": _config("GptOssConfig", num_local_experts=4, head_dim=16, sliding_window=8),
    "phi3": _config("Phi3Config"),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=256),
    "opt": _config("OPTConfig", ffn_dim=96, word_embed_proj_dim=64),
    "gpt_neox": _config("GPTNeoXConfig"),
    "mixtral": _config("MixtralConfig", num_local_experts=4),
    "qwen3_moe": _config("Qwen3MoeConfig", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=16),
    "deepseek_v3, latent attention": _config("DeepseekV3Config", **_LATENT),
    "cohere2, layers of two kinds": _config("Cohere2Config", num_hidden_layers=4, sliding_window=8),
    "stablelm, drops keywords": _config("StableLmConfig"),
}
PADDED = {
    "bloom, refuses another attention": lambda: transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=64, n_layer=2, n_head=4
    ),
    "phimoe, window only in the mask": _config("PhimoeConfig", num_local_experts=4, sliding_window=8),
    "doge, mask of its own": _config("DogeConfig"),
    "llama4, attention in chunks": _config(
        "Llama4TextConfig", intermediate_size_mlp=96, head_dim=16, num_local_experts=2, attention_chunk_size=8
    ),
}
STATEFUL = {
    "mamba, no attention": lambda: transformers.MambaConfig(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2),
    "recurrent_gemma, state beside attention": _config(
        "RecurrentGemmaConfig", num_hidden_layers=3, attention_window_size=8, lru_width=64
    ),
}


def build(config: Any) -> PreTrainedModel:
    """The model of *config* with random weights, large enough that attention shows in the logits."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.2 / parameter.shape[-1] ** 0.5)
    return model.requires_grad_(False)


def eager_logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Logits of one request alone as transformers computes them, [len(ids), vocab]."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits


def random_ids(count: int, seed: int = 0) -> list[int]:
    """Token ids of a made-up text."""
    ids: list[int] = torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids
