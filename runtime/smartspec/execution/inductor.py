"""torch's inductor as we use it: with which options, and what it must find on the machine."""

import operator
import os
import shutil
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from smartspec.execution import kept_rows, operators, vector_gate
from smartspec.execution.native_operators import Table

_OPTIONS: dict[str, Any] = {
    # A step may run on fewer threads than the next: the number must not be compiled in.
    "cpp.dynamic_threads": True,
    # What several operations read is computed once, not by each of them anew: else every layer has its own cosines.
    "realize_reads_threshold": 1,
    # Halves of rotated queries and keys are joined as they are read, not in a copy.
    "force_pointwise_cat": True,
    # What operators return need not be looked at in every step: the logits of trials have been.
    "size_asserts": False,
    "alignment_asserts": False,
}


def missing_compiler() -> str | None:
    """What is missing on this machine for compiling, if anything is."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler: {compiler} is not on the PATH"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"Python's headers are not installed: there is no {header}"
    return None


def backend(table: Table | None) -> Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]:
    """Inductor, after products of one input have been joined and gates given to the products before them; where
    operators are native, those of *table*, without Python between them either, and with the interpreter left to other
    threads for the whole forward."""

    def compile_graph(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        from torch._inductor import config  # heavy, and only wanted here
        from torch._inductor.compile_fx import compile_fx

        if table is not None:
            _gate_products(graph, table.halved)
        _join_products(graph)
        options = {"cpp_wrapper": table is not None, "post_grad_custom_pre_pass": _choice_of_rows()}
        with config.patch(_OPTIONS | options):
            compiled: Callable[..., Any] = compile_fx(graph, inputs)  # type: ignore[assignment]
            return compiled

    return compile_graph


def _choice_of_rows() -> Any:
    """`kept_rows` as a pass of inductor's, which keeps apart what was compiled with another version of it."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Choice(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            kept_rows.choose_early(graph, operators.PRODUCTS)

        def uuid(self) -> bytes:
            return get_hash_for_files((kept_rows.__file__,))

    return Choice()


def _gate_products(module: fx.GraphModule, halved: Collection[int]) -> None:
    """Make one product of act(gate) * up where gate and up are the halves of one, and its place is in *halved*."""
    for node in list(module.graph.nodes):
        if (arguments := _gated(node, halved)) is not None:
            with module.graph.inserting_before(node):
                whole = module.graph.call_function(operators.native_gated, arguments)
            whole.meta = dict(node.meta)
            node.replace_all_uses_with(whole)
    module.graph.eliminate_dead_code()
    module.recompile()


def _gated(node: Any, halved: Collection[int]) -> tuple[Any, ...] | None:
    """The arguments of the gated product that *node* is the result of, which nobody else reads parts of; else None."""
    if node.target not in (operator.mul, torch.mul) or len(node.args) != 2:
        return None
    for active, up in (node.args, node.args[::-1]):
        kind, gate = _act(active)
        first, second = _columns_of(gate), _columns_of(up)
        if kind is None or first is None or second is None:
            continue
        (*product, begin, middle), (*other, then, end) = first, second
        are_halves = product == other and (begin, middle, end) == (0, then, 2 * then) and product[-1] in halved
        if are_halves and all(len(part.users) == 1 for part in (active, gate, up)):
            return (*product, kind, then)
    return None


def _act(node: Any) -> tuple[int | None, Any]:
    """Which kind of `vector_gate` *node* is, and of what; None where it is none."""
    if not isinstance(node, fx.Node) or not node.args:
        return None, None
    if node.target is functional.silu:
        return vector_gate.SILU, node.args[0]
    if node.target is torch._C._nn.gelu and node.kwargs.get("approximate") == "tanh":
        return vector_gate.GELU_TANH, node.args[0]
    return None, None


def _columns_of(node: Any) -> Any:
    """The arguments of the part of a native product that *node* is; None where it is none."""
    is_part = isinstance(node, fx.Node) and node.target in (operators.native_linear, torch.ops.smartspec.native_linear)
    return node.args if is_part else None


def _join_products(module: fx.GraphModule) -> None:
    """Make one call of the calls that ask for parts of the same product of the same rows."""
    calls: dict[tuple[Any, Any], list[fx.Node]] = defaultdict(list)
    for node in module.graph.nodes:
        for packet in (torch.ops.smartspec.linear, torch.ops.smartspec.native_linear):
            if node.op == "call_function" and node.target in (packet, packet.default):
                calls[packet.default, node.args[:-2]].append(node)
    for (called, what), parts in calls.items():
        if len(parts) < 2:
            continue
        total = max(int(str(part.args[-1])) for part in parts)
        with module.graph.inserting_before(parts[0]):
            whole = module.graph.call_function(called, (*what, 0, total))
            whole.meta = dict(parts[0].meta)
        for part in parts:
            with module.graph.inserting_before(part):
                columns = module.graph.call_function(
                    torch.ops.aten.slice.Tensor, (whole, -1, part.args[-2], part.args[-1])
                )
                columns.meta = dict(part.meta)
            part.replace_all_uses_with(columns)
            module.graph.erase_node(part)
    module.recompile()
