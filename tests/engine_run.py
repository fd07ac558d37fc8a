"""Whole batches through a real engine over the tiny pair, under memory too small for all of them at once."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from smartspec.composition import assemble
from smartspec.config import Compile, ModelConfig, RuntimeConfig, SchedulerConfig
from smartspec.execution.loader import LoadedModel
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Proposer
from smartspec.scheduling.output import RequestOutput, StepStats
from smartspec.scheduling.request import Request
from tiny import write_pair


def config_for(pair_of: Path, dtype: str, compile: Compile = "off") -> RuntimeConfig:
    """A runtime in whose cache 17 requests do not fit at once."""
    pair = write_pair(pair_of, dtype=getattr(torch, dtype))
    return RuntimeConfig(
        ModelConfig(str(pair.target), str(pair.draft), dtype=dtype, device="cpu", max_model_len=256, compile=compile),
        SchedulerConfig(max_num_seqs=17, max_num_batched_tokens=96, block_size=8, num_blocks=60),
        num_threads=1,
    )


def prompts(count: int) -> list[list[int]]:
    """Prompts of several lengths; every other one repeats itself, so that there is something to look up."""
    rng = random.Random(3)
    made = [[rng.randrange(256) for _ in range(4 + 3 * i)] for i in range(count)]
    return [prompt if i % 2 else (prompt[:6] * 8)[: len(prompt) + 8] for i, prompt in enumerate(made)]


@dataclasses.dataclass
class Run:
    """What came out of an engine that ran until nothing was left."""

    texts: dict[str, list[int]]
    steps: list[StepStats]
    outputs: list[RequestOutput]

    @property
    def num_preempted(self) -> int:
        """How often a request had to give way."""
        return sum(step.num_preempted for step in self.steps)

    @property
    def num_accepted(self) -> int:
        """How many guesses were right."""
        return sum(sum(step.accepted_by_proposer.values()) for step in self.steps)


def run(
    served: tuple[RuntimeConfig, LoadedModel],
    requests: Sequence[Request],
    settings: PolicySettings,
    proposers: tuple[Proposer, ...] = ("draft", "lookup"),
) -> Run:
    """Everything at once through an engine of its own, which must hold nothing afterwards.

    Times are made up (a step takes as long as it has had readings of the clock), so that a run can be repeated.
    """
    config, model = served
    readings = iter(range(10**9))
    engine = assemble(
        dataclasses.replace(model, proposers=proposers), config, settings, lambda: next(readings) / 1000
    ).engine
    result = Run({}, [], [])
    for request in requests:
        engine.scheduler.add(request)
    while engine.scheduler.has_work:
        output = engine.step()
        assert output.stats is not None
        result.steps.append(output.stats)
        for new in output.outputs:
            result.outputs.append(new)
            result.texts.setdefault(new.request_id, []).extend(new.new_token_ids)
    engine.scheduler.check_idle()
    return result
