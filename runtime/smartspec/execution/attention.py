"""The one attention function that a transformers model is given, and what it learns of a model's layers.

transformers hands every attention layer's queries, keys and values to a function chosen by name
(`transformers.AttentionInterface`). Ours looks up who is running (`ForwardPass` in a context variable, because some
models drop keywords on the way), and leaves the layer to it. Layers are told apart by the order in which they call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, PreTrainedModel

IMPLEMENTATION = "smartspec_paged"


class UnsupportedModelError(Exception):
    """The model cannot be run through paged attention; the message says why. `is_stateful`: because its state is not
    in attention at all."""

    def __init__(self, message: str, *, is_stateful: bool = False) -> None:
        super().__init__(message)
        self.is_stateful = is_stateful


@dataclass(frozen=True)
class LayerGeometry:
    """One call of attention in a forward: shapes, and what bends its scores.

    `window` is how many positions a row sees, itself included (None: all); `softcap` 0 caps nothing.
    """

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    scale: float
    window: int | None = None
    softcap: float = 0.0
    sinks: torch.Tensor | None = None
    """[num_heads]: a logit per head that takes part in the softmax and carries no value."""

    @property
    def bytes_per_token(self) -> int:
        """Key and value of one position."""
        return self.num_kv_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


class ForwardPass(Protocol):
    """Who answers the attention calls of one forward."""

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Attention output [1, T, num_heads, Dv] for queries [1, num_heads, T, Dk], keys [1, num_kv_heads, T, Dk] and
        values [1, num_kv_heads, T, Dv] of the T rows of this forward."""


_current: ContextVar[ForwardPass] = ContextVar("smartspec_forward_pass")


def current() -> ForwardPass:
    """Who answers now; raises LookupError outside a forward."""
    return _current.get()


@contextmanager
def answering(forward_pass: ForwardPass) -> Iterator[None]:
    """Let *forward_pass* answer every attention call made inside."""
    token = _current.set(forward_pass)
    try:
        yield
    finally:
        _current.reset(token)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if attention_mask is not None:
        raise UnsupportedModelError(f"{type(module).__name__} brings its own attention mask")
    if torch.compiler.is_compiling():
        caller: Any = module
        # The compiler sees an operator and the number of a layer: see `compiled_forward`.
        layer, table = caller.smartspec_calls[0], getattr(caller, "smartspec_table", None)
        output: torch.Tensor = (
            torch.ops.smartspec.attend(query, key, value, layer)
            if table is None
            else torch.ops.smartspec.native_attend(query, key, value, table, layer)
        )
        return output, None
    return current().attend(module, query, key, value, options), None


def use_paged_attention(model: PreTrainedModel) -> None:
    """Route *model*'s attention here; raises UnsupportedModelError when transformers refuses."""
    AttentionInterface.register(IMPLEMENTATION, _attention)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    except (ValueError, ImportError) as error:
        raise UnsupportedModelError(f"{type(model).__name__} refuses another attention: {error}") from error
    # transformers may refuse with no more than a warning, hence the look back.
    if model.config._attn_implementation != IMPLEMENTATION:
        raise UnsupportedModelError(f"{type(model).__name__} does not let its attention be chosen")


class _Survey:
    """Answers with zeros and notes what it was asked."""

    def __init__(self) -> None:
        self.layers: list[LayerGeometry] = []
        self.modules: list[torch.nn.Module] = []

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: dict[str, Any],
    ) -> torch.Tensor:
        self.layers.append(_geometry(module, query, key, value, options))
        self.modules.append(module)
        return value.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))


def survey(model: PreTrainedModel) -> list[LayerGeometry]:
    """What each attention call of *model* looks like, in order, found by running two tokens through it.

    The model must use paged attention already, and each module that attends is left with the numbers of its calls in
    `smartspec_calls`. Raises UnsupportedModelError when no attention is called at all.
    """
    seen = _Survey()
    ids = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    with torch.inference_mode(), answering(seen):
        model(input_ids=ids, position_ids=positions, use_cache=False)
    if not seen.layers:
        raise UnsupportedModelError(f"{type(model).__name__} keeps its state outside attention", is_stateful=True)
    caller: Any
    for caller in seen.modules:
        caller.smartspec_calls = tuple(i for i, other in enumerate(seen.modules) if other is caller)
    return seen.layers


def _geometry(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
) -> LayerGeometry:
    if not query.dtype == key.dtype == value.dtype or not query.shape[2] == key.shape[2] == value.shape[2]:
        raise UnsupportedModelError(
            f"{type(module).__name__} attends from {query.dtype} {list(query.shape)} to {key.dtype} {list(key.shape)}"
        )
    scale = options.get("scaling")
    sinks = options.get("s_aux")
    return LayerGeometry(
        num_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        key_dim=query.shape[3],
        value_dim=value.shape[3],
        dtype=key.dtype,
        scale=float(scale) if scale is not None else query.shape[3] ** -0.5,
        window=_window(module, options),
        softcap=float(options.get("softcap") or 0.0),
        sinks=None if sinks is None else sinks.detach().float().reshape(-1).contiguous(),
    )


def _window(module: torch.nn.Module, options: dict[str, Any]) -> int | None:
    """The sliding window: the keyword's, else the module's own, else what the config says of the layer.

    No mask is built for an implementation that transformers does not know, so this is the only place it can be lost.
    """
    if "sliding_window" in options:
        window = options["sliding_window"]
    elif hasattr(module, "sliding_window"):
        window = module.sliding_window
    else:
        config: Any = getattr(module, "config", None)
        kinds = getattr(config, "layer_types", None)
        layer = getattr(module, "layer_idx", None)
        slides = kinds is not None and layer is not None and kinds[layer] == "sliding_attention"
        window = config.sliding_window if slides else None
    return int(window) if window else None
