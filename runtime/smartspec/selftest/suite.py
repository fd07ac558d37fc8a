"""The whole selftest, in the order in which a person would want to know."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from smartspec import __version__
from smartspec.config import ConfigError, RuntimeConfig
from smartspec.execution import checkpoint, rope
from smartspec.execution.checkpoint import Source
from smartspec.execution.loader import LoadedModel, load
from smartspec.execution.tokenizer import HuggingFaceTokenizer
from smartspec.selftest import law, lossless, measure, reference
from smartspec.selftest.reference import Reference
from smartspec.selftest.report import Check, Report
from smartspec.selftest.runs import Served

LONGEST_PROMPT = 96
"""Tokens that are kept of a prompt."""
MOST_PROMPTS = 64


@dataclass(frozen=True)
class Effort:
    """How much is tried. Batches grow to *most_requests* or until *seconds* are over."""

    num_prompts: int = 8
    num_tokens: int = 48
    num_draws: int = 20_000
    most_requests: int = 256
    seconds: float = 40.0


QUICK = Effort(num_prompts=3, num_tokens=16, num_draws=4_000, most_requests=16, seconds=3.0)
"""Some seconds with a small pair, for a look."""


def selftest(config: RuntimeConfig, texts: Sequence[str], effort: Effort, say: Callable[[str], None]) -> Report:
    """Check and measure what *config* names on *texts*; *say* is told of progress. Raises ConfigError."""
    began = time.perf_counter()
    config = replace(config, scheduler=replace(config.scheduler, max_num_seqs=max(64, effort.most_requests)))
    say("generate(), as transformers has it")
    everything = _prompts(config, texts, effort)
    prompts = everything[: effort.num_prompts]
    expected = reference.generate(config.model, prompts, effort.num_tokens)
    say("loading")
    model = load(config)
    served = Served(config, model)
    checks = [_self_check(model, expected, config.model.draft)]
    say("greedy texts")
    checks += lossless.greedy(served, expected, prompts, effort.num_tokens)
    if model.proposers:
        say("seeded texts")
        checks += lossless.coupled(served, prompts, effort.num_tokens)
        say("rejection sampling")
        chains = law.chains_of(model, prompts[0])
        checks += [law.check(served, chains, proposer, effort.num_draws) for proposer in model.proposers]
    sizes = [1 << i for i in range(effort.most_requests.bit_length())]
    say("time of forwards")
    curve = measure.curve(served, sizes)
    report = Report(
        target=config.model.target,
        draft=config.model.draft,
        version=__version__,
        key=model.key,
        attention=model.attention,
        invariant=model.invariant,
        proposers=model.proposers,
        seconds=time.perf_counter() - began,
        checks=tuple(checks),
        curve=tuple(curve),
    )
    if not model.proposers:
        return report
    learned = measure.rehearse(served, everything, sizes, effort.seconds, say)
    choices = learned.choices(sizes, model.key, config.speculation.num_speculative_tokens)
    return msgspec.structs.replace(
        report,
        acceptance=tuple(learned.acceptance),
        time_error=learned.time_error,
        choices=tuple(choices),
        seconds=time.perf_counter() - began,
    )


def _prompts(config: RuntimeConfig, texts: Sequence[str], effort: Effort) -> list[list[int]]:
    """*texts* as tokens, their ends kept where they are too long; raises ConfigError when nothing is left."""
    chosen = config.model
    source = Source("target", chosen.target, chosen.revision, chosen.trust_remote_code)
    model_len = rope.length_limit(checkpoint.read_config(source), chosen.max_model_len)
    longest = min(LONGEST_PROMPT, model_len - effort.num_tokens - 1)
    if longest < 1:
        raise ConfigError(f"max_model_len {model_len} leaves no room for {effort.num_tokens} tokens")
    words = HuggingFaceTokenizer(checkpoint.read_tokenizer(source))
    prompts = [ids[-longest:] for text in texts[:MOST_PROMPTS] if (ids := words.encode(text))]
    if not prompts:
        raise ConfigError("prompts: the tokenizer makes nothing of them")
    return prompts


def _self_check(model: LoadedModel, expected: Reference, draft: str | None) -> Check:
    """How the model is served, and why so; none of the answers is a fault, but people should know."""
    reason = expected.verdict.reason
    detail = {
        "paged": f"paged attention: {reason}",
        "padded": f"recomputed in padded batches, slow and right: {reason}",
        "stateful": f"recomputed request by request, no speculation{' with any draft' if draft else ''}: {reason}",
    }[model.attention]
    promise = f"{'' if model.invariant else 'not '}promised: the same seed, the same text"
    return Check("self-check", "ok", f"{detail}; {promise}")
