"""Section time-model: the policy's predicted step times against measured ones, before and after the load changes.

How well any model could predict is measured in the same run: between the steps that are judged, a few steps of the same
load are repeated as they were, so that a busy machine weighs on both alike.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import msgspec
import numpy as np

from engine_bench.bench import Bench, Traffic, of_section
from engine_bench.report import Check, Part, as_ratio, shown
from engine_bench.timing import PausableClock, deviation
from smartspec.async_engine.thread import LoadedEngine
from smartspec.execution.proposers import Drafts
from smartspec.loadgen.estimates import RESAMPLES, Ratio
from smartspec.policy.latency import model_of
from smartspec.policy.settings import PolicySettings
from smartspec.scheduling.output import ModelRunnerOutput, SchedulerOutput
from smartspec_bench.prompts import code

LEARNING = 200
HELD_OUT = 120
REFERENCES = 6
WINDOW = 30
"""Steps over which "good again after so many steps" is judged."""
ERROR_BOUND = 1.3
BIAS_BOUND = 0.02
RESERVED_BLOCKS = 1024


@dataclass(frozen=True)
class Load:
    """Between *fewest* and *most* requests in flight, another number every ten steps."""

    name: str
    fewest: int
    most: int
    temperatures: tuple[float, ...]
    prompts: tuple[str, ...]


def loads(*, quick: bool) -> tuple[Load, Load]:
    """Few requests that continue code greedily; then many, at temperature 1 too, of other and longer prompts."""
    prompts = code().prompts
    half = len(prompts) // 2
    longer = tuple(a + "\n" + b for a, b in zip(prompts[half:-1:2], prompts[half + 1 :: 2], strict=False))
    many = (6, 10) if quick else (16, 40)
    return Load("few", 1, 8, (0.0,), prompts[:half]), Load("many", *many, (0.0, 1.0), longer + prompts[half:])


@dataclass
class Steps:
    """Steps in the order in which they came: seconds predicted before each and measured by it; *frozen* are predictions
    by the model as it was before the first of them."""

    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    frozen: list[float] = field(default_factory=list)


class Run:
    """An engine under a load, with its plans written down."""

    def __init__(self, bench: Bench) -> None:
        self._clock = PausableClock()
        # The last blocks are nobody's: there, plans are carried out again.
        self._num_blocks = bench.model.num_blocks - RESERVED_BLOCKS
        model = replace(bench.model, num_blocks=self._num_blocks)
        self.loaded: LoadedEngine[Drafts] = bench.engine(
            PolicySettings(policy="request"), clock=self._clock, model=model, warm=True
        )
        self._plan: SchedulerOutput | None = None
        self._chance = random.Random(1)
        self._wanted = 0

    def play(self, load: Load, traffic: Traffic, steps: int, references: "References | None" = None) -> Steps:
        """Step so often; between steps, if *references*, repeat one of them off the engine's clock."""
        found = Steps()
        learned = self.loaded.policy.priors().latency
        model = None if learned is None else model_of(learned)
        with self._witness():
            for turn in range(steps):
                with self._clock.paused():
                    if turn % 10 == 0:
                        self._wanted = self._chance.randint(load.fewest, load.most)
                    temperature = self._chance.choice(load.temperatures)
                    traffic.top_up(self._wanted, max_tokens=self._chance.randint(24, 96), temperature=temperature)
                stats = self.loaded.engine.step().stats
                assert stats is not None
                with self._clock.paused():
                    found.predicted.append(stats.decision.predicted_seconds)
                    found.measured.append(stats.seconds.total)
                    found.frozen.append(model.predict(stats.features).total if model is not None else 0.0)
                    if references is not None:
                        references.note(self._plan, stats.seconds.total)
                        references.repeat(self.loaded)
        return found

    def references(self) -> "References":
        """None yet; they are chosen from the steps that it is told of."""
        return References(self._num_blocks)

    @contextmanager
    def _witness(self) -> Iterator[None]:
        runner = self.loaded.engine.runner
        execute = runner.execute

        def noting(plan: SchedulerOutput, drafts: Drafts) -> ModelRunnerOutput:
            with self._clock.paused():
                self._plan = moved(plan, self._num_blocks)
            return execute(plan, drafts)

        with mock.patch.object(runner, "execute", noting):
            yield


class References:
    """Steps of a load, repeated: those that come are collected first, then a few of different lengths taken in turn."""

    def __init__(self, first_block: int) -> None:
        self._first_block = first_block
        self._candidates: list[tuple[float, SchedulerOutput]] = []
        self._chosen: list[SchedulerOutput] = []
        self.times: list[list[float]] = []
        self._turn = 0

    def note(self, plan: SchedulerOutput | None, seconds: float) -> None:
        """A step that was, until some are chosen."""
        if not self._chosen and plan is not None:
            self._candidates.append((seconds, plan))

    def choose(self) -> None:
        """Those in the middle of equal parts of all, by their time."""
        ranked = sorted(self._candidates, key=lambda candidate: candidate[0])
        places = [(2 * i + 1) * len(ranked) // (2 * REFERENCES) for i in range(REFERENCES)]
        self._chosen = [ranked[place][1] for place in places]
        self.times = [[] for _ in self._chosen]

    def repeat(self, loaded: LoadedEngine[Drafts]) -> None:
        """Draft and verify one of them again, as if it had come."""
        if not self._chosen:
            return
        which = self._turn % len(self._chosen)
        plan = self._chosen[which]
        began = time.perf_counter()
        loaded.engine.runner.execute(plan, loaded.engine.proposer.propose(plan))
        self.times[which].append(time.perf_counter() - began)
        self._turn += 1


def moved(plan: SchedulerOutput, first_block: int) -> SchedulerOutput:
    """*plan* on blocks from *first_block* on, wrapping around within the reserved ones; shares nothing that changes."""
    taken = 0
    requests = []
    for request in plan.scheduled:
        num = len(request.block_table)
        table = [first_block + (taken + i) % RESERVED_BLOCKS for i in range(num)]
        requests.append(msgspec.structs.replace(request, block_table=table))
        taken += num
    return SchedulerOutput(tuple(requests), plan.decision, plan.num_prefill_tokens)


def measure(bench: Bench) -> None:
    """Learn, judge; change the load, and watch until it is judged again."""
    run = Run(bench)
    few, many = loads(quick=bench.is_quick)
    scale = 0.2 if bench.is_quick else 1.0
    learning, judged = int(scale * LEARNING), max(WINDOW, int(scale * HELD_OUT))
    for load in (few, many):
        bench.say(f"time model: {load.name} requests, {learning} steps, then {judged} to judge it by")
        traffic = Traffic(run.loaded, load.prompts, name=load.name)
        references = run.references()
        start = run.play(load, traffic, learning, references)
        references.choose()
        steps = run.play(load, traffic, judged, references)
        floor = deviation(references.times)
        bench.add(
            "time-model", load.name, load=load.name, requests=[load.fewest, load.most], learning=learning,
            judged=judged, deviation=floor,
            learned_in=first_good([*start.predicted, *steps.predicted], [*start.measured, *steps.measured], floor),
            start=summary(start.predicted[:WINDOW], start.measured[:WINDOW]),
            held_out=summary(steps.predicted, steps.measured),
            frozen=summary(steps.frozen, steps.measured),
            predicted=[round(t, 6) for t in steps.predicted], measured=[round(t, 6) for t in steps.measured],
        )  # fmt: skip
    Traffic(run.loaded).abort()


def summary(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, Any]:
    """Median relative error, and the bias: sum predicted over sum measured with its interval, and the median of the
    steps' ratios, which a few steps that were interrupted do not move."""
    one, two = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    picks = np.random.default_rng(0).integers(len(one), size=(RESAMPLES, len(one)))
    low, high = np.quantile(one[picks].sum(axis=1) / two[picks].sum(axis=1), [0.025, 0.975])
    return {
        "error": float(np.median(np.abs(one / two - 1.0))),
        "ratio": vars(Ratio(float(one.sum() / two.sum()), float(low), float(high), 1, len(one))),
        "median_ratio": float(np.median(one / two)),
    }


def first_good(predicted: Sequence[float], measured: Sequence[float], floor: float) -> int | None:
    """After how many steps the next `WINDOW` steps first keep both bounds; None: never."""
    one, two = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    for start in range(len(one) - WINDOW + 1):
        some, other = one[start : start + WINDOW], two[start : start + WINDOW]
        error, bias = np.median(np.abs(some / other - 1.0)), some.sum() / other.sum() - 1.0
        if error <= ERROR_BOUND * floor and abs(bias) <= BIAS_BOUND:
            return start
    return None


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """The table, and the targets before and after the change."""
    rows, checks = [], []
    names = {"start": "first steps", "held_out": "held out", "frozen": "held out, frozen"}
    for run in of_section(runs, "time-model"):
        for name, label in names.items():
            found = run[name]
            after = run["learning"] if name != "start" else 0
            rows.append(
                [
                    f"{run['load']} ({run['requests'][0]}-{run['requests'][1]})",
                    label,
                    f"{after}",
                    f"{found['error']:.1%}",
                    f"{run['deviation']:.1%}",
                    f"{found['error'] / run['deviation']:.2f}",
                    shown(as_ratio(found["ratio"])),
                    f"{found['median_ratio']:.3f}",
                ]
            )
        held_out = run["held_out"]
        what = f"{run['load']}, after {run['learning']} steps"
        ratio = as_ratio(held_out["ratio"])
        checks.append(Check(f"{what}: median error over deviation", held_out["error"] / run["deviation"], ERROR_BOUND))
        checks.append(Check(f"{what}: bias", ratio.middle - 1, BIAS_BOUND, f"{ratio.middle - 1:+.1%}", nearness=True))
    notes = [
        f"{run['load']}: "
        + (f"good after {run['learned_in']} steps" if run["learned_in"] is not None else "never good for so long")
        + f" (the first from which the next {WINDOW} steps keep both bounds)"
        for run in of_section(runs, "time-model")
    ]
    return Part(
        "The time model",
        (
            "Step times predicted before each step against measured ones: few requests, then, as the load changes, "
            "many of "
            "other prompts. Steps held out are predicted by the policy as it went on learning, and by its model frozen "
            "before the first of them (which is told what the step really consisted of). Deviation: median distance of "
            f"{REFERENCES} steps of that load, repeated between the steps held out, from the middle of each one's "
            "repeats. "
            "Ratio: sum predicted over sum measured."
        ),
        ("load (in flight)", "steps", "after", "error", "deviation", "times", "ratio", "median ratio"),
        rows,
        checks,
        notes,
    )
