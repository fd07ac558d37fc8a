"""From a configuration to models ready to step: everything that is checked, measured and decided once, at load."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from smartspec.config import Compile, ConfigError, ModelConfig, RuntimeConfig
from smartspec.execution import checkpoint, memory, rope, self_check, threads, tokenizer
from smartspec.execution.attention import LayerGeometry, UnsupportedModelError
from smartspec.execution.checkpoint import Source
from smartspec.execution.compiled_forward import CompileError, compile_forward
from smartspec.execution.grammar import GrammarCompiler
from smartspec.execution.inductor import missing_compiler
from smartspec.execution.kv_cache import bytes_per_block
from smartspec.execution.packed_linear import Product, has_own_kernel, pack_linears
from smartspec.execution.paged_model import PagedModel, eager
from smartspec.execution.recomputed_model import RecomputedModel
from smartspec.execution.row_invariance import row_multiple
from smartspec.execution.self_check import Attention
from smartspec.native import processor
from smartspec.policy.types import Proposer
from smartspec.scheduling.client import Tokenizer
from smartspec.scheduling.grammar import Grammar, GrammarSpec

log = logging.getLogger(__name__)

Model = PagedModel | RecomputedModel

_SMALL_PARAMETERS = 4_000_000
"""A draft up to this size runs in float32 on a CPU where products of bfloat16 are oneDNN's: there each has some 15
microseconds of its own, and a small model consists of little else."""


@dataclass(frozen=True)
class LoadedModel:
    """Models under one set of block ids, and what can be promised of them; see `EngineInfo` for the shared fields."""

    target: Model
    draft: Model | None
    tokenizer: Tokenizer
    compile_grammar: Callable[[GrammarSpec], Grammar]
    eos_token_ids: frozenset[int]
    attention: Attention
    compiled: bool
    invariant: bool
    key: str
    dtype: str
    device: str
    num_blocks: int
    block_size: int
    max_model_len: int
    proposers: tuple[Proposer, ...]


@dataclass(frozen=True)
class _Candidate:
    """A model in memory, checked but without a cache."""

    model: PreTrainedModel
    attention: Attention
    layers: list[LayerGeometry]
    products: list[Product]
    row_multiple: int | None
    is_target: bool

    def bytes_per_block(self, block_size: int) -> int:
        """What one block costs: keys and values, or the token ids of a model that is recomputed."""
        return bytes_per_block(self.layers, block_size) if self.layers else 8 * block_size

    def build(self, *, num_blocks: int, block_size: int) -> Model:
        """The model over a cache of *num_blocks*."""
        if self.attention == "paged":
            return PagedModel(
                self.model,
                num_blocks=num_blocks,
                block_size=block_size,
                layers=self.layers,
                products=self.products,
                row_multiple=self.row_multiple or 1,
                hurries=not self.is_target,
            )
        return RecomputedModel(
            self.model, num_blocks=num_blocks, block_size=block_size, batches=self.attention == "padded"
        )


def load(config: RuntimeConfig) -> LoadedModel:
    """Load, check and lay out what *config* names. Raises ConfigError, which says what would be accepted."""
    began = time.perf_counter()
    chosen = config.model
    device = checkpoint.choose_device(chosen.device)
    if chosen.compile == "on" and device.type == "cpu" and (problem := missing_compiler()) is not None:
        raise ConfigError(f"compile is on, but nothing can be compiled: {problem}")
    num_threads = threads.set_threads(config.num_threads)
    source = Source("target", chosen.target, chosen.revision, chosen.trust_remote_code)
    target_config = checkpoint.read_config(source)
    dtype = checkpoint.choose_dtype(chosen.dtype, target_config, device)
    words = checkpoint.read_tokenizer(source)
    model_len = rope.length_limit(target_config, chosen.max_model_len)
    target = _candidate(source, target_config, dtype, device, is_target=True)
    draft = None
    if chosen.draft is not None:
        draft_source = Source("draft", chosen.draft, chosen.draft_revision, chosen.trust_remote_code)
        draft_config = checkpoint.read_config(draft_source)
        tokenizer.check_same(words, checkpoint.read_tokenizer(draft_source))
        # A draft that sees less far than its target bounds the pair: past its limit it would only guess.
        model_len = min(model_len, rope.length_limit(draft_config, chosen.max_model_len))
        if target.attention != "stateful":
            draft = _candidate(draft_source, draft_config, dtype, device, is_target=False)
    block_size = config.scheduler.block_size
    size = memory.size_cache(
        config.scheduler,
        bytes_per_block=sum(c.bytes_per_block(block_size) for c in (target, draft) if c is not None),
        device=device,
        model_len=model_len,
        requested_len=chosen.max_model_len,
    )
    built = target.build(num_blocks=size.num_blocks, block_size=block_size)
    built_draft = None if draft is None else draft.build(num_blocks=size.num_blocks, block_size=block_size)
    invariant = target.row_multiple is not None and self_check.is_invariant(built)
    compiled = _compile(built, "target", chosen.compile, must_be_invariant=invariant)
    if built_draft is not None:
        _compile(built_draft, "draft", chosen.compile, must_be_invariant=False)
    eos_token_ids = _eos_token_ids(target.model, words)
    loaded = LoadedModel(
        target=built,
        draft=built_draft,
        tokenizer=tokenizer.HuggingFaceTokenizer(words),
        compile_grammar=GrammarCompiler(words, vocab_size=built.vocab_size, eos_token_ids=eos_token_ids).compile,
        eos_token_ids=eos_token_ids,
        attention=target.attention,
        compiled=compiled,
        invariant=invariant,
        key=_key(chosen, target.attention, dtype, device, num_threads, compiled),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        num_blocks=size.num_blocks,
        block_size=block_size,
        max_model_len=size.max_model_len,
        proposers=_proposers(config, target, draft),
    )
    log.info(
        "event=model_loaded target=%s draft=%s dtype=%s device=%s threads=%d attention=%s compiled=%s invariant=%s "
        "num_blocks=%d block_size=%d max_model_len=%d proposers=%s seconds=%.1f",
        chosen.target, chosen.draft, loaded.dtype, device, num_threads, loaded.attention,
        loaded.compiled, loaded.invariant, loaded.num_blocks, block_size, loaded.max_model_len,
        ",".join(loaded.proposers), time.perf_counter() - began,
    )  # fmt: skip
    return loaded


def _candidate(source: Source, config: Any, dtype: torch.dtype, device: torch.device, *, is_target: bool) -> _Candidate:
    model = checkpoint.read_model(source, config, dtype=dtype, device=device)
    is_small_draft = not is_target and model.num_parameters(exclude_embeddings=True) <= _SMALL_PARAMETERS
    if is_small_draft and device.type == "cpu" and not (dtype == torch.bfloat16 and has_own_kernel()):
        model.float()
    try:
        verdict = self_check.check(model)
    except UnsupportedModelError as problem:
        raise ConfigError(f"{source.role} {source.name}: it cannot be served: {problem}") from problem
    log.info("event=attention_checked model=%s attention=%s reason=%r", source.name, verdict.attention, verdict.reason)
    products = pack_linears(model) if verdict.attention == "paged" else []
    # What a draft computes decides how much is accepted, never what the text is: only the target's bits must hold.
    multiple = row_multiple(model) if is_target and device.type == "cpu" else None
    return _Candidate(model, verdict.attention, verdict.layers, products, multiple, is_target)


def _compile(built: Model, role: str, wish: Compile, *, must_be_invariant: bool) -> bool:
    """Put *built* on a compiled forward as *wish* has it; whether it is on one now. Raises ConfigError for "on" where
    that cannot be."""
    if wish == "off" or not isinstance(built, PagedModel):
        return False
    try:
        # Whoever insists must not meet a server that does not start because a neighbour was busy while it measured.
        compiled = compile_forward(built, time.perf_counter, must_be_faster=wish != "on")
        if must_be_invariant and not self_check.is_invariant(built):
            built.run_by(eager(built.model))
            raise CompileError("compiled rows depend on the rows beside them")
    except CompileError as problem:
        if wish == "on":
            raise ConfigError(f"compile is on, but the {role} cannot be compiled: {problem}") from problem
        log.warning("event=not_compiled model=%s reason=%r", role, str(problem))
        return False
    log.info("event=compiled model=%s seconds=%.1f steps=%r", role, compiled.seconds, str(compiled))
    return True


def _proposers(config: RuntimeConfig, target: _Candidate, draft: _Candidate | None) -> tuple[Proposer, ...]:
    if target.attention == "stateful":
        return ()
    names: list[Proposer] = ["draft"] if draft is not None else []
    return (*names, "lookup") if config.speculation.prompt_lookup else tuple(names)


def _eos_token_ids(model: PreTrainedModel, words: Any) -> frozenset[int]:
    """The generation config's end tokens (one or several), else the tokenizer's."""
    generation: Any = model.generation_config
    for ids in (getattr(generation, "eos_token_id", None), words.eos_token_id):
        if ids is not None:
            return frozenset(ids if isinstance(ids, (list, tuple)) else [ids])
    return frozenset()


def _key(
    chosen: ModelConfig,
    attention: Attention,
    dtype: torch.dtype,
    device: torch.device,
    num_threads: int,
    compiled: bool,
) -> str:
    """What measured times and acceptance belong to: see `Priors.key`."""
    name = processor().get("model name", "cpu")
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{name} x{num_threads}"
    parts = (
        f"device={hardware}",
        f"dtype={str(dtype).removeprefix('torch.')}",
        f"target={chosen.target}@{chosen.revision or 'main'}",
        f"draft={chosen.draft}@{chosen.draft_revision or 'main'}" if chosen.draft else "draft=none",
        f"attention={attention}",
        f"forward={'compiled' if compiled else 'eager'}",
        "tp=1",
    )
    return ";".join(parts)
