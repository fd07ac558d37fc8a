"""One ragged forward over a paged cache equals the model itself, however the rows are cut and mixed."""

import os
import subprocess
import sys

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


def test_a_dtype_without_a_kernel_runs_in_plain_torch() -> None:
    """float16 on a CPU: right, and no promise about bits."""
    bare = tiny_llama(torch.float16)
    ids = random_ids(40)
    with torch.inference_mode():
        expected = bare(torch.tensor([ids])).logits[0].float()
    model = PagedModel(bare, num_blocks=8, block_size=16)
    assert not model.attention.invariant
    model.forward([Segment(ids[:30], 0, [3, 1, 2]), Segment(ids[:5], 0, [5])])
    found = model.forward([Segment([ids[5]], 5, [5], 1), Segment(ids[30:], 30, [3, 1, 2], 10)])
    assert (found[0] - expected[5]).norm() < 0.02 * expected[5].norm()
    assert (found[1:] - expected[30:]).norm() < 0.02 * expected[30:].norm()


def test_a_step_without_logits_still_stores() -> None:
    """A prefill chunk asks for no logits and gets none."""
    model = PagedModel(tiny_llama(torch.float32), num_blocks=4, block_size=16, row_multiple=4)
    ids = random_ids(9)
    whole = model.forward([Segment(ids, 0, [0], 9)])
    assert model.forward([Segment(ids[:8], 0, [1])]).shape == (0, VOCAB)
    assert torch.equal(model.forward([Segment(ids[8:], 8, [1], 1)]), whole[8:])


def test_a_small_step_of_a_draft_leaves_the_number_of_threads_alone() -> None:
    """It borrows one thread, also when it fails."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = PagedModel(tiny_llama(torch.float32), num_blocks=4, block_size=16, hurries=True)
        seen: list[int] = []
        model.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        model.forward([Segment([1, 2], 0, [0], 1)])
        with pytest.raises(IndexError):
            model.forward([Segment([VOCAB], 2, [0], 1)])
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_waiting_threads_are_told_to_sleep_before_torch_is_there() -> None:
    """The environment is what OpenMP reads when torch loads it: later is too late."""
    program = "import os, sys, smartspec.execution; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["False", "5000"]
