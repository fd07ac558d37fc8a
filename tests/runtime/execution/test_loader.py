"""Loading: what is decided, what is promised, and what is refused in words a user understands."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, ReformerConfig

from smartspec.config import ConfigError, ModelConfig, RuntimeConfig, SchedulerConfig, SpeculationConfig
from smartspec.execution import checkpoint
from smartspec.execution.batch import Segment
from smartspec.execution.loader import load
from tiny import TinyPair, byte_tokenizer, write_pair

SCHEDULER = SchedulerConfig(max_num_seqs=4, num_blocks=64)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """A tiny target and draft on disk."""
    return write_pair(tmp_path_factory.mktemp("pair"))


def config(pair: TinyPair, **model: object) -> RuntimeConfig:
    """A configuration that loads the pair on one thread."""
    chosen = replace(ModelConfig(target=str(pair.target), draft=str(pair.draft), device="cpu", compile="off"), **model)  # type: ignore[arg-type]
    return RuntimeConfig(chosen, SCHEDULER, num_threads=1)


@pytest.fixture
def copied(pair: TinyPair, tmp_path: Path) -> TinyPair:
    """A pair to spoil."""
    copy = TinyPair(tmp_path / "target", tmp_path / "draft")
    shutil.copytree(pair.target, copy.target)
    shutil.copytree(pair.draft, copy.draft)
    return copy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pair_is_loaded_with_what_can_be_promised(pair: TinyPair, dtype: str) -> None:
    """Paged, invariant on a CPU, with both proposers, and one cache size for target and draft."""
    model = load(config(pair, dtype=dtype))
    assert (model.attention, model.invariant, model.dtype, model.device) == ("paged", True, dtype, "cpu")
    assert model.proposers == ("draft", "lookup")
    assert model.eos_token_ids == frozenset({257})
    assert (model.num_blocks, model.block_size, model.max_model_len) == (64, 16, 512)
    assert model.draft is not None
    assert model.target.num_blocks == model.draft.num_blocks == 64
    logits = model.draft.forward([Segment([1, 2, 3], 0, [63], 1)])
    assert logits.shape == (1, 384)
    assert logits.dtype == torch.float32


def test_the_key_names_all_that_times_depend_on(pair: TinyPair) -> None:
    """Another dtype, draft or number of threads is another key."""
    base = config(pair)
    keys = {
        load(c).key
        for c in (base, config(pair, dtype="bfloat16"), config(pair, draft=None), replace(base, num_threads=2))
    }
    assert len(keys) == 4
    assert str(pair.target) in load(base).key


def test_proposers_are_those_that_can_propose(pair: TinyPair) -> None:
    """No draft, no draft proposer; no lookup when it is switched off."""
    without = replace(config(pair, draft=None), speculation=SpeculationConfig(prompt_lookup=False))
    assert load(without).proposers == ()


def test_a_model_with_state_elsewhere_is_served_without_speculation(tmp_path: Path) -> None:
    """Mamba: recomputed, right, and no proposer."""
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(
            MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, max_position_embeddings=128)
        )
    model.save_pretrained(tmp_path)
    byte_tokenizer(300).save_pretrained(tmp_path)
    loaded = load(
        RuntimeConfig(ModelConfig(target=str(tmp_path), device="cpu", compile="off"), SCHEDULER, num_threads=1)
    )
    assert (loaded.attention, loaded.invariant, loaded.proposers) == ("stateful", False, ())
    ids = list(range(20))
    loaded.target.forward([Segment(ids[:19], 0, [5, 6])])
    with torch.inference_mode():
        expected = model.eval()(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(
        loaded.target.forward([Segment(ids[19:], 19, [5, 6], 1)])[0], expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "/nowhere/model"}, "target /nowhere/model: there is no such folder, and it is no hub id"),
        ({"target": "./nope"}, r"target \./nope: there is no such folder, and it is no hub id"),
        ({"draft": "no/where/model"}, "draft no/where/model: there is no such folder, and it is no hub id"),
        ({"dtype": "int8"}, "dtype must be auto, float32, bfloat16, float16"),
        ({"device": "toaster"}, "device must be auto, cpu, cuda"),
        ({"max_model_len": 4096}, "max_model_len must be at most 512"),
        ({"max_model_len": 1}, "max_model_len must be at least 2"),
    ],
)
def test_a_setting_out_of_bounds_is_named(pair: TinyPair, change: dict[str, object], message: str) -> None:
    """The message says which and what would be accepted."""
    with pytest.raises(ConfigError, match=message):
        load(config(pair, **change))


def test_who_insists_on_a_compiler_hears_at_once_that_there_is_none(
    pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before models are read."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(checkpoint, "read_model", lambda *_, **__: pytest.fail("a model was read"))
    with pytest.raises(ConfigError, match=r"compile is on, .* no-such-compiler is not on the PATH"):
        load(config(pair, compile="on"))


def test_a_hub_id_that_cannot_be_had_is_said_to_be_no_folder(pair: TinyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever mistypes a folder's name is not told about the network alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="target models/nope: there is no such folder, and taken as a hub id, its"):
        load(config(pair, target="models/nope"))


def test_reading_weights_draws_no_bar(pair: TinyPair, capfd: pytest.CaptureFixture[str]) -> None:
    """A log is no terminal."""
    load(config(pair))
    assert "Loading weights" not in capfd.readouterr().err


def test_a_family_that_refuses_its_own_config_is_refused_in_its_words(copied: TinyPair) -> None:
    """Each has another exception for that: here an AssertionError."""
    (copied.target / "config.json").write_text(json.dumps(ReformerConfig(is_decoder=False).to_dict()))
    with pytest.raises(ConfigError, match=r"target .*: its weights cannot be loaded: .*is_decoder=True"):
        load(config(copied))


def test_pickled_weights_are_never_read(copied: TinyPair) -> None:
    """Only safetensors: reading a pickle can run code."""
    torch.save({}, copied.target / "pytorch_model.bin")
    (copied.target / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"target .*: its weights cannot be loaded"):
        load(config(copied))


@pytest.mark.parametrize("size", [0, 4, 100, 20_000])
def test_a_file_cut_short_is_refused(copied: TinyPair, size: int) -> None:
    """A copy that was not finished, wherever it ended, is one line that names the model."""
    os.truncate(copied.target / "model.safetensors", size)
    with pytest.raises(ConfigError, match=r"target .*: its weights cannot be loaded"):
        load(config(copied))


def test_missing_weights_are_refused(copied: TinyPair) -> None:
    """A config deeper than the checkpoint would be served with random layers."""
    path = copied.target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 5}))
    with pytest.raises(ConfigError, match=r"weights are missing or misshapen: model\.layers\.4"):
        load(config(copied))


def test_a_draft_with_another_tokenizer_is_refused(copied: TinyPair) -> None:
    """Its tokens would mean something else; the first difference is named."""
    path = copied.draft / "tokenizer.json"
    words = json.loads(path.read_text())
    vocab = words["model"]["vocab"]
    vocab["et"], vocab["ea"] = vocab["ea"], vocab["et"]
    path.write_text(json.dumps(words))
    with pytest.raises(ConfigError, match=r"draft: its tokenizer differs from the target's: token 'e[ta]'"):
        load(config(copied))


def test_code_from_a_checkpoint_is_not_run_unasked(copied: TinyPair) -> None:
    """Remote code needs --trust-remote-code."""
    path = copied.target / "config.json"
    own = {"model_type": "homemade", "auto_map": {"AutoConfig": "homemade.Config"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (copied.target / "homemade.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ConfigError, match="--trust-remote-code"):
        load(config(copied))
