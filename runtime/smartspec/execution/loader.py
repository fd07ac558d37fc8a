"""From names to models that are ready to step: weights, tokenizer, KV cache, and what may be promised of them."""

import logging
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from smartspec.config import ConfigError, ModelConfig, RuntimeConfig
from smartspec.execution.attention import LayerGeometry, UnsupportedModelError, survey, use_paged_attention
from smartspec.execution.kv_cache import bytes_per_block
from smartspec.execution.memory import choose_num_blocks
from smartspec.execution.paged_model import PagedModel
from smartspec.execution.threads import available_threads
from smartspec.execution.tokenizer import HuggingFaceTokenizer
from smartspec.policy.types import Proposer

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROW_MULTIPLE = {torch.float32: 4, torch.bfloat16: 1}
"""Rows that a CPU's matrix products are padded to a multiple of, so that a row's bits do not depend on their number:
float32 kernels for one to three rows sum in another order than those for four and more."""


@dataclass(frozen=True)
class LoadedModel:
    """What `load` made. `key` names what a time model learned here is valid for."""

    target: PagedModel
    draft: PagedModel | None
    tokenizer: HuggingFaceTokenizer
    eos_token_ids: frozenset[int]
    attention: Literal["paged", "padded", "stateful"]
    invariant: bool
    proposers: tuple[Proposer, ...]
    num_blocks: int
    block_size: int
    max_model_len: int
    dtype: str
    device: str
    key: str


def load(config: RuntimeConfig) -> LoadedModel:
    """Load target, draft and tokenizer and allocate the KV cache; raises ConfigError for what cannot be met."""
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(config.num_threads or available_threads())
    model = config.model
    device = _device(model.device)
    tokenizer = HuggingFaceTokenizer.load(model.target, model.revision, trust_remote_code=model.trust_remote_code)
    target = _weights(model, model.target, model.revision, device)
    draft = None
    if model.draft is not None:
        draft = _weights(model, model.draft, model.draft_revision, device)
        theirs = HuggingFaceTokenizer.load(model.draft, model.draft_revision, trust_remote_code=model.trust_remote_code)
        difference = tokenizer.differs_from(theirs)
        if difference is not None:
            raise ConfigError(f"draft {model.draft!r} has another tokenizer than target {model.target!r}: {difference}")
    max_model_len = _max_model_len(config, target)
    models = [target] if draft is None else [target, draft]
    layers = [_layers(m) for m in models]
    num_blocks = choose_num_blocks(
        config.scheduler,
        block_bytes=sum(bytes_per_block(kind, config.scheduler.block_size) for kind in layers),
        max_model_len=max_model_len,
        device=device,
    )
    paged = [_paged(m, kind, num_blocks, config) for m, kind in zip(models, layers, strict=True)]
    dtype = str(target.dtype).removeprefix("torch.")
    proposers: list[Proposer] = ["draft"] if draft is not None else []
    if config.speculation.prompt_lookup:
        proposers.append("lookup")
    return LoadedModel(
        target=paged[0],
        draft=paged[1] if draft is not None else None,
        tokenizer=tokenizer,
        eos_token_ids=_eos_token_ids(target, tokenizer),
        attention="paged",
        invariant=device.type == "cpu" and all(p.attention.invariant for p in paged),
        proposers=tuple(proposers),
        num_blocks=num_blocks,
        block_size=config.scheduler.block_size,
        max_model_len=max_model_len,
        dtype=dtype,
        device=str(device),
        key=_key(model, device, dtype),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not one torch knows") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but this torch sees no GPU")
    return device


def _dtype(model: ModelConfig, source: str, revision: str | None, device: torch.device) -> torch.dtype:
    if model.dtype != "auto":
        if model.dtype not in DTYPES:
            raise ConfigError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {model.dtype!r}")
        return DTYPES[model.dtype]
    try:
        config: Any = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a model from {source!r}: {error}") from error
    dtype: torch.dtype = getattr(config, "dtype", None) or torch.float32
    # A CPU has no fast float16; bfloat16 is as small and never overflows.
    return torch.bfloat16 if dtype is torch.float16 and device.type == "cpu" else dtype


def _weights(model: ModelConfig, source: str, revision: str | None, device: torch.device) -> PreTrainedModel:
    dtype = _dtype(model, source, revision, device)
    try:
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot load a model from {source!r}: {error}") from error
    return loaded.to(device).eval()


def _layers(model: PreTrainedModel) -> list[LayerGeometry]:
    try:
        use_paged_attention(model)
        return survey(model)
    except UnsupportedModelError as error:
        raise ConfigError(f"{type(model).__name__} cannot be served: {error}") from error


def _paged(model: PreTrainedModel, layers: list[LayerGeometry], num_blocks: int, config: RuntimeConfig) -> PagedModel:
    return PagedModel(
        model,
        num_blocks=num_blocks,
        block_size=config.scheduler.block_size,
        layers=layers,
        row_multiple=ROW_MULTIPLE.get(model.dtype, 1) if model.device.type == "cpu" else 1,
    )


def _max_model_len(config: RuntimeConfig, target: PreTrainedModel) -> int:
    """As asked for, within what the model was made for."""
    longest = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    asked = config.model.max_model_len
    if asked is None:
        return int(longest or 4096)
    if asked < 2:
        raise ConfigError(f"max_model_len must be at least 2, got {asked}")
    if longest is not None and asked > longest:
        raise ConfigError(f"max_model_len {asked} exceeds the {longest} positions that the model was made for")
    return asked


def _eos_token_ids(target: PreTrainedModel, tokenizer: HuggingFaceTokenizer) -> frozenset[int]:
    configured: Any = target.generation_config.eos_token_id if target.generation_config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None)


def _key(model: ModelConfig, device: torch.device, dtype: str) -> str:
    """Device, dtype, target, draft, attention and tensor parallelism: what step times and acceptance depend on."""
    machine = f"cpu {_processor()} x{torch.get_num_threads()}"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    names = [f"{name}@{revision}" if revision else name for name, revision in _sources(model)]
    return "|".join((machine, dtype, *names, "paged", "tp1"))


def _sources(model: ModelConfig) -> list[tuple[str, str | None]]:
    return [(model.target, model.revision), (model.draft or "no draft", model.draft_revision if model.draft else None)]


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()
