"""What is done to a graph before inductor compiles it."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional

from smartspec.execution import operators
from smartspec.execution.inductor import _gate_products, _join_products
from smartspec.execution.vector_gate import GELU_TANH, SILU


def test_siblings_become_one_call() -> None:
    """Parts of the same product of the same rows are one product, cut; others stay as they are."""
    graph = fx.Graph()
    rows, others = graph.placeholder("rows"), graph.placeholder("others")
    linear = operators.linear
    calls = [(rows, 0, 0, 8), (rows, 0, 8, 12), (rows, 1, 0, 8), (others, 0, 0, 8)]
    graph.output(tuple(graph.call_function(linear, call) for call in calls))
    module = fx.GraphModule(torch.nn.Module(), graph)
    _join_products(module)
    left = [n.args for n in module.graph.nodes if str(n.target).startswith("smartspec.linear")]
    assert left == [(rows, 0, 0, 12), (rows, 1, 0, 8), (others, 0, 0, 8)]


def _silu(graph: fx.Graph, gate: fx.Node) -> fx.Node:
    return graph.call_function(functional.silu, (gate,), {"inplace": False})


def _gelu(graph: fx.Graph, gate: fx.Node) -> fx.Node:
    return graph.call_function(torch._C._nn.gelu, (gate,), {"approximate": "tanh"})


def _exact_gelu(graph: fx.Graph, gate: fx.Node) -> fx.Node:
    return graph.call_function(torch._C._nn.gelu, (gate,))


def gated(act: Callable[[fx.Graph, fx.Node], fx.Node], gate: tuple[int, int], up: tuple[int, int]) -> list[Any]:
    """What is called for act(gate) * up of these columns of product 1, which has halves of 8 columns, as product 0."""
    graph = fx.Graph()
    rows, table = graph.placeholder("rows"), graph.placeholder("table")
    parts = [graph.call_function(operators.native_linear, (rows, table, 1, *columns)) for columns in (gate, up)]
    graph.output(graph.call_function(operator.mul, (parts[1], act(graph, parts[0]))))
    module = fx.GraphModule(torch.nn.Module(), graph)
    _gate_products(module, {0, 1})
    return [(node.target, *node.args[2:]) for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(("act", "kind"), [(_silu, SILU), (_gelu, GELU_TANH)])
def test_a_half_that_gates_the_other_is_one_product_with_it(act: Callable[..., fx.Node], kind: int) -> None:
    """Nothing else is left of the three calls."""
    assert gated(act, (0, 8), (8, 16)) == [(operators.native_gated, 1, kind, 8)]


@pytest.mark.parametrize(
    ("act", "gate", "up"),
    [(_exact_gelu, (0, 8), (8, 16)), (_silu, (8, 16), (0, 8)), (_silu, (0, 4), (4, 16))],
)
def test_other_gates_stay_as_they_are(act: Callable[..., fx.Node], gate: tuple[int, int], up: tuple[int, int]) -> None:
    """An act that the kernel does not have, the second half as the gate, parts that are no halves."""
    assert operators.native_gated not in [call[0] for call in gated(act, gate, up)]
