"""How the parts of an engine are put together: models, policy, scheduler, proposer and runner, rehearsed once."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from smartspec import warmup
from smartspec.async_engine.thread import LoadedEngine, TunablePolicy
from smartspec.config import RuntimeConfig
from smartspec.engine import Engine
from smartspec.execution.loader import LoadedModel, load
from smartspec.execution.model_runner import ModelRunner
from smartspec.execution.proposers import Drafts, Proposer
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.recording import EngineState
from smartspec.policy.settings import PolicySettings
from smartspec.recorder import RecordedPolicy, Recorder
from smartspec.scheduling.client import EngineInfo
from smartspec.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)


def build_engine(
    config: RuntimeConfig,
    settings: PolicySettings,
    *,
    clock: Callable[[], float] = time.perf_counter,
    recorder: Recorder | None = None,
) -> LoadedEngine[Drafts]:
    """Load the models and make an engine ready to step; takes seconds to minutes.

    Priors in *settings* that were learned on something else are left out with a warning: a restart on other hardware
    must not fail for what was learned on the old. *recorder* gets what the policy meets, the rehearsal included. Raises
    ConfigError when *config* cannot be met.
    """
    model = load(config)
    loaded = assemble(model, config, settings, clock, recorder)
    if warmup.is_needed(loaded.policy.settings.priors):
        rehearse(model, loaded, clock)
    return loaded


def rehearse(model: LoadedModel, loaded: LoadedEngine[Drafts], clock: Callable[[], float]) -> None:
    """Let the policy of *loaded*, an engine over *model*, measure steps of made-up requests; takes some seconds."""
    warmup.WarmUp(
        loaded.engine.scheduler.config,
        loaded.policy,
        loaded.engine.proposer,
        loaded.engine.runner,
        clock,
        num_blocks=model.num_blocks,
        max_model_len=model.max_model_len,
        vocab_size=model.target.vocab_size,
        proposers=model.proposers,
    ).run()


def assemble(
    model: LoadedModel,
    config: RuntimeConfig,
    settings: PolicySettings,
    clock: Callable[[], float],
    recorder: Recorder | None = None,
) -> LoadedEngine[Drafts]:
    """An engine over *model*, with nothing running, and nothing learned but the priors of *settings*."""
    scheduler_config = replace(config.scheduler, block_size=model.block_size)
    learning = SpeculationPolicy(_usable(settings, model.key), key=model.key)
    recorded = None if recorder is None else RecordedPolicy(learning, model.key, recorder)
    policy: TunablePolicy = recorded or learning
    proposer = Proposer(
        model.draft,
        vocab_size=model.target.vocab_size,
        eos_token_ids=model.eos_token_ids,
        max_num_batched_tokens=scheduler_config.max_num_batched_tokens,
    )
    runner = ModelRunner(model.target, eos_token_ids=model.eos_token_ids)
    scheduler = Scheduler(
        scheduler_config,
        policy,
        num_blocks=model.num_blocks,
        max_model_len=model.max_model_len,
        proposers=model.proposers,
    )
    if recorded is not None:
        recorded.engine = lambda: EngineState(len(scheduler.running), len(scheduler.waiting), scheduler.pool.usage)
    return LoadedEngine(
        Engine(scheduler, proposer, runner, clock),
        policy,
        _info(config, model),
        model.tokenizer,
        model.eos_token_ids,
        model.compile_grammar,
    )


def _usable(settings: PolicySettings, key: str) -> PolicySettings:
    if settings.priors is None or settings.priors.key == key:
        return settings
    log.warning("event=priors_left_out theirs=%r ours=%r", settings.priors.key, key)
    return msgspec.structs.replace(settings, priors=None)


def _info(config: RuntimeConfig, model: LoadedModel) -> EngineInfo:
    return EngineInfo(
        model=config.model.name,
        max_model_len=model.max_model_len,
        dtype=model.dtype,
        device=model.device,
        attention=model.attention,
        invariant=model.invariant,
        proposers=tuple(model.proposers),
        num_blocks=model.num_blocks,
        block_size=model.block_size,
        key=model.key,
        created=int(time.time()),
        target=config.model.target,
        draft=config.model.draft,
        vocab_size=model.target.vocab_size,
    )
