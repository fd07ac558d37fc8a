"""The inflated model computes what the small one computes, and impossible shapes are refused by name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def _load() -> ModuleType:
    """Imports benchmarks/inflate.py from its path: the benchmarks are scripts, not a package."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "inflate.py"
    spec = importlib.util.spec_from_file_location("benchmarks_inflate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


inflate = _load()

SMALL = inflate.Shape(hidden=24, layers=2, heads=4, kv_heads=2, mlp=40)
LARGE = inflate.Shape(hidden=60, layers=5, heads=10, kv_heads=5, mlp=96)


def _checkpoint(folder: Path, *, tied: bool = True, scale: float = 1.0) -> LlamaForCausalLM:
    """A random float32 model written to `folder`; its norm weights are random too, since fresh ones are all one."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=SMALL.hidden,
            intermediate_size=SMALL.mlp,
            num_hidden_layers=SMALL.layers,
            num_attention_heads=SMALL.heads,
            num_key_value_heads=SMALL.kv_heads,
            head_dim=8,
            rms_norm_eps=1e-2,  # large enough that forgetting to scale it would show
            tie_word_embeddings=tied,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5 if "norm" in name else torch.randn_like(parameter) * scale)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}\n')
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_logits_agree(tmp_path: Path, tied: bool) -> None:
    """In float32 the inflated model gives the small one's logits, tied and untied."""
    small = _checkpoint(tmp_path / "small", tied=tied, scale=0.2)
    assert inflate.inflate(tmp_path / "small", tmp_path / "large", shape=LARGE, dtype=torch.float32)
    large = LlamaForCausalLM.from_pretrained(tmp_path / "large", dtype=torch.float32).eval()
    tokens = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = small(input_ids=tokens).logits, large(input_ids=tokens).logits
    assert expected.std() > 0.05  # otherwise agreement to 1e-5 would say nothing
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    layer = large.model.layers[LARGE.layers - 1]
    assert layer.self_attn.q_proj.weight.shape == (LARGE.heads * 8, LARGE.hidden)
    assert layer.mlp.down_proj.weight.shape == (LARGE.hidden, LARGE.mlp)
    assert layer.mlp.up_proj.weight.std() > 0.01  # new layers compute something, and only their output is dropped


def test_keeps_the_tokenizer_and_generation_files(tmp_path: Path) -> None:
    """What is not weights or shape is copied as it is."""
    _checkpoint(tmp_path / "small")
    inflate.inflate(tmp_path / "small", tmp_path / "large", shape=LARGE)
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "large" / name).read_bytes() == (tmp_path / "small" / name).read_bytes()


def test_skips_a_complete_destination_and_rebuilds_a_stale_one(tmp_path: Path) -> None:
    """The same inputs are built once; a change of any of them builds again, reproducibly."""
    small, large = tmp_path / "small", tmp_path / "large"
    _checkpoint(small)
    assert inflate.inflate(small, large, shape=LARGE)
    first = (large / "model.safetensors").read_bytes()
    assert not inflate.inflate(small, large, shape=LARGE)
    assert inflate.inflate(small, large, shape=LARGE, seed=1)
    assert (large / "model.safetensors").read_bytes() != first
    assert inflate.inflate(small, large, shape=LARGE)
    assert (large / "model.safetensors").read_bytes() == first
    _checkpoint(small, scale=0.5)
    assert inflate.inflate(small, large, shape=LARGE)


def test_does_not_replace_what_it_did_not_make(tmp_path: Path) -> None:
    """A folder of someone else's files is refused, as destination and as source."""
    _checkpoint(tmp_path / "small")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="mine"):
        inflate.inflate(tmp_path / "small", tmp_path / "mine", shape=LARGE)
    with pytest.raises(FileNotFoundError, match="no Llama checkpoint"):
        inflate.inflate(tmp_path / "mine", tmp_path / "large", shape=LARGE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (inflate.Shape(hidden=16, layers=2, heads=4, kv_heads=2, mlp=40), "^hidden: 16 is less"),
        (inflate.Shape(hidden=24, layers=1, heads=4, kv_heads=2, mlp=40), "^layers: 1 is less"),
        (inflate.Shape(hidden=24, layers=2, heads=2, kv_heads=2, mlp=40), "^heads: 2 is less"),
        (inflate.Shape(hidden=24, layers=2, heads=4, kv_heads=2, mlp=8), "^mlp: 8 is less"),
        (inflate.Shape(hidden=24, layers=2, heads=8, kv_heads=3, mlp=40), "^kv_heads: 3 does not divide"),
        (inflate.Shape(hidden=24, layers=2, heads=8, kv_heads=2, mlp=40), "^kv_heads: .* ask for 4"),
        (inflate.Shape(hidden=64, layers=2, heads=10, kv_heads=5, mlp=40), "^heads: 10 does not divide hidden"),
    ],
)
def test_refuses_an_impossible_shape_by_name(tmp_path: Path, shape: object, message: str) -> None:
    """The error starts with the parameter to change, and nothing is written."""
    _checkpoint(tmp_path / "small")
    with pytest.raises(inflate.ShapeError, match=message):
        inflate.inflate(tmp_path / "small", tmp_path / "large", shape=shape)
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize("key", ["model_type", "attention_bias"])
def test_refuses_another_architecture_by_name(key: str) -> None:
    """Only a Llama without biases can be inflated."""
    config = {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 24} | {key: "qwen2"}
    with pytest.raises(inflate.ShapeError, match=f"^{key}: "):
        inflate.check(config, LARGE)
