"""What all sections share: options, a record, time, the models, and engines over them."""

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from smartspec.async_engine.thread import LoadedEngine
from smartspec.composition import assemble, rehearse
from smartspec.config import ModelConfig, RuntimeConfig, SchedulerConfig
from smartspec.execution.batch import Segment
from smartspec.execution.loader import LoadedModel, load
from smartspec.execution.paged_model import PagedModel
from smartspec.execution.proposers import Drafts
from smartspec.policy.settings import PolicySettings
from smartspec.scheduling.request import Request, SamplingParams
from smartspec_bench.prompts import code
from smartspec_bench.record import Record
from smartspec_bench.session import Budget

USUAL_MINUTES = 8.0


@dataclass
class Bench:
    """One run of the benchmark; models are loaded when a section first asks for them."""

    options: argparse.Namespace
    record: Record
    budget: Budget
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.is_quick: bool = self.options.quick

    def add(self, section: str, key: str, **values: Any) -> dict[str, Any]:
        """Keep a result of *section*."""
        run = {"key": f"{section} {key}", "section": section, **values}
        self.record.add(run)
        return run

    def seconds(self, usual: float) -> float:
        """What takes *usual* seconds in a run of the usual length, in this one."""
        minutes: float = self.options.minutes
        return usual * (0.15 if self.is_quick else 1.0) * minutes / USUAL_MINUTES

    @cached_property
    def config(self) -> RuntimeConfig:
        """As a server would have it, with room for 32 contexts of 2048 tokens."""
        return RuntimeConfig(
            ModelConfig(
                str(self.options.target), str(self.options.draft), dtype="bfloat16", compile=self.options.compile
            ),
            SchedulerConfig(num_blocks=2304 if self.is_quick else 4352),
            num_threads=self.options.threads,
        )

    @cached_property
    def model(self) -> LoadedModel:
        """Target and draft, compiled."""
        self.say("loading and compiling the models")
        model = load(self.config)
        self.record.note("compiled", model.compiled)
        if not model.compiled:
            self.say("[bold]the target runs eager[/]: it was not compiled, the log says why; --compile on insists")
        return model

    @property
    def target(self) -> PagedModel:
        """The target; raises SystemExit where it is not paged: there is nothing to measure then."""
        if not isinstance(self.model.target, PagedModel):
            raise SystemExit(f"the target is served with {self.model.attention} attention, this benchmark is of paged")
        return self.model.target

    @cached_property
    def filled(self) -> PagedModel:
        """The target with something in every block: pages never written are one page of zeros to the processor, which
        its smallest cache holds, and a long context would cost nothing to read."""
        target = self.target
        for cache in target.attention._caches:  # type: ignore[attr-defined]  # nobody else has a reason to reach for it
            for kept in (cache.keys, cache.values):
                kept.copy_(torch.randn(1, *kept.shape[1:], dtype=kept.dtype).expand_as(kept))
        return target

    def engine(
        self,
        settings: PolicySettings,
        *,
        clock: Callable[[], float] = time.perf_counter,
        model: LoadedModel | None = None,
        warm: bool = False,
    ) -> LoadedEngine[Drafts]:
        """An engine over *model* (the pair), with nothing running; *warm*: rehearsed, as a server's is."""
        model = self.model if model is None else model
        loaded = assemble(model, self.config, settings, clock)
        if warm:
            rehearse(model, loaded, clock)
        return loaded


@dataclass
class Traffic:
    """Requests for an engine: so many in flight, their prompts in turn."""

    loaded: LoadedEngine[Drafts]
    prompts: Sequence[str] = field(default_factory=lambda: code().prompts)
    name: str = ""
    count: int = 0

    def top_up(self, in_flight: int, *, max_tokens: int, temperature: float = 0.0) -> None:
        """Add requests until *in_flight* run or wait."""
        scheduler = self.loaded.engine.scheduler
        for _ in range(in_flight - len(scheduler.running) - len(scheduler.waiting)):
            scheduler.add(self._request(max_tokens, temperature))

    def abort(self) -> None:
        """End them all."""
        scheduler = self.loaded.engine.scheduler
        for request in [*scheduler.running, *scheduler.waiting]:
            scheduler.abort(request.request_id)

    def is_decoding(self) -> bool:
        """Whether nobody waits or prefills."""
        scheduler = self.loaded.engine.scheduler
        return not scheduler.waiting and all(r.num_remaining_tokens == 1 for r in scheduler.running)

    def _request(self, max_tokens: int, temperature: float) -> Request:
        prompt = self.loaded.tokenizer.encode(self.prompts[self.count % len(self.prompts)])
        self.count += 1
        return Request(
            f"{self.name}{self.count}",
            prompt,
            SamplingParams(max_tokens=max_tokens, temperature=temperature, ignore_eos=True),
            noise_seed=self.count,
            arrival_time=0.0,
            eos_token_ids=self.loaded.eos_token_ids,
            verifier="rejection" if temperature else "greedy",
        )


def segments(contexts: Sequence[int], rows: int, block_size: int, vocab_size: int) -> list[Segment]:
    """A step of one request per context, each with its last *rows* tokens as rows, all with logits."""
    random_ids = random.Random(sum(contexts) + rows)
    taken, result = 0, []
    for context in contexts:
        blocks = -(-context // block_size)
        ids = [random_ids.randrange(vocab_size) for _ in range(rows)]
        result.append(Segment(ids, context - rows, range(taken, taken + blocks), rows))
        taken += blocks
    return result


def without_draft(model: LoadedModel) -> LoadedModel:
    """The same target on the same memory, as a server started without draft and without prompt lookup has it."""
    return replace(model, draft=None, proposers=())


def of_section(runs: Sequence[Mapping[str, Any]], section: str) -> list[dict[str, Any]]:
    """The runs of *section*."""
    return [dict(run) for run in runs if run["section"] == section]
