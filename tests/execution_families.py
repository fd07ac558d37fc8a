"""Tiny random models of many families, for tests, by the way in which they can be served.

A name is the `model_type` of a config, and after a comma what is special about this one.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCAB = 272
"""Enough for the tokenizer of `tiny`: 256 bytes, begin, end, and a few pairs of letters."""

_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "tie_word_embeddings": False,  # a tied model of random weights says its last token again, for ever
}
_OWN_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "head_dim": 16}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED = _EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
}

_CHANGES: dict[str, dict[str, Any]] = {
    "paged": {
        "llama": {},
        "llama, llama3 rope": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        "llama, yarn rope": {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "llama, tied embeddings": {"tie_word_embeddings": True},
        "qwen2": {},
        "qwen2, window above the first layer": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
        "qwen3": {"head_dim": 16},
        "qwen2_moe": _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32},
        "qwen3_moe": _EXPERTS | {"num_experts": 4, "head_dim": 16},
        "mistral, window": {"sliding_window": 8},
        "ministral, windows in some layers": _MIXED,
        "mixtral": {"num_local_experts": 4},
        "gemma": {"head_dim": 16},
        "gemma2, soft cap and window": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
        "gemma3_text, two ropes and window": {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
        },
        "gemma4_text, inputs per layer": _MIXED
        | {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
        "gemma4_text, keys shared between layers": _MIXED
        | {
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 8,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
        },
        "vaultgemma": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
        "phi": {},
        "phi3": {},
        "gpt2": {},
        "gpt_bigcode, one key head": {},
        "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
        "gpt_neox": {},
        "gpt_oss, sinks and window": {"num_local_experts": 4, "head_dim": 16, "sliding_window": 8},
        "olmo": {},
        "olmo2": {},
        "olmo3, window": {"sliding_window": 8},
        "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
        "granite": {},
        "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "cohere": {},
        "cohere2, layers of two kinds": {"num_hidden_layers": 4, "sliding_window": 8},
        "glm": {"head_dim": 16},
        "glm4": {"head_dim": 16},
        "glm4_moe": _ROUTED | {"head_dim": 16},
        "glm4_moe_lite, latent attention": _ROUTED | _LATENT,
        "starcoder2, window": {"sliding_window": 8},
        "smollm3, layers without rope": {"num_hidden_layers": 4},
        "ernie4_5": {"head_dim": 16},
        "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
        "seed_oss": {"head_dim": 16},
        "helium": {"head_dim": 16},
        "exaone4, window": {"sliding_window": 8, "num_hidden_layers": 4},
        "arcee": {},
        "apertus": {},
        "bitnet": {},
        "deepseek_v2, latent attention": _ROUTED | _LATENT | {"first_k_dense_replace": 1},
        "deepseek_v3, latent attention": _ROUTED | _LATENT | {"first_k_dense_replace": 1},
        "dots1": _ROUTED | {"first_k_dense_replace": 1},
        "diffllama, attention of differences": {},
        "hunyuan_v1_dense": {"head_dim": 16},
        "jetmoe": {"num_local_experts": 4, "kv_channels": 16, "num_key_value_heads": 4},
        "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
        "modernbert-decoder, window": {"local_attention": 8, "num_key_value_heads": 4},
        "nemotron": {},
        "persimmon": {},
        "stablelm, drops keywords": {},
    },
    "padded": {
        "bloom, refuses another attention": {},
        "codegen": {"rotary_dim": 8},
        "deepseek_v32, picks what it sees": _ROUTED | _LATENT | {"index_topk": 8, "index_head_dim": 16},
        "deepseek_v4, compresses keys after 128 tokens": {
            "num_local_experts": 4,
            "head_dim": 16,
            "sliding_window": 8,
            "index_n_heads": 4,
            "index_head_dim": 16,
        },
        "doge, mask of its own": {},
        "falcon": {},
        "falcon, alibi": {"alibi": True},
        "gpt_neo, window": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
        "gptj": {"rotary_dim": 8},
        "llama4_text, attention in chunks": {
            "intermediate_size_mlp": 96,
            "head_dim": 16,
            "num_local_experts": 2,
            "attention_chunk_size": 8,
        },
        "mpt": {},
        "openai-gpt": {},
        "phimoe, window only in the mask": {"num_local_experts": 4, "sliding_window": 8},
        "rwkv, no attention at all": {},
        "xglm": {"attention_heads": 4, "num_layers": 2, "d_model": 64, "ffn_dim": 96},
    },
    "stateful": {
        "bamba": _MAMBA | {"attn_layer_indices": [1], "mamba_n_groups": 1},
        "falcon_h1": _MAMBA | {"mamba_d_ssm": 128, "head_dim": 16},
        "falcon_mamba": {},
        "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"], "num_local_experts": 4},
        "jamba": {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        "lfm2, convolutions": {"layer_types": ["conv", "full_attention"]},
        "mamba": {},
        "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2},
        "minimax": {"num_local_experts": 4, "head_dim": 16},
        "nemotron_h": {
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
            "head_dim": 16,
        },
        "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"], "num_attention_heads": 4},
        "qwen3_5_text": _LINEAR,
        "qwen3_next": _LINEAR | _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32},
        "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 8, "lru_width": 64},
    },
    "refused": {
        "bert, not causal": {},
        "doge, mask that lets early rows see later ones": {"keep_window_size": 8},
        "moshi, speech": {"head_dim": 16, "sliding_window": 8, "ffn_dim": 96, "audio_vocab_size": 16},
        "xlm, not causal": {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "n_words": VOCAB},
        "xmod, wants a language": {},
    },
}


def _config(name: str, changes: Mapping[str, Any]) -> Callable[[], Any]:
    kind = CONFIG_MAPPING[name.partition(",")[0]]

    def make() -> Any:
        sizes: dict[str, Any] = dict(_SMALL)
        if "n_embd" in vars(kind()):
            sizes |= {own: sizes.pop(common) for common, own in _OWN_NAMES.items()}
        return kind(**(sizes | changes))

    return make


FAMILIES: dict[str, dict[str, Callable[[], Any]]] = {
    outcome: {name: _config(name, changes) for name, changes in families.items()}
    for outcome, families in _CHANGES.items()
}
"""Configs by outcome: "paged"; "padded" (recomputed in batches); "stateful" (recomputed one by one, no speculation);
"refused"."""
PAGED, PADDED, STATEFUL, REFUSED = (FAMILIES[outcome] for outcome in ("paged", "padded", "stateful", "refused"))


def build(config: Any) -> PreTrainedModel:
    """The model of *config* with random weights, large enough that attention shows in the logits."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
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
    """Token ids of a made-up text: bytes."""
    rng = random.Random(seed)
    return [rng.randrange(3, 256) for _ in range(count)]
