"""A tiny random Llama pair with a byte-level tokenizer and a chat template: written in a second, read by every test.

The draft is the target with its last layers cut off. Those layers add little to the residual stream, so the draft
agrees with the target often, but not always: acceptance is neither 0 nor 1.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BOS, EOS = "<|begin|>", "<|end|>"


@dataclass(frozen=True)
class TinyPair:
    """Folders of a target and a draft that share one tokenizer, as `save_pretrained` writes them."""

    target: Path
    draft: Path


def write_pair(
    directory: Path,
    *,
    seed: int = 0,
    vocab_size: int = 384,
    hidden_size: int = 48,
    num_layers: int = 4,
    num_draft_layers: int = 1,
    num_attention_heads: int = 4,
    num_key_value_heads: int = 2,
    max_position_embeddings: int = 512,
    late_layer_scale: float = 0.15,
    dtype: torch.dtype = torch.float32,
) -> TinyPair:
    """Write a pair under *directory*; equal arguments give equal weights, whatever ran before.

    The draft is the target's embedding, its first *num_draft_layers* layers, norm and head. The output projections of
    the target's other layers are scaled by *late_layer_scale*: 0 makes the draft always right, 1 makes it nearly blind.
    *vocab_size* must be at least 258: the 256 bytes, then begin and end.
    """
    tokenizer = byte_tokenizer(vocab_size)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=max_position_embeddings,
        initializer_range=0.2,  # wide enough that texts differ and argmax gaps are far above float noise
        bos_token_id=tokenizer.convert_tokens_to_ids(BOS),
        eos_token_id=tokenizer.convert_tokens_to_ids(EOS),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        target = LlamaForCausalLM(config)
        for layer in target.model.layers[num_draft_layers:]:
            layer.self_attn.o_proj.weight.mul_(late_layer_scale)
            layer.mlp.down_proj.weight.mul_(late_layer_scale)
        draft = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "num_hidden_layers": num_draft_layers}))
    kept = {name: value for name, value in target.state_dict().items() if name in draft.state_dict()}
    draft.load_state_dict(kept)
    pair = TinyPair(directory / "tiny-target", directory / "tiny-draft")
    for model, folder in ((target, pair.target), (draft, pair.draft)):
        model.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return pair


def byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: 256 bytes, then `<|begin|>` and `<|end|>`, then merges of frequent letter pairs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)} | {BOS: 256, EOS: 257}
    letters = "etaoinsrhldcumfpgwyb"
    pairs = [(first, second) for first in letters for second in letters][: vocab_size - len(vocab)]
    vocab |= {first + second: len(vocab) + index for index, (first, second) in enumerate(pairs)}
    assert len(vocab) == vocab_size, f"vocab_size must be from 258 to {258 + len(letters) ** 2}, got {vocab_size}"
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
    fast.chat_template = CHAT_TEMPLATE
    return fast
