"""The metrics contract as data: every name spelled once, for the server that exports and the operator that reads.

Names under `vllm:` are those of vLLM, so that dashboards and autoscalers made for it work unchanged
(source: docs.vllm.ai, "Production metrics"); ours beside them start with `smartspec_`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

LATENCY_BUCKETS_SECONDS: tuple[float, ...] = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25,
    0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0,
)  # fmt: skip
"""Upper bounds shared by the histograms in `/metrics` and in `/load`: fine where TPOT targets lie."""


class Histogram(msgspec.Struct, frozen=True):
    """Counts of observations by bucket of `LATENCY_BUCKETS_SECONDS`, with one more for what is above the last bound."""

    counts: tuple[int, ...] = (0,) * (len(LATENCY_BUCKETS_SECONDS) + 1)

    @property
    def total(self) -> int:
        """How many observations there are."""
        return sum(self.counts)

    def merged(self, other: "Histogram") -> "Histogram":
        """The histogram of both sets of observations."""
        return Histogram(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def share_within(self, bound_seconds: float) -> float | None:
        """The share of observations of at most *bound_seconds*, interpolated inside a bucket; None when empty."""
        if not self.total:
            return None
        within, lower = 0.0, 0.0
        for count, upper in zip(self.counts, LATENCY_BUCKETS_SECONDS, strict=False):
            if bound_seconds >= upper:
                within += count
            else:
                within += count * max(0.0, bound_seconds - lower) / (upper - lower)
                break
            lower = upper
        return within / self.total

    def quantile(self, q: float) -> float | None:
        """The value under which a share *q* of the observations lies, interpolated; None when empty."""
        rank, seen, lower = q * self.total, 0, 0.0
        if not self.total:
            return None
        for count, upper in zip(self.counts, LATENCY_BUCKETS_SECONDS, strict=False):
            if count and seen + count >= rank:
                return lower + (upper - lower) * max(0.0, rank - seen) / count
            seen, lower = seen + count, upper
        return LATENCY_BUCKETS_SECONDS[-1]


@dataclass(frozen=True)
class Metric:
    """One metric of the exposition: its name as Prometheus shows it, its type, meaning and labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: Sequence[str] = ()
