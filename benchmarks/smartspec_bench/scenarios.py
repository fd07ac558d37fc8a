"""What `paper` puts its modes through: workloads at steady loads, a step of the load, a shift of the workload."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from smartspec.loadgen.arrivals import Phase, poisson
from smartspec_bench.load import Job, Run, closed_loop, open_loop
from smartspec_bench.prompts import Workload, code, edit, sampled
from smartspec_bench.servers import Server

SEED = 20240614
ALONE = "alone"
"""One request after the other: what a rate near zero would measure, without the wait between them."""


@dataclass(frozen=True)
class Part:
    """A stretch of a scenario: so many requests of one workload, at a rate for so many seconds."""

    name: str
    workload: Workload
    requests: int
    rate: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """One cell of the comparison; *workload* and *load* name it.

    Parts without a rate come all at once, or one by one where *load* is `ALONE`.
    """

    workload: str
    load: str
    parts: tuple[Part, ...]

    @property
    def bounds(self) -> list[tuple[str, int, int]]:
        """Each part's name and the indices of its requests, from and to."""
        ends = list(accumulate(part.requests for part in self.parts))
        starts = [0, *ends[:-1]]
        return [(part.name, start, end) for part, start, end in zip(self.parts, starts, ends, strict=True)]

    @property
    def guess_seconds(self) -> float:
        """About how long one run takes."""
        by_rate = sum(part.requests / part.rate for part in self.parts if part.rate)
        return by_rate + 1.5 + 0.1 * sum(part.requests for part in self.parts if not part.rate)

    def jobs(self, turn: int, tokens: int) -> list[Job]:
        """The requests of round *turn*, the same for every mode, of *tokens* new tokens each."""
        phases = [Phase(part.rate, part.requests / part.rate) for part in self.parts if part.rate]
        count = sum(part.requests for part in self.parts)
        times = poisson(phases, SEED + turn) if phases else [0.0] * count
        asked = [(part.workload, prompt) for part in self.parts for prompt in part.workload.take(part.requests, turn)]
        return [
            Job(time, prompt, tokens, workload.temperature)
            for time, (workload, prompt) in zip(times, asked, strict=True)
        ]

    async def run(self, server: Server, turn: int, tokens: int) -> Run:
        """Put *server* through it."""
        jobs = self.jobs(turn, tokens)
        return await (closed_loop(server.url, jobs) if self.load == ALONE else open_loop(server.url, jobs))


def grid(rates: Sequence[float], seconds: float, alone: int, at_once: int) -> list[Scenario]:
    """Every workload at every load; *seconds* of arrivals at each rate."""
    cells = []
    for workload in (code(), sampled(), edit()):
        cells.append(Scenario(workload.name, ALONE, (Part(ALONE, workload, alone),)))
        for rate in rates:
            requests = max(2, round(rate * seconds))
            cells.append(Scenario(workload.name, f"{rate:g}/s", (Part("all", workload, requests, rate),)))
        cells.append(batch(workload, at_once))
    return cells


def batch(workload: Workload, at_once: int) -> Scenario:
    """A saturated batch."""
    return Scenario(workload.name, f"{at_once} at once", (Part("all", workload, at_once),))


def step(calm: float, flood: float, seconds: float) -> Scenario:
    """The load rises from *calm* to *flood* requests per second for half as long, and falls again."""
    parts = [("before", calm, seconds), ("flood", flood, seconds / 2), ("after", calm, seconds)]
    workload = code()
    made = tuple(Part(name, workload, max(1, round(rate * length)), rate) for name, rate, length in parts)
    return Scenario("code", f"step {calm:g}-{flood:g}-{calm:g}/s", made)


def shift(rate: float, seconds: float) -> Scenario:
    """Half-way the workload turns from the most to the least predictable."""
    requests = max(1, round(rate * seconds))
    parts = (Part("edit", edit(), requests, rate), Part("sampled", sampled(), requests, rate))
    return Scenario("edit, then sampled", f"shift at {rate:g}/s", parts)
