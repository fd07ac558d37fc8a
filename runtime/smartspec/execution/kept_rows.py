"""What only rows with logits need is computed for those alone.

A prompt's tokens go through all layers, yet of the last one only what attention keeps of them is ever read: their own
results are thrown away when the rows are chosen whose logits are wanted. Chosen right after the last attention, the
products behind it have those few rows to multiply. Prompts gain nearly the time of a layer, of a draft with few layers
a good part of it; each row's bits are what they were.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree

_aten = torch.ops.aten
_LAST = (-1, 2)
"""The dimension of channels in [1, rows, channels]."""
_SPLITS = (_aten.split.Tensor, _aten.split_with_sizes.default)


def choose_early(graph: fx.Graph, products: Sequence[Any]) -> None:
    """Move the choice of rows in *graph*, of aten's operators, before all that goes row by row and is not read
    otherwise; *products* are the operators [..., rows, in] to [..., rows, out] among those."""
    for choice in graph.find_nodes(op="call_function", target=_aten.index.Tensor):
        later = _only_read_by(choice, products)
        if any(node.target in products for node in later):
            _move(choice, later)


def _only_read_by(choice: fx.Node, products: Sequence[Any]) -> list[fx.Node]:
    """The nodes, in order, that go row by row and whose values end in *choice* alone; none where it is no choice of
    rows, or rows are not of a size that changes."""
    rows = _rows(choice.args[0])
    if not _is_of_rows(choice.args[1]) or not isinstance(rows, torch.SymInt):
        return []
    found = {choice}
    for node in reversed(choice.graph.nodes):
        if node.users and found.issuperset(node.users) and _goes_by_row(node, rows, products):
            found.add(node)
    # One of several values is no tensor to choose from before it was taken out.
    found -= {node for node in found if node.target is operator.getitem and node.args[0] not in found}
    return [node for node in choice.graph.nodes if node in found and node is not choice]


def _is_of_rows(indices: Any) -> bool:
    """Whether they name rows of [1, rows, channels], one after the other."""
    if not isinstance(indices, list | tuple) or len(indices) != 2 or indices[0] is not None:
        return False
    names = _value(indices[1])
    return isinstance(names, torch.Tensor) and names.ndim == 1 and names.dtype in (torch.int32, torch.int64)


def _goes_by_row(node: fx.Node, rows: torch.SymInt, products: Sequence[Any]) -> bool:
    """Whether each of its *rows* follows from the same row of what it reads."""
    if node.op != "call_function" or not _is_same(_rows(node), rows):
        return False
    if node.target in products or node.target is operator.getitem:
        return True
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise in tags:
        return all(_is_same(_rows(read), rows) or _is_for_all(read) for read in node.all_input_nodes)
    if torch.Tag.reduction in tags:
        return node.args[1] in ([-1], [2])
    if node.target is _aten.slice.Tensor:
        return node.args[1] in _LAST
    return node.target in _SPLITS and node.args[2:] in ((-1,), (2,))


def _rows(node: Any) -> Any:
    """The number of rows where a node's value, or each of several, is [1, rows, channels]; None elsewhere."""
    values = _value(node)
    values = values if isinstance(values, list | tuple) else [values]
    if not values or not all(isinstance(value, torch.Tensor) and value.ndim == 3 for value in values):
        return None
    first = values[0].shape[1]
    is_one = all(value.shape[0] == 1 and _is_same(value.shape[1], first) for value in values)
    return first if is_one else None


def _is_for_all(node: fx.Node) -> bool:
    """Whether its value is the same for all rows: a number, or channels."""
    value = _value(node)
    return not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[-2] == 1


def _is_same(size: Any, rows: torch.SymInt) -> bool:
    """Whether two sizes are known to be one, without making it so."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr == rows.node.expr)


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def _move(choice: fx.Node, later: Sequence[fx.Node]) -> None:
    """Compute *later* anew from the rows of *choice*, in its place."""
    graph, rows = choice.graph, _rows(choice.args[0])
    instead: dict[fx.Node, fx.Node] = {}

    def chosen(read: fx.Node) -> fx.Node:
        if read not in instead and _is_same(_rows(read), rows):
            instead[read] = _described(graph.call_function(_aten.index.Tensor, (read, choice.args[1])))
        return instead.get(read, read)

    with graph.inserting_before(choice):
        for node in later:
            instead[node] = _described(graph.node_copy(node, chosen))
    source = choice.args[0]
    assert isinstance(source, fx.Node)
    choice.replace_all_uses_with(instead[source])
    for node in (choice, *reversed(later)):
        graph.erase_node(node)


def _described(node: fx.Node) -> fx.Node:
    """*node* with the shape of what it now makes."""
    from torch._inductor.virtualized import V  # heavy, and here already

    target: Any = node.target
    args, kwargs = _pytree.tree_map_only(fx.Node, _value, (node.args, node.kwargs))
    with V.fake_mode:
        node.meta["val"] = target(*args, **kwargs)
    return node
