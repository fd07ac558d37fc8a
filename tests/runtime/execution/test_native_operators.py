"""The operators without Python compute what Python's do, bit for bit."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from smartspec.execution import operators
from smartspec.execution.attention import use_paged_attention
from smartspec.execution.batch import Segment
from smartspec.execution.compiled_attention import CompiledAttention
from smartspec.execution.native_operators import Table, table_of
from smartspec.execution.packed_linear import PaneledWeight, pack_linears
from smartspec.execution.paged_model import PagedModel
from smartspec.execution.ragged import pack
from smartspec.execution.vector_gate import SILU

HEADS, KV_HEADS, WIDTH, VALUES = 4, 2, 64, 16


def model_and_table(dtype: torch.dtype) -> tuple[PagedModel, CompiledAttention, Table]:
    """A random model of one layer, and what its operators need of it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    use_paged_attention(model)
    paged = PagedModel(model, num_blocks=32, block_size=16, products=pack_linears(model))
    assert isinstance(paged.attention, CompiledAttention)
    table = table_of(paged.products, paged.attention)
    if table is None:
        pytest.skip("no products of our own, or no OpenMP, on this machine")
    return paged, paged.attention, table


@pytest.mark.parametrize("rows", [1, 3, 30])
def test_products_are_those_of_the_weight(rows: int) -> None:
    """Whole and in part, for rows of a step [1, T, in] and for rows alone [T, in]."""
    paged, _, table = model_and_table(torch.bfloat16)
    table.begin()
    weight, many = paged.products[0].weight, torch.randn(1, rows, WIDTH).bfloat16()
    whole = weight.multiply(many)
    multiply = operators.native_linear
    assert torch.equal(multiply(many, table.tensor, 0, 0, whole.shape[2]), whole)
    assert torch.equal(multiply(many[0], table.tensor, 0, 64, 96), whole[0, :, 64:96])
    assert not table.is_misused


def test_gates_are_those_of_the_weight() -> None:
    """Of a product of two halves; of another one it is misuse."""
    paged, _, table = model_and_table(torch.bfloat16)
    table.begin()
    (place,) = table.halved
    weight, rows = paged.products[place].weight, torch.randn(1, 5, WIDTH).bfloat16()
    assert isinstance(weight, PaneledWeight)
    assert torch.equal(operators.native_gated(rows, table.tensor, place, SILU, 96), weight.multiply(rows, SILU))
    assert not table.is_misused
    operators.native_gated(rows, table.tensor, 0, SILU, 64)
    assert table.is_misused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_attentions(dtype: torch.dtype) -> None:
    """A step of two requests and a row that nobody's tile covers: that one is zero."""
    _, attention, table = model_and_table(dtype)
    batch = pack([Segment([5] * 20, 0, range(2), 1), Segment([6] * 3, 0, range(2, 3), 1)], 16, row_multiple=8)
    attention.begin(batch)
    table.begin()
    rows = len(batch.input_ids)
    query = torch.randn(1, rows, HEADS, VALUES, dtype=dtype).transpose(1, 2)  # as models have it: not in one piece
    key, value = torch.randn(2, 1, KV_HEADS, rows, VALUES, dtype=dtype)
    expected = attention.attend(0, query, key, value)
    found = torch.ops.smartspec.native_attend(query, key, value, table.tensor, 0)
    assert rows == 24
    assert torch.equal(found, expected)
    assert not found[0, 23].any()
    assert not table.is_misused


def test_what_cannot_be_read_is_noticed() -> None:
    """Operators read rows of their own type and width that lie in one piece; others they leave alone, and say so."""
    _, attention, table = model_and_table(torch.bfloat16)
    attention.begin(pack([Segment([5] * 4, 0, range(1), 1)], 16))
    table.begin()
    turned = torch.randn(1, HEADS, VALUES, 4).bfloat16().transpose(2, 3)
    straight = torch.randn(1, KV_HEADS, 4, VALUES).bfloat16()
    torch.ops.smartspec.native_attend(turned, straight, straight, table.tensor, 0)
    assert table.is_misused
    for rows in (torch.randn(WIDTH, 5).bfloat16().T, torch.randn(5, WIDTH), torch.randn(5, WIDTH + 2).bfloat16()):
        _, _, table = model_and_table(torch.bfloat16)
        table.begin()
        torch.ops.smartspec.native_linear(rows, table.tensor, 0, 0, 128)
        assert table.is_misused
