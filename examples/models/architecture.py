"""The two Llama shapes, and how they are written as Hugging Face checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 1024
"""Tokens. Small on purpose: most of a 1 M draft is then layers, and each token says little, so it is predictable."""

LONGEST = 2048
"""Positions, tokens. Training windows reach 1024."""


def target_config() -> LlamaConfig:
    """11.8 M parameters; groups of two query heads of 64 channels, which benchmarks/inflate.py widens as they are."""
    return _config(hidden=384, layers=7, heads=6, kv_heads=3, head_dim=64, mlp=1024)


def draft_config() -> LlamaConfig:
    """1.1 M parameters. Three layers: two are the least that can copy from the context, the third is worth its cost."""
    return _config(hidden=192, layers=3, heads=6, kv_heads=3, head_dim=32, mlp=320)


def _config(*, hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, mlp: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=LONGEST,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        attention_bias=False,
        mlp_bias=False,
    )


def fresh_model(config: LlamaConfig, *, seed: int) -> LlamaForCausalLM:
    """A bf16 model whose blocks start as the identity: the output projections are zero."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)
    return model.to(torch.bfloat16)


def parameter_count(model: nn.Module) -> int:
    """Parameters, with tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes bf16 safetensors, the generation defaults and the shared tokenizer's files."""
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes 0600, which a server's user cannot read
    tokenizer.save_pretrained(folder)
