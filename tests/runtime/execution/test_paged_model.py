"""One ragged forward over a paged cache equals the model itself, however the rows are cut and mixed."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from smartspec.execution.batch import Segment
from smartspec.execution.paged_model import PagedModel

VOCAB = 128


def tiny_llama(dtype: torch.dtype, seed: int = 0) -> LlamaForCausalLM:
    """A random two-layer Llama with grouped heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def random_ids(count: int, seed: int = 0) -> list[int]:
    """Token ids of a made-up text."""
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_bit_equal_however_they_are_computed(dtype: torch.dtype) -> None:
    """A row's logits are the same bits from one prefill, from chunks, from decoding, and beside other requests."""
    model = PagedModel(tiny_llama(dtype), num_blocks=64, block_size=16, row_multiple=4)
    ids = random_ids(200)
    whole = model.forward([Segment(ids, 0, range(13), 200)])
    pieces, done = [], 0
    for size in (1, 2, 3, 60, 17, 16, 1, 1, 1, 40, 58):
        other = Segment(random_ids(size + 5, seed=size), 0, range(40, 64), 1)
        both = model.forward([other, Segment(ids[done : done + size], done, range(20, 33), size)])
        pieces.append(both[1:])
        done += size
    assert done == 200
    assert torch.equal(torch.cat(pieces), whole)
