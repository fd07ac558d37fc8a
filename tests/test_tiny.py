"""The tiny pair keeps its promises: equal weights for equal seeds, and a draft that is often but not always right."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny


def test_equal_seeds_write_equal_weights(tmp_path: Path) -> None:
    """The weights depend on the seed alone, not on what drew random numbers before."""
    first = tiny.write_pair(tmp_path / "first", seed=3)
    torch.rand(7)
    second = tiny.write_pair(tmp_path / "second", seed=3)
    other = tiny.write_pair(tmp_path / "other", seed=4)
    weights = [load_file(pair.target / "model.safetensors") for pair in (first, second, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])


def test_draft_agrees_often_but_not_always(tmp_path: Path) -> None:
    """Along the target's greedy text the draft's argmax is right between a third and nine tenths of the time."""
    pair = tiny.write_pair(tmp_path)
    target, draft = (AutoModelForCausalLM.from_pretrained(folder) for folder in (pair.target, pair.draft))
    ids = torch.tensor([[104, 101, 108, 108, 111]])
    with torch.inference_mode():
        text = target.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0)
        agrees = target(text).logits.argmax(-1) == draft(text).logits.argmax(-1)
    assert 1 / 3 < agrees[0, ids.shape[1] - 1 :].float().mean() < 0.9


def test_tokenizer_round_trips_any_text(tmp_path: Path) -> None:
    """Byte-level tokens lose nothing, and merges make some tokens longer than a character."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.write_pair(tmp_path).target)
    text = "the naïve 日本語 text\n\twith 🙂"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode("there")) < len("there")
