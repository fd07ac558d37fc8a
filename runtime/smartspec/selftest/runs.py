"""Requests through an engine of their own, over models that are loaded already."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from smartspec.composition import assemble
from smartspec.config import RuntimeConfig
from smartspec.engine import Engine
from smartspec.execution.loader import LoadedModel
from smartspec.execution.proposers import Drafts
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Proposer, Verifier
from smartspec.scheduling.request import Request, SamplingParams


@dataclass(frozen=True)
class Served:
    """A model in memory with the configuration that it is served under."""

    config: RuntimeConfig
    model: LoadedModel

    def with_proposers(self, *proposers: Proposer) -> "Served":
        """The same, of which only *proposers* propose."""
        return replace(self, model=replace(self.model, proposers=proposers))

    def with_batches_of(self, most: int) -> "Served":
        """The same, with at most so many requests in a step."""
        return replace(self, config=replace(self.config, scheduler=replace(self.config.scheduler, max_num_seqs=most)))


@dataclass
class Run:
    """What came of requests that ran to their end: texts by request id, and (drafted, accepted) of every proposal."""

    texts: dict[str, list[int]] = field(default_factory=dict)
    num_drafted: int = 0
    num_accepted: int = 0

    def take(self, engine: Engine[Drafts]) -> None:
        """Step *engine* once and keep what it brought."""
        for output in engine.step().outputs:
            self.texts.setdefault(output.request_id, []).extend(output.new_token_ids)
            self.num_drafted += output.num_drafted
            self.num_accepted += output.num_accepted


def run(served: Served, settings: PolicySettings, requests: Iterable[Request]) -> Run:
    """Everything at once, until nothing is left; raises RuntimeError when something is still held then."""
    engine = assemble(served.model, served.config, settings, time.perf_counter).engine
    for request in requests:
        engine.scheduler.add(request)
    found = Run()
    while engine.scheduler.has_work:
        found.take(engine)
    engine.scheduler.check_idle()
    return found


def requests_of(
    prompts: Sequence[Sequence[int]], sampling: SamplingParams, verifier: Verifier, *, first_seed: int = 0
) -> list[Request]:
    """One request for each prompt, named and seeded by its index."""
    return [
        Request(str(i), list(prompt), sampling, noise_seed=first_seed + i, arrival_time=0.0, verifier=verifier)
        for i, prompt in enumerate(prompts)
    ]


def fixed(k: int) -> PolicySettings:
    """Always *k* tokens; none for 0."""
    return PolicySettings(policy="fixed" if k else "off", max_speculative_tokens=k)
