"""Linear layers that are packed multiply as before, and those that read the same rows are one product."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from smartspec.execution.attention import use_paged_attention
from smartspec.execution.packed_linear import BlockedWeight, PackedLinear, PaneledWeight, Product, pack_linears
from smartspec.execution.row_invariance import row_multiple
from smartspec.execution.vector_gate import GELU_TANH, SILU
from smartspec.native import BFLOAT16, chosen

HAS_KERNEL = pytest.mark.skipif(chosen() is not BFLOAT16, reason="this processor has no AVX-512 products of bfloat16")


@pytest.fixture(params=[pytest.param("paneled", marks=HAS_KERNEL), "blocked"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own kernel's, and oneDNN's on processors that it does not suit."""
    if request.param == "blocked":
        monkeypatch.setattr(PaneledWeight, "suits", lambda weight: False)


@pytest.fixture
def threads() -> Iterator[None]:
    """As many threads as there were, whatever the test computed with."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def llama(layout: None) -> LlamaForCausalLM:
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
def test_rows_that_only_look_the_same_are_multiplied_anew(layout: None) -> None:
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


@HAS_KERNEL
@pytest.mark.parametrize(("width", "columns"), [(64, 32), (66, 96), (1024, 416), (2816, 128)])
@torch.inference_mode()
def test_the_kernel_multiplies(width: int, columns: int, threads: None) -> None:
    """Any number of rows, to within float32's sums and bfloat16's rounding; and a row's bits are the same in whatever
    company, computed by however many threads."""
    torch.manual_seed(width)
    weight, bias = torch.randn((columns, width)).bfloat16(), torch.randn(columns).bfloat16()
    paneled, rows = PaneledWeight(weight, bias), torch.randn((1, 64, width)).bfloat16()
    whole = paneled.multiply(rows)
    exact = rows.double() @ weight.double().T + bias.double()
    assert ((whole.double() - exact).abs() <= exact.abs() / 256 + 1e-4 * width**0.5).all()
    for count in (*range(1, 30), 40, 63):
        torch.set_num_threads(1 + count % 3)
        assert torch.equal(paneled.multiply(rows[:, 64 - count :]), whole[:, 64 - count :])
    assert torch.equal(paneled.dense(), weight)


@HAS_KERNEL
@pytest.mark.parametrize("kind", [SILU, GELU_TANH])
@torch.inference_mode()
def test_one_half_gates_the_other(kind: int, threads: None) -> None:
    """act(gate) * up of the halves as they are without it, rounded once; without it they are in their old order."""
    torch.manual_seed(kind)
    weight, bias = torch.randn((192, 64)).bfloat16(), torch.randn(192).bfloat16()
    paneled, rows = PaneledWeight(weight, bias, halves=True), 3 * torch.randn((1, 64, 64)).bfloat16()
    assert torch.equal(paneled.dense(), weight)
    plain = paneled.multiply(rows)
    assert torch.equal(plain, PaneledWeight(weight, bias).multiply(rows))
    gate, up = plain.double().chunk(2, dim=-1)
    exact = up * (functional.silu(gate) if kind == SILU else functional.gelu(gate, approximate="tanh"))
    whole = paneled.multiply(rows, kind)
    assert ((whole.double() - exact).abs() <= exact.abs() / 256 + 1e-6).all()
    for count in (*range(1, 20), 63):
        torch.set_num_threads(1 + count % 3)
        assert torch.equal(paneled.multiply(rows[:, 64 - count :], kind), whole[:, 64 - count :])
    assert torch.equal(paneled.multiply(rows), plain)


@HAS_KERNEL
@torch.inference_mode()
def test_what_is_not_finite_stays_so() -> None:
    """NaN and infinity of a row are in its results, and in no other's."""
    paneled = PaneledWeight(torch.ones((32, 4)).bfloat16(), None)
    rows = torch.tensor([[[1.0, 2, 3, 4], [1, float("nan"), 1, 1], [1, float("inf"), 1, 1]]]).bfloat16()
    assert paneled.multiply(rows)[0, 0].tolist() == [10.0] * 32
    assert paneled.multiply(rows)[0, 1].isnan().all()
    assert paneled.multiply(rows)[0, 2].isposinf().all()


def test_what_the_kernel_does_not_suit_is_left_to_onednn() -> None:
    """Columns that fill no panel, or an odd number of inputs."""
    for columns, width in ((33, 64), (32, 63)):
        layer = torch.nn.Linear(width, columns, dtype=torch.bfloat16)
        assert isinstance(Product([layer]).weight, BlockedWeight)
