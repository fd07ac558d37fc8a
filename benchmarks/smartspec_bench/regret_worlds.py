"""Worlds in which regret is measured: devices, texts and loads that are not the policy's own model, in phases."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import PolicyName, PolicySettings
from smartspec.policy.simulate import Replica, Trace, run_closed, run_open
from smartspec.policy.worlds import GPU_DRAFT, GPU_TARGET, Device, Shape, Texts, poisson

CEILING = 8
MOST_RUNNING = 128
POINTS = 60
"""Points of a run's cumulative curve."""

CPU = Device()
GPU = Device(
    target=GPU_TARGET, draft=GPU_DRAFT, bucket=8, row_context_seconds=5e-10, host_seconds=0.001,
    host_request_seconds=5e-6,
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """One experiment of *seconds*: `load` is the number of clients at a time (closed loop), or requests per second
    where it is `open`. `borders` are the times at which something changes at once: phases lie between."""

    device: Device
    texts: Texts
    load: Callable[[float], float]
    seconds: float = 60.0
    shape: Shape = Shape(16, 96)
    open: bool = False
    stationary: bool = True
    borders: tuple[float, ...] = ()

    def phases(self, seconds: float) -> list[tuple[float, float]]:
        """Start and end of each phase when the experiment is cut off after *seconds*."""
        edges = (0.0, *(border for border in self.borders if border < seconds), seconds)
        return list(itertools.pairwise(edges))


def _constant(value: float) -> Callable[[float], float]:
    return lambda now: value


MIXED = Texts(ease=lambda now: 0.6, between=1.8)
"""Some requests easy, some hard: acceptance from 0.2 to 0.95."""
COPIES = Texts(ease=lambda now: 0.2, between=1.0, copied_share=0.4)
"""The draft is mediocre, and what repeats is better copied; a fifth of all other matches is by chance."""

WORLDS: dict[str, World] = {
    "1 client": World(CPU, Texts(), _constant(1)),
    "4 clients": World(CPU, Texts(), _constant(4)),
    "16 clients": World(CPU, Texts(), _constant(16)),
    "64 clients": World(CPU, Texts(), _constant(64), seconds=90.0),
    "GPU, 48 clients": World(GPU, Texts(), _constant(48), seconds=30.0, shape=Shape(64, 200)),
    "hopeless draft": World(CPU, Texts(ease=lambda now: -2.5), _constant(8)),
    "easy and hard": World(CPU, MIXED, _constant(16)),
    "easy and hard, 4 clients": World(CPU, MIXED, _constant(4)),
    "copies": World(CPU, COPIES, _constant(8)),
    "open, 2.5 requests/s": World(CPU, Texts(), _constant(2.5), open=True),
    "load in steps": World(
        CPU, Texts(), lambda now: 2 if now % 40 < 20 else 40, seconds=80.0, stationary=False, borders=(20, 40, 60)
    ),
    "text changes": World(
        CPU, Texts(ease=lambda now: 2.0 if now % 40 < 20 else -2.0), _constant(8), seconds=80.0, stationary=False,
        borders=(20, 40, 60),
    ),
    "text drifts": World(
        CPU, Texts(ease=lambda now: 2.0 * math.cos(now / 10)), _constant(8), seconds=63.0, stationary=False
    ),
    "open, load drifts": World(
        CPU, Texts(), lambda now: 2.0 - 1.7 * math.cos(now / 10), seconds=63.0, open=True, stationary=False
    ),
}  # fmt: skip


def run(name: str, policy: PolicyName, k: int, seed: int, share: float = 1.0) -> dict[str, Any]:
    """One policy once through one world, or its first *share*; what came of it, JSON-ready.

    Requests, texts and noise are those of the *seed*, whatever the policy. `speed` is what is compared: in a closed
    loop tokens per second of step time with the noise of single steps taken out; in an open one, where tokens per
    second are given by who arrives, the inverse of mean latency.
    """
    world = WORLDS[name]
    seconds = share * world.seconds
    speculation = SpeculationPolicy(PolicySettings(policy=policy, max_speculative_tokens=k), key="simulated")
    replica = Replica(speculation, world.device, world.texts, seed=seed, max_num_seqs=MOST_RUNNING)
    replica.warm_up()
    if world.open:
        trace = run_open(replica, poisson(world.load, seconds, world.shape, seed))
    else:
        trace = run_closed(replica, lambda now: round(world.load(now)), seconds, world.shape, seed=seed)
    phases = [_speed(trace.between(*span), open_loop=world.open) for span in world.phases(seconds)]
    return {
        "key": f"{name}/{policy} {k}/{seed}",
        "world": name,
        "mode": f"{policy} {k}" if policy == "fixed" else policy,
        "seed": seed,
        "speed": _speed(trace, open_loop=world.open),
        "phases": phases,
        "kept": _curve(trace, seconds),
        "mean_k": trace.mean_k,
        "time_error": trace.time_error,
    }


def _speed(trace: Trace, *, open_loop: bool) -> float:
    return 1.0 / trace.mean_latency if open_loop else trace.quiet_tokens_per_second


def _curve(trace: Trace, seconds: float) -> list[int]:
    """Tokens kept up to each of `POINTS` times, evenly spread."""
    found, total, steps = [], 0, iter(trace.steps)
    step = next(steps, None)
    for point in range(1, POINTS + 1):
        while step is not None and step.time <= seconds * point / POINTS:
            total += step.tokens_kept
            step = next(steps, None)
        found.append(total)
    return found
