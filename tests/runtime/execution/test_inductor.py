"""What is done to a graph before inductor compiles it."""

import torch
from torch import fx

from smartspec.execution import compiled_forward  # noqa: F401 - names the operators
from smartspec.execution.inductor import _join_products


def test_siblings_become_one_call() -> None:
    """Parts of the same product of the same rows are one product, cut; others stay as they are."""
    graph = fx.Graph()
    rows, others = graph.placeholder("rows"), graph.placeholder("others")
    linear = torch.ops.smartspec.linear
    calls = [(rows, 0, 0, 8), (rows, 0, 8, 12), (rows, 1, 0, 8), (others, 0, 0, 8)]
    graph.output(tuple(graph.call_function(linear, call) for call in calls))
    module = fx.GraphModule(torch.nn.Module(), graph)
    _join_products(module)
    left = [n.args for n in module.graph.nodes if str(n.target).startswith("smartspec.linear")]
    assert left == [(rows, 0, 0, 12), (rows, 1, 0, 8), (others, 0, 0, 8)]
