"""Linear layers that are packed multiply as before, and those that read the same rows are one product."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from smartspec.execution.attention import use_paged_attention
from smartspec.execution.packed_linear import PackedLinear, Product, pack_linears
from smartspec.execution.row_invariance import row_multiple


@pytest.fixture
def llama() -> LlamaForCausalLM:
    """Two random layers in bfloat16, with biases in attention, on paged attention."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    use_paged_attention(model)
    return model


@torch.inference_mode()
def test_packed_layers_multiply_as_linear_ones_do(llama: LlamaForCausalLM) -> None:
    """Weights, biases and tied embeddings included, within bfloat16's rounding."""
    before = {n: m for n, m in llama.named_modules() if isinstance(m, torch.nn.Linear)}
    pack_linears(llama)
    after = {n: m for n, m in llama.named_modules() if isinstance(m, PackedLinear)}
    assert before.keys() == after.keys()
    for name, layer in before.items():
        rows = torch.randn((1, 5, layer.in_features)).bfloat16()
        torch.testing.assert_close(after[name](rows), layer(rows), rtol=0.02, atol=0.02)
        torch.testing.assert_close(after[name].weight, layer.weight, rtol=0, atol=0)
        if layer.bias is not None:
            torch.testing.assert_close(after[name].bias, layer.bias, rtol=0, atol=0)


def test_layers_that_read_the_same_rows_share_a_product(llama: LlamaForCausalLM) -> None:
    """Query, key and value; gate and up; not the output of attention, nor down."""
    products = pack_linears(llama)
    layer = llama.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    assert attention.q_proj.product is attention.k_proj.product is attention.v_proj.product
    assert mlp.gate_proj.product is mlp.up_proj.product
    assert mlp.down_proj.product is not mlp.up_proj.product
    assert len(products) == 2 * 4 + 1
    assert [products.index(m.product) for m in llama.modules() if isinstance(m, PackedLinear)] == [
        m.place for m in llama.modules() if isinstance(m, PackedLinear)
    ]


@torch.inference_mode()
def test_rows_that_only_look_the_same_are_multiplied_anew() -> None:
    """What is kept of a product belongs to one tensor, not to its values or its place in memory."""
    layers = [torch.nn.Linear(32, 32, bias=False, dtype=torch.bfloat16) for _ in range(2)]
    product = Product(layers)
    first, second = (torch.randn((1, 4, 32)).bfloat16() for _ in range(2))
    product.slice(first, 0, 32)
    torch.testing.assert_close(product.slice(second, 32, 64), layers[1](second), rtol=0.02, atol=0.02)
    torch.testing.assert_close(product.slice(second, 0, 32), layers[0](second), rtol=0.02, atol=0.02)


def test_float32_is_left_alone(llama: LlamaForCausalLM) -> None:
    """Its rows would no longer be independent of their number."""
    assert pack_linears(llama.float()) == []


def test_packed_products_can_be_made_invariant(llama: LlamaForCausalLM) -> None:
    """Each row's bits are the same whatever the number of rows, as the project promises for CPUs."""
    pack_linears(llama)
    assert row_multiple(llama) is not None
