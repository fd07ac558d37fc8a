"""A step's composition as regressors: the named, non-negative terms that its time is a sum of.

Three parts, each measured by itself: the target's forward, the draft's forwards, the host. A forward's time over its
tokens is no line, so it is a rising piecewise-linear curve, whose segments are terms of the sum like any other.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.regression import Array, Ints
from smartspec.policy.types import StepFeatures

HALF_OCTAVES: tuple[int, ...] = (
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096,
)  # fmt: skip
"""Tokens of one forward at which its time may bend."""
LINE: tuple[int, ...] = (1,)
"""No bend at all: the linear time model of the paper."""

# Rows whose logits are wanted (all but a prompt's) cost more than a prompt's, never less: the head, and what of the
# last layer only they need. With a slope for prompts instead, what only they have shown of large steps was put down to
# their being prompts, and large verifications were thought cheap.
TARGET_SLOPES = {"context": 3e-5, "requests": 0.01, "logits": 0.001}
DRAFT_SLOPES = {"context": 3e-5}
HOST_SLOPES = {"requests": 0.05, "tokens": 0.02}
"""What a unit of each may plausibly cost, in units of the part's smallest step."""
TOKEN_BELIEVED, TOKEN_THINKABLE = 0.008, 0.03
NEIGHBOURS = 0.8
"""How much slopes of neighbouring segments are believed to be alike."""


@dataclass(frozen=True)
class Part:
    """One part of a step: its terms' names, and in units of the time of its smallest step the coefficients believed
    before anything was measured (optimistic: what seems cheap is tried, and so is learned) and those thinkable.
    `kinship` correlates what is not known of them: slopes of neighbouring segments are likely alike, so that a curve
    goes on beyond its last measured size as it went up to it."""

    names: tuple[str, ...]
    believed: Array
    thinkable: Array
    kinship: Array

    @classmethod
    def of(cls, prefix: str, first: str, slopes: dict[str, float], knots: tuple[int, ...] = ()) -> "Part":
        """A part of one constant term, a curve over *knots*, and *slopes*."""
        names = (first, *(f"tokens_from_{knot}" for knot in knots), *slopes)
        believed = [1.0] + [TOKEN_BELIEVED] * len(knots) + [0.0] * len(slopes)
        thinkable = [1.0] + [TOKEN_THINKABLE] * len(knots) + list(slopes.values())
        kinship = np.eye(len(names))
        segments = np.arange(len(knots))
        kinship[1 : 1 + len(knots), 1 : 1 + len(knots)] = NEIGHBOURS ** np.abs(segments[:, None] - segments)
        return cls(tuple(f"{prefix}.{name}" for name in names), np.array(believed), np.array(thinkable), kinship)


@dataclass(frozen=True)
class Regressors:
    """Turns `StepFeatures` into one vector per part. *buckets* are the sizes that a step's tokens are padded to where
    graphs are captured (none: no padding); beyond the largest nothing is padded."""

    knots: tuple[int, ...] = HALF_OCTAVES
    buckets: tuple[int, ...] = ()

    @cached_property
    def target_part(self) -> Part:
        """Terms of the target's forward."""
        return Part.of("target", "step", TARGET_SLOPES, self.knots)

    @cached_property
    def draft_part(self) -> Part:
        """Terms of the draft's forwards."""
        return Part.of("draft", "forward", DRAFT_SLOPES, self.knots)

    @cached_property
    def host_part(self) -> Part:
        """Terms of everything else in a step."""
        return Part.of("host", "step", HOST_SLOPES)

    def target(self, features: StepFeatures) -> Array:
        """Regressors of the target's forward, in the order of `target_part.names`; zeros where there is none."""
        if features.target_tokens <= 0:
            return np.zeros(len(self.target_part.names))
        padded = features.target_tokens if not self.buckets else self.padded(np.array([features.target_tokens]))[0]
        terms = np.ones(len(self.knots) + 4)
        np.minimum(np.maximum(padded - self.bends, 0.0), self._width, out=terms[1:-3])
        wanted = features.target_tokens - features.prefill_tokens
        terms[-3:] = features.context_tokens, features.num_requests, wanted
        return terms

    def draft(self, features: StepFeatures) -> Array:
        """Regressors of the draft's forwards in sum, in the order of `draft_part.names`. The first forward also feeds
        the committed tokens that the draft had not seen."""
        batch = features.draft_batch_by_depth
        rows = np.array((max(batch[0], features.catchup_tokens), *batch[1:]) if batch else (), dtype=np.float64)
        terms = np.empty(len(self.knots) + 2)
        terms[0], terms[-1] = len(rows), features.draft_context_tokens
        np.minimum(np.maximum(rows[:, None] - self.bends, 0.0), self._width).sum(axis=0, out=terms[1:-1])
        return terms

    def host(self, features: StepFeatures) -> Array:
        """Regressors of what is neither draft nor target, in the order of `host_part.names`."""
        return np.array((1.0, features.num_requests, features.target_tokens), dtype=np.float64)

    def padded(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """*tokens* up to their bucket: inside one, tokens are free."""
        if not self.buckets:
            return tokens
        sizes = self.bucket_sizes
        index = np.searchsorted(sizes, tokens)
        return np.where(index < len(sizes), sizes[np.minimum(index, len(sizes) - 1)], tokens)

    def curve_seconds(self, tokens: NDArray[Any], first: float, slopes: Array) -> Array:
        """Seconds of one forward for each of *tokens*, 0 where there are none; *first* is what one token takes."""
        seconds: Array = np.interp(tokens, self.bends, first + self._below @ slopes)
        last = self.knots[-1]
        if tokens.max(initial=0) > last:
            seconds += np.maximum(tokens - last, 0.0) * slopes[-1]
        if tokens.min(initial=1) <= 0:
            seconds *= tokens > 0
        return seconds

    @cached_property
    def bucket_sizes(self) -> Ints:
        """`buckets` as an array."""
        return np.array(self.buckets, dtype=np.intp)

    @cached_property
    def bends(self) -> Array:
        """`knots` as an array."""
        return np.array(self.knots, dtype=np.float64)

    @cached_property
    def _below(self) -> Array:
        """How much of each segment [knot, segment] lies below each knot."""
        return np.tril(np.broadcast_to(np.append(self._width[:-1], 0.0), (len(self.knots),) * 2), -1)

    @cached_property
    def _width(self) -> Array:
        return np.append(np.diff(self.bends), np.inf)
