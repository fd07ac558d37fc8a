"""Worlds for the step simulator: devices, texts and loads that are deliberately *not* the policy's own models.

Times come from measured stairs with lognormal noise, stragglers and a context effect per row; acceptance is correlated
within a request, differs between requests and drifts with time. Nothing here is fitted to, or by, the policy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from smartspec.policy.types import StepFeatures, StepSeconds, Verifier

CPU_TARGET: tuple[tuple[int, float], ...] = (
    (1, 0.024), (4, 0.027), (8, 0.036), (16, 0.034), (32, 0.052), (64, 0.067), (128, 0.108), (256, 0.231),
    (512, 0.455), (2048, 1.81),
)  # fmt: skip
"""Seconds of one forward by tokens: a 193 M bf16 Llama on a 4-core CPU (measured up to 256, extended in line)."""
CPU_DRAFT: tuple[tuple[int, float], ...] = ((1, 0.00093), (8, 0.0013), (32, 0.0024), (128, 0.0071), (2048, 0.1))
GPU_TARGET: tuple[tuple[int, float], ...] = ((1, 0.0125), (64, 0.0131), (128, 0.0147), (256, 0.021), (2048, 0.14))
"""An 8 B model on a data-centre GPU: flat while weights dominate, then compute-bound."""
GPU_DRAFT: tuple[tuple[int, float], ...] = ((1, 0.0011), (128, 0.0014), (2048, 0.009))


@dataclass(frozen=True)
class Device:
    """How long steps take. `bucket` pads the target's tokens, `row_context_seconds` is per row *and* token of context
    (the policy's model knows no such product), `slowdown` multiplies everything as a function of time."""

    target: tuple[tuple[int, float], ...] = CPU_TARGET
    draft: tuple[tuple[int, float], ...] = CPU_DRAFT
    bucket: int = 1
    row_context_seconds: float = 2e-8
    host_seconds: float = 0.0012
    host_request_seconds: float = 0.00003
    noise: float = 0.05
    straggler_share: float = 0.005
    straggler_factor: float = 6.0
    slowdown: Callable[[float], float] = lambda now: 1.0

    def seconds(
        self, features: StepFeatures, row_context: float, now: float, random: np.random.Generator
    ) -> tuple[StepSeconds, float]:
        """Seconds of one step, and what they would have been in sum without noise; *row_context* is the context
        summed over the target's rows."""
        straggle = self.straggler_factor if random.random() < self.straggler_share else 1.0
        noise = straggle * np.exp(self.noise * random.standard_normal(3))
        padded = -(-features.target_tokens // self.bucket) * self.bucket
        target = _along(self.target, padded) + self.row_context_seconds * row_context
        batch = features.draft_batch_by_depth
        rows = (max(batch[0], features.catchup_tokens), *batch[1:]) if batch else ()
        parts = np.array(
            (
                sum(_along(self.draft, r) for r in rows),
                target,
                self.host_seconds + self.host_request_seconds * features.num_requests,
            )
        )
        parts *= self.slowdown(now)
        return StepSeconds(*(parts * noise).tolist()), float(parts.sum())


def _along(points: tuple[tuple[int, float], ...], tokens: int) -> float:
    xs, ys = zip(*points, strict=True)
    if tokens > xs[-1]:
        return float(ys[-1] * tokens / xs[-1])
    return float(np.interp(tokens, xs, ys))


@dataclass(frozen=True)
class Texts:
    """How well proposals fit the texts generated, in log-odds of acceptance.

    `ease` is the mean as a function of time, `between` the spread of requests around it, `within` the height of the
    easy and hard stretches inside one text (mean length `stretch_tokens`), `fade` what each further position loses.
    `copied_share` of a text repeats earlier text, in runs of `copy_run_tokens`: there prompt lookup is right.
    """

    ease: Callable[[float], float] = lambda now: 1.0
    between: float = 0.7
    within: float = 0.8
    stretch_tokens: float = 12.0
    fade: float = 0.15
    copied_share: float = 0.0
    copy_run_tokens: float = 20.0
    verifier: Verifier = "rejection"


@dataclass(frozen=True)
class Arrival:
    """One request as it arrives."""

    request_id: str
    time: float
    prompt_tokens: int
    output_tokens: int
    seed: int


@dataclass(frozen=True)
class Text:
    """The text one request will generate: what of it proposals would have got right, decided before anyone asks, so
    that every policy meets the same text."""

    arrival: Arrival
    texts: Texts

    @cached_property
    def _draws(self) -> tuple[list[float], list[float], list[bool], float]:
        random = np.random.default_rng(self.arrival.seed)
        length = self.arrival.output_tokens + 40
        ease = float(random.normal(0.0, self.texts.between))
        uniform = random.random(length).tolist()
        flips = np.cumsum(random.random(length) < 1.0 / self.texts.stretch_tokens) % 2
        shift = (self.texts.within * (1.0 - 2.0 * flips)).tolist()
        copied = np.zeros(length, dtype=bool)
        if self.texts.copied_share > 0:
            leave = 1.0 / self.texts.copy_run_tokens
            enter = leave * self.texts.copied_share / (1.0 - self.texts.copied_share)
            state = False
            for index, draw in enumerate(random.random(length)):
                state = draw >= leave if state else draw < enter
                copied[index] = state
        return uniform, shift, copied.tolist(), ease

    def accepted_draft(self, position: int, num_drafted: int, now: float) -> int:
        """How many of *num_drafted* draft tokens from output *position* on are kept."""
        uniform, shift, _, ease = self._draws
        level = self.texts.ease(now) + ease
        for depth in range(num_drafted):
            odds = level + shift[position + depth] - self.texts.fade * depth
            if uniform[position + depth] >= 1.0 / (1.0 + math.exp(-odds)):
                return depth
        return num_drafted

    def match_tokens(self, position: int) -> int:
        """How long a match prompt lookup finds before output *position* (0: none), some of them by chance."""
        uniform, _, copied, _ = self._draws
        run = 0
        while run < 12 and position - run - 1 >= 0 and copied[position - run - 1]:
            run += 1
        return run or (1 if self.texts.copied_share and uniform[position] < 0.2 else 0)

    def accepted_lookup(self, position: int, num_copied: int) -> int:
        """How many of *num_copied* copied tokens from output *position* on are kept."""
        uniform, _, copied, _ = self._draws
        for depth in range(num_copied):
            right = 0.95 if copied[position + depth] else 0.1
            if uniform[position + depth] >= right:
                return depth
        return num_copied


@dataclass(frozen=True)
class Shape:
    """Lengths of requests in tokens: means of geometric-like distributions, at least 4."""

    prompt_tokens: int = 128
    output_tokens: int = 128

    def arrival(self, index: int, time: float, seed: int) -> Arrival:
        """The *index*-th request of a load, the same for every policy that is tried on it."""
        random = np.random.default_rng((seed, index))
        prompt, output = (
            max(4, int(random.gamma(2.0, mean / 2.0))) for mean in (self.prompt_tokens, self.output_tokens)
        )
        return Arrival(f"r{index}", time, prompt, output, int(random.integers(1 << 62)))


def poisson(rate: Callable[[float], float], until: float, shape: Shape, seed: int) -> tuple[Arrival, ...]:
    """Requests arriving at random at *rate* per second (a function of time) *until* then: an open loop."""
    random = np.random.default_rng((seed, 7))
    found: list[Arrival] = []
    now = 0.0
    while True:
        now += float(random.exponential(1.0 / max(rate(now), 1e-6)))
        if now >= until:
            return tuple(found)
        found.append(shape.arrival(len(found), now, seed))
