"""The check at load catches what would be silently wrong."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, GptOssConfig, LlamaConfig, LlamaForCausalLM, MistralConfig

from execution_families import PADDED, PAGED, REFUSED, build
from smartspec.execution import attention, self_check, twin
from smartspec.execution.attention import LayerGeometry, UnsupportedModelError
from smartspec.execution.compiled_attention import CompiledAttention
from smartspec.execution.paged_model import PagedModel

LONG_WINDOW = PAGED["mistral, window"]().to_dict() | {"sliding_window": 200}


def test_a_long_window_that_gets_lost_is_found_in_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial texts are shorter than the window: only the twin's short one can tell."""
    assert self_check.check(build(MistralConfig(**LONG_WINDOW))).attention == "paged"
    monkeypatch.setattr(attention, "_window", lambda module, options: None)
    verdict = self_check.check(build(MistralConfig(**LONG_WINDOW)))
    assert verdict.attention == "padded"
    assert "twin" in verdict.reason


@pytest.mark.parametrize(
    ("lost", "family"),
    [
        ({"softcap": 0.0}, "gemma2, soft cap and window"),
        ({"sinks": None}, "gpt_oss, sinks and window"),
        ({"scale": 1.0}, "llama"),
    ],
)
def test_a_lost_part_of_the_scores_is_found(monkeypatch: pytest.MonkeyPatch, lost: dict[str, Any], family: str) -> None:
    """Soft cap, sinks and scale: a keyword overlooked is an error seen."""
    config = PAGED[family]()
    assert isinstance(config, (Gemma2Config, GptOssConfig, LlamaConfig))
    if isinstance(config, Gemma2Config):
        config.attn_logit_softcapping = 2.0
    seen = attention._geometry
    monkeypatch.setattr(attention, "_geometry", lambda *args: replace(seen(*args), **lost))
    assert self_check.check(build(config)).attention == "padded"


def test_a_bounded_view_of_unknown_name_is_found_in_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed keys begin after 128 tokens: where the twin does not know what to shrink, its long text tells."""
    monkeypatch.setattr(twin, "_windows", lambda text: {})
    verdict = self_check.check(build(PADDED["deepseek_v4, compresses keys after 128 tokens"]()))
    assert verdict.attention == "padded"
    assert "twin" in verdict.reason


def test_a_mask_with_hindsight_is_refused() -> None:
    """No order of tokens could be served: what was said depends on what is said later. In float32, and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(UnsupportedModelError, match="no causal language model as configured: later tokens"):
            self_check.check(build(REFUSED["bert, not causal"]()).to(dtype))


def test_a_plain_forward_that_generates_something_else_is_refused() -> None:
    """All that the check compares could agree, and be wrong: here `generate()` alone has a window."""
    with pytest.raises(UnsupportedModelError, match="plain forward of MoshiForCausalLM disagree"):
        self_check.check(build(REFUSED["moshi, speech"]()))


def test_a_generation_that_fails_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not what serves: code of its own may bring a model without one that works."""

    def fail(*args: object, **options: object) -> None:
        raise AttributeError("no generation here")

    monkeypatch.setattr(LlamaForCausalLM, "generate", fail)
    assert self_check.check(build(PAGED["llama"]())).attention == "paged"


def test_a_model_that_fails_goes_back_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recomputed must run as transformers runs it."""
    monkeypatch.setattr(attention, "_window", lambda module, options: 1)
    model = build(PAGED["llama"]())
    assert self_check.check(model).attention == "padded"
    assert model.config._attn_implementation == "eager"


def test_the_twin_keeps_every_kind_of_layer_and_shrinks_the_rest() -> None:
    """A deep model with a rare kind of layer gets few layers of both kinds and short windows."""
    config = PAGED["gemma3_text, two ropes and window"]()
    big = type(config)(
        **(
            config.to_dict()
            | {"num_hidden_layers": 12, "layer_types": None, "sliding_window": 1024, "max_position_embeddings": 4096}
            | {"vocab_size": 5000}
        )
    )
    small = twin.build(big)
    assert small is not None
    assert set(small.config.layer_types) == {"sliding_attention", "full_attention"}
    assert small.config.num_hidden_layers <= 6
    assert small.config.sliding_window == twin.WINDOW
    assert sum(p.numel() for p in small.parameters()) < 1_000_000
    assert big.num_hidden_layers == 12


def test_invariance_is_measured_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose rows depend on their company is caught."""
    model = PagedModel(build(PAGED["llama"]()), num_blocks=32, block_size=16, row_multiple=4)
    assert self_check.is_invariant(model)
    right = CompiledAttention.attend

    def noisy(
        self: CompiledAttention, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        return right(self, layer, query, key, value) * (1 + 1e-6 * (query.shape[2] % 3))

    monkeypatch.setattr(CompiledAttention, "attend", noisy)
    assert not self_check.is_invariant(model)


def test_geometry_is_read_from_the_calls() -> None:
    """Shapes, windows and sinks per layer, without a look at the config's names."""
    model = build(PAGED["gpt_oss, sinks and window"]())
    attention.use_paged_attention(model)
    first, second = attention.survey(model)
    assert isinstance(first, LayerGeometry)
    assert (first.num_heads, first.num_kv_heads, first.key_dim, first.value_dim) == (4, 2, 16, 16)
    assert first.sinks is not None
    assert first.sinks.shape == (4,)
    assert [first.window, second.window] == [8, None]


@pytest.mark.parametrize(
    ("own", "options", "window"),
    [
        ({"sliding_window": 5}, {"sliding_window": 7}, 7),
        ({"sliding_window": 5}, {"sliding_window": None}, None),
        ({"sliding_window": 5}, {}, 5),
        ({"layer_idx": 0}, {}, 9),
        ({"layer_idx": 1}, {}, None),
        ({}, {}, None),
    ],
)
def test_a_window_comes_from_keyword_module_or_config(
    own: dict[str, Any], options: dict[str, Any], window: int | None
) -> None:
    """In this order: a keyword of None is an answer too."""
    module = torch.nn.Module()
    own = {"config": SimpleNamespace(sliding_window=9, layer_types=["sliding_attention", "full_attention"])} | own
    for name, value in own.items():
        setattr(module, name, value)
    assert attention._window(module, options) == window
