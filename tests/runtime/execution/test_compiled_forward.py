"""A compiled forward computes what the model does, row by row, or is not used."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from smartspec.execution import compiled_forward, product_kernel, self_check, vector_gate
from smartspec.execution.attention import use_paged_attention
from smartspec.execution.batch import Segment
from smartspec.execution.compiled_forward import Compiled, CompileError, compile_forward
from smartspec.execution.inductor import missing_compiler
from smartspec.execution.native_operators import Table
from smartspec.execution.packed_linear import PaneledWeight, pack_linears
from smartspec.execution.paged_model import PagedModel


def paged_llama(dtype: torch.dtype = torch.bfloat16) -> PagedModel:
    """One random layer over a cache of its own, packed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    use_paged_attention(model)
    return PagedModel(model, num_blocks=32, block_size=16, products=pack_linears(model), row_multiple=4)


def ids(count: int) -> list[int]:
    """Token ids of a made-up text."""
    return torch.randint(128, (count,), generator=torch.Generator().manual_seed(count)).tolist()


@pytest.fixture(scope="module")
def compiled() -> PagedModel:
    """A model on its compiled forward, whatever its speed."""
    if (problem := missing_compiler()) is not None:
        pytest.skip(problem)
    model = paged_llama()
    # Each reading is a second after the last, so that compiled and eager steps take the same.
    compile_forward(model, itertools.count().__next__)
    return model


@pytest.mark.parametrize("rows", [1, 2, 5, 24, 130])
def test_compiled_logits_are_those_of_the_model(compiled: PagedModel, rows: int) -> None:
    """For other numbers of rows than it was compiled with, one included, without compiling again."""
    segment = [Segment(ids(rows), 0, range(9), rows)]
    found, expected = compiled.forward(segment), paged_llama().forward(segment)
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_what_only_logits_need_is_computed_for_their_rows(compiled: PagedModel) -> None:
    """Behind the last attention; and there a gate is part of the product that makes it."""
    compiled.forward([Segment(ids(30), 0, range(2), 3)])
    weights = [product.weight for product in compiled.products]
    if not all(isinstance(weight, PaneledWeight) for weight in weights):
        pytest.skip("products are oneDNN's on this machine")
    parameters = np.array([weight.parameters for weight in weights if isinstance(weight, PaneledWeight)])
    assert parameters[:, product_kernel.ROWS].tolist() == [32, 4, 4, 4, 4]  # multiples of four
    assert parameters[:, product_kernel.GATE].tolist() == [0, 0, vector_gate.SILU, 0, 0]


def test_rows_are_bit_equal_however_they_are_computed(compiled: PagedModel) -> None:
    """What is promised of the model is kept by what the compiler made of it."""
    assert self_check.is_invariant(compiled)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the model runs on as it was."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = paged_llama()
    with pytest.raises(CompileError, match="no-such-compiler is not on the PATH"):
        compile_forward(model, time.perf_counter)
    assert model.forward([Segment(ids(3), 0, [0], 3)]).shape == (3, 128)


def test_a_slower_forward_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are made up: each reading of the clock is twice as far from the last."""
    model = paged_llama()
    before = model._forward
    monkeypatch.setattr(compiled_forward, "backend", lambda table: lambda graph, inputs: graph.forward)
    with pytest.raises(CompileError, match="take longer"):
        compile_forward(model, (2.0**n for n in itertools.count()).__next__)
    assert model.forward([Segment(ids(3), 0, [0], 3)]).shape == (3, 128)
    assert model._forward.__code__ is before.__code__
    # Unless somebody insists.
    assert not compile_forward(model, (2.0**n for n in itertools.count()).__next__, must_be_faster=False).is_worth_it
    assert model._forward.__code__ is not before.__code__


def test_each_size_of_step_weighs_alike() -> None:
    """What a burst of other work did to the longest steps does not outweigh what the others gained."""
    assert Compiled(1.0, eager_seconds=(2.0, 2.5, 10.0), compiled_seconds=(1.0, 1.2, 15.0)).is_worth_it
    assert not Compiled(1.0, eager_seconds=(1.0, 1.0, 10.0), compiled_seconds=(1.2, 1.2, 10.0)).is_worth_it


def test_a_module_that_attends_twice_is_refused() -> None:
    """Which of its two caches is meant could not be told from the module."""
    model = paged_llama()
    model.model.model.layers[0].self_attn.smartspec_calls = (0, 1)
    with pytest.raises(CompileError, match="attends more than once"):
        compile_forward(model, time.perf_counter)


@pytest.mark.parametrize("complaint", ["they cannot read it", "there is no C++ around them"])
def test_where_native_operators_fail_pythons_are_compiled(monkeypatch: pytest.MonkeyPatch, complaint: str) -> None:
    """The forward computes the same, by the operators that are left."""
    if (problem := missing_compiler()) is not None:
        pytest.skip(problem)
    model, build = paged_llama(), compiled_forward.backend
    if compiled_forward.table_of(model.products, compiled_forward._require(model)) is None:
        pytest.skip("native operators are for processors with products of bfloat16")

    def fail(*_: Any) -> Any:
        raise RuntimeError(complaint)

    def backend(table: Table | None) -> Callable[..., Any]:
        return fail if table is not None and complaint != "they cannot read it" else build(table)

    monkeypatch.setattr(compiled_forward.Table, "is_misused", complaint == "they cannot read it")
    monkeypatch.setattr(compiled_forward, "backend", backend)
    compile_forward(model, itertools.count().__next__)
    assert model.model.model.layers[0].mlp.down_proj.smartspec_table is None
    segment = [Segment(ids(30), 0, range(9), 30)]
    found, expected = model.forward(segment), paged_llama().forward(segment)
    assert float((found - expected).norm() / expected.norm()) < 0.02
