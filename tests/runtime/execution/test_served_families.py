"""What is served is what transformers generates, family by family: through the loader, the scheduler with a prefix
cache, prompts in chunks, other requests in the batch, and wrong proposals of a draft or of the text itself; or else the
family is refused with the reason. Never is it served and wrong.
"""

import dataclasses
import itertools
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from execution_families import FAMILIES, PADDED, PAGED, REFUSED, STATEFUL, VOCAB, build, random_ids
from smartspec.composition import assemble
from smartspec.config import ConfigError, ModelConfig, RuntimeConfig, SchedulerConfig
from smartspec.execution import attention, self_check
from smartspec.execution.loader import LoadedModel, load
from smartspec.execution.self_check import Verdict
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Proposer
from smartspec.scheduling.request import Request, SamplingParams
from tiny import byte_tokenizer

NUM_TOKENS = 24
CLEAR = 1e-4
"""A token is beyond doubt when its logit is so far before the next: float32 sums in any order differ by 1e-6."""
DOCUMENT = Path(__file__).parents[3] / "docs" / "runtime.md"
SHARED = random_ids(24, seed=9)
PROMPTS = [
    random_ids(5, seed=10),
    (random_ids(6, seed=11) * 8)[:21],
    SHARED + random_ids(3, seed=12),
    (random_ids(9, seed=13) * 8)[:41],
    SHARED + random_ids(9, seed=14),
]
"""Some longer than every window and than a step's tokens, some repeating themselves, two with a common beginning."""


@dataclasses.dataclass(frozen=True)
class Told:
    """What an engine made of the prompts."""

    texts: list[list[int]]
    num_drafted: int
    num_accepted: int
    num_found: int
    """Prompt tokens found in the prefix cache."""


def write(family: str, outcome: str, folder: Path) -> RuntimeConfig:
    """A target of *family*, and as its draft the same model slightly off, so that it is right now and then."""
    model = build(FAMILIES[outcome][family]())
    model.generation_config.eos_token_id = 257
    words = byte_tokenizer(VOCAB)
    for name in ("target", "draft"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of some families about their own configs
            model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
        noise = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * parameter.std() * 0.1)
    return RuntimeConfig(
        ModelConfig(str(folder / "target"), str(folder / "draft"), dtype="float32", device="cpu", compile="off"),
        SchedulerConfig(max_num_seqs=5, max_num_batched_tokens=32, block_size=8, num_blocks=44),
        num_threads=1,
    )


@torch.inference_mode()
def generated(config: RuntimeConfig) -> list[tuple[list[int], int]]:
    """What `generate()` says to each prompt, alone, and how many of its tokens are beyond doubt from the first on.

    Eager attention, since transformers' own implementations differ by hundredths in falcon's alibi.
    """
    model = AutoModelForCausalLM.from_pretrained(
        config.model.target, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        first, second = torch.cat(said.logits).topk(2, dim=-1).values.T
        clear = itertools.takewhile(lambda gap: gap > CLEAR, (first - second).tolist())
        texts.append((said.sequences[0, len(prompt) :].tolist(), len(list(clear))))
    return texts


def serve(config: RuntimeConfig, model: LoadedModel, proposers: tuple[Proposer, ...]) -> Told:
    """All prompts at once, with three speculative tokens for everybody where there are *proposers*; time is made up."""
    readings = itertools.count()
    settings = PolicySettings(policy="fixed", max_speculative_tokens=3)
    engine = assemble(
        dataclasses.replace(model, proposers=proposers), config, settings, lambda: next(readings) / 1000
    ).engine
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
    for i, prompt in enumerate(PROMPTS):
        engine.scheduler.add(
            Request(str(i), prompt, sampling, noise_seed=i, arrival_time=0.0, eos_token_ids=model.eos_token_ids)
        )
    texts: list[list[int]] = [[] for _ in PROMPTS]
    sums: Counter[str] = Counter()
    while engine.scheduler.has_work:
        output = engine.step()
        assert output.stats is not None
        sums["drafted"] += sum(output.stats.drafted_by_proposer.values())
        sums["accepted"] += sum(output.stats.accepted_by_proposer.values())
        sums["found"] += output.stats.prefix_hit_tokens
        for new in output.outputs:
            texts[int(new.request_id)].extend(new.new_token_ids)
    engine.scheduler.check_idle()
    return Told(texts, sums["drafted"], sums["accepted"], sums["found"])


def check_texts(found: list[list[int]], expected: list[tuple[list[int], int]]) -> None:
    """Token for token as far as the reference is beyond doubt, which it must be nearly always."""
    assert sum(clear for _, clear in expected) >= 0.7 * sum(len(text) for text, _ in expected)
    for text, (reference, clear) in zip(found, expected, strict=True):
        assert text[:clear] == reference[:clear]
        assert clear < len(reference) or len(text) == len(reference)


def check_variety(expected: list[tuple[list[int], int]]) -> None:
    """Texts that say one thing for ever would be right by chance."""
    assert len({tuple(text) for text, _ in expected}) == len(expected)
    assert sum(len(set(text)) for text, _ in expected) >= 6 * len(expected)


@pytest.mark.parametrize(("outcome", "family"), [(o, f) for o in ("paged", "padded", "stateful") for f in FAMILIES[o]])
def test_the_text_served_is_that_of_generate(outcome: str, family: str, tmp_path: Path) -> None:
    """Batched and speculated on by a draft of the same family and by prompt lookup, in the way that the check chose."""
    config = write(family, outcome, tmp_path)
    model = load(config)
    assert model.attention == outcome
    assert model.proposers == (() if outcome == "stateful" else ("draft", "lookup"))
    expected = generated(config)
    check_variety(expected)
    for proposers in [("draft",), ("lookup",)] if model.proposers else [()]:
        told = serve(config, model, proposers)  # type: ignore[arg-type]
        check_texts(told.texts, expected)
        assert told.num_found > 0
        if proposers == ("draft",):
            assert 0 < told.num_accepted < told.num_drafted


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_right_is_refused(family: str, tmp_path: Path) -> None:
    """The message says that it cannot be served and why, and names the model."""
    config = write(family, "refused", tmp_path)
    with pytest.raises(ConfigError, match=r"target .*: it cannot be served: .*(causal|disagree|plain text)") as caught:
        load(config)
    assert config.model.target in str(caught.value)


@pytest.mark.parametrize("family", [family for family in PAGED if "window" in family])
def test_a_lost_window_would_show(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts are long enough: with the window lost and nobody checking, the text is another."""
    config = write(family, "paged", tmp_path)
    monkeypatch.setattr(attention, "_window", lambda module, options: None)
    monkeypatch.setattr(self_check, "check", lambda model: Verdict("paged", "unchecked", unchecked(model)))
    told = serve(config, load(config), ("draft",))
    with pytest.raises(AssertionError):
        check_texts(told.texts, generated(config))


def unchecked(model: object) -> list[attention.LayerGeometry]:
    """Layers of *model*, put on paged attention without a check."""
    attention.use_paged_attention(model)  # type: ignore[arg-type]
    return attention.survey(model)  # type: ignore[arg-type]


def test_the_documented_families_are_these() -> None:
    """docs/runtime.md lists each family under what comes of it, and no other."""
    rows = re.findall(r"^\| (paged|padded|stateful|refused) \| (.+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    documented = {outcome: re.findall(r"`([^`]+)`", names) for outcome, names in rows}
    tested = {outcome: sorted({name.partition(",")[0] for name in families}) for outcome, families in FAMILIES.items()}
    assert documented == tested
    assert len(tested["paged"]) >= 45
    assert len(PADDED) + len(STATEFUL) + len(REFUSED) >= 30
