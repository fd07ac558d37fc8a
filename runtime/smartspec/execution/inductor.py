"""torch's inductor as we use it: with which options, and what it must find on the machine."""

import os
import shutil
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

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


def backend(*, is_native: bool) -> Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]:
    """Inductor, after products of one input have been joined; where operators are native, without Python between them
    either, and with the interpreter left to other threads for the whole forward."""

    def compile_graph(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        from torch._inductor import config  # heavy, and only wanted here
        from torch._inductor.compile_fx import compile_fx

        _join_products(graph)
        with config.patch(_OPTIONS | {"cpp_wrapper": is_native}):
            compiled: Callable[..., Any] = compile_fx(graph, inputs)  # type: ignore[assignment]
            return compiled

    return compile_graph


def _join_products(module: fx.GraphModule) -> None:
    """Make one call of the calls that ask for parts of the same product of the same rows."""
    calls: dict[tuple[Any, Any], list[fx.Node]] = defaultdict(list)
    for node in module.graph.nodes:
        for operator in (torch.ops.smartspec.linear, torch.ops.smartspec.native_linear):
            if node.op == "call_function" and node.target in (operator, operator.default):
                calls[operator.default, node.args[:-2]].append(node)
    for (operator, what), parts in calls.items():
        if len(parts) < 2:
            continue
        total = max(int(str(part.args[-1])) for part in parts)
        with module.graph.inserting_before(parts[0]):
            whole = module.graph.call_function(operator, (*what, 0, total))
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
