"""What the server did in the last minutes: one row every two seconds, counts and times only, never anybody's text."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable

import msgspec
from msgspec import Struct

from smartspec.metrics import Histogram
from smartspec.policy.load import LoadReport
from smartspec.scheduling.output import StepStats

WINDOW_SECONDS = 600.0
INTERVAL_SECONDS = 2.0


class Percentiles(Struct, frozen=True):
    """Of latencies in seconds, over the recent window of the load report that they come from."""

    p50: float
    p95: float


class LastDecision(Struct, frozen=True):
    """The last step of a row: what was chosen for how many requests and why, foreseen against what came."""

    reason: str
    probe: bool
    requests: int
    mean_k: float
    predicted_seconds: float
    measured_seconds: float
    predicted_tokens: float
    kept_tokens: int


class Row(Struct, frozen=True):
    """One interval that ended at `time` (seconds since 1970). Gauges are those of its end; rates are over its
    `seconds`; goodput is per second of step time, as `/metrics` has it; what nothing was measured for is None.

    `k_by_proposer` sums to the mean k of the decoding requests. Positions count from the first proposed token.
    """

    index: int
    time: float
    seconds: float
    running: int
    waiting: int
    kv_cache_usage: float
    requests_per_second: float
    rejected_per_second: float
    tokens_per_second: float
    busy: float
    goodput_measured: float | None
    goodput_predicted: float | None
    tokens_per_step: float | None
    k_by_proposer: dict[str, float]
    drafted_by_position: list[int]
    accepted_by_position: list[int]
    ttft: Percentiles | None
    tpot: Percentiles | None
    e2e: Percentiles | None
    queue_time: Percentiles | None
    decision: LastDecision | None


class _Sums:
    """What steps of one interval add up to."""

    def __init__(self) -> None:
        self.tokens_kept = self.num_accepted = 0
        self.seconds = self.predicted_seconds = self.predicted_tokens = 0.0
        self.k: Counter[tuple[str, int]] = Counter()
        self.accepted: list[int] = []
        self.last: StepStats | None = None

    def add(self, stats: StepStats) -> None:
        self.tokens_kept += stats.tokens_kept
        self.num_accepted += sum(stats.accepted_by_proposer.values())
        self.seconds += stats.seconds.total
        self.predicted_seconds += stats.decision.predicted_seconds
        self.predicted_tokens += stats.decision.predicted_tokens
        self.k.update(stats.k_by_request)
        for position, accepted in enumerate(stats.accepted_by_position):
            if position == len(self.accepted):
                self.accepted.append(0)
            self.accepted[position] += accepted
        self.last = stats


class History:
    """The last ten minutes, in rows. Owned by the event loop; *clock* tells seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.started = clock()
        self._clock = clock
        num_kept = round(WINDOW_SECONDS / INTERVAL_SECONDS)
        self._rows: deque[Row] = deque(maxlen=num_kept)
        self._encoded: deque[msgspec.Raw] = deque(maxlen=num_kept)
        self._sums = _Sums()
        self._since = self.started
        self._num_rows = self._num_requests = self._num_rejected = 0

    def observe_step(self, stats: StepStats) -> None:
        """Count one engine step."""
        self._sums.add(stats)

    def rows(self, after: int = -1) -> list[Row]:
        """Rows with an index above *after*, oldest first."""
        return [row for row in self._rows if row.index > after]

    def encoded_rows(self, after: int = -1) -> list[msgspec.Raw]:
        """The same as JSON, made once: whoever asks for all of them again and again costs next to nothing."""
        return [text for row, text in zip(self._rows, self._encoded, strict=True) if row.index > after]

    async def keep(self, load: Callable[[], LoadReport]) -> None:
        """Close a row every two seconds, for ever."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            self.close_row(load())

    def close_row(self, load: LoadReport) -> None:
        """End the interval now; *load* is the state at its end."""
        now = self._clock()
        row = self._row(load, now, max(now - self._since, 1e-3))
        self._rows.append(row)
        self._encoded.append(msgspec.Raw(msgspec.json.encode(row)))
        self._num_rows += 1
        self._num_requests, self._num_rejected = load.requests_total, load.requests_rejected_total
        self._since, self._sums = now, _Sums()

    def _row(self, load: LoadReport, now: float, seconds: float) -> Row:
        sums = self._sums
        num_decodes = sum(sums.k.values())
        return Row(
            index=self._num_rows,
            time=round(now, 3),
            seconds=round(seconds, 3),
            running=load.num_requests_running,
            waiting=load.num_requests_waiting,
            kv_cache_usage=round(load.kv_cache_usage, 6),
            requests_per_second=round(max(0, load.requests_total - self._num_requests) / seconds, 3),
            rejected_per_second=round(max(0, load.requests_rejected_total - self._num_rejected) / seconds, 3),
            tokens_per_second=round(sums.tokens_kept / seconds, 3),
            busy=round(min(1.0, sums.seconds / seconds), 4),
            goodput_measured=_ratio(sums.tokens_kept, sums.seconds),
            goodput_predicted=_ratio(sums.predicted_tokens, sums.predicted_seconds),
            tokens_per_step=_ratio(num_decodes + sums.num_accepted, num_decodes),
            k_by_proposer=_mean_k(sums.k, num_decodes),
            drafted_by_position=_drafted_by_position(sums.k),
            accepted_by_position=sums.accepted,
            ttft=_percentiles(load.ttft),
            tpot=_percentiles(load.tpot),
            e2e=_percentiles(load.e2e),
            queue_time=_percentiles(load.queue_time),
            decision=None if sums.last is None else _decision(sums.last),
        )


def _mean_k(k: Counter[tuple[str, int]], num_decodes: int) -> dict[str, float]:
    """Tokens from each proposer per decoding request and step."""
    tokens: Counter[str] = Counter()
    for (proposer, num_tokens), times in k.items():
        if num_tokens:
            tokens[proposer] += num_tokens * times
    return {proposer: round(total / num_decodes, 4) for proposer, total in sorted(tokens.items())}


def _drafted_by_position(k: Counter[tuple[str, int]]) -> list[int]:
    """How many proposals reached each position."""
    longest = max((num_tokens for _, num_tokens in k), default=0)
    return [sum(times for (_, n), times in k.items() if n > position) for position in range(longest)]


def _decision(stats: StepStats) -> LastDecision:
    decision = stats.decision
    num_tokens = sum(choice.num_tokens for choice in decision.choices.values())
    return LastDecision(
        reason=decision.reason,
        probe=decision.probe,
        requests=stats.features.num_requests,
        mean_k=_ratio(num_tokens, decision.baseline_tokens) or 0.0,
        predicted_seconds=round(decision.predicted_seconds, 6),
        measured_seconds=round(stats.seconds.total, 6),
        predicted_tokens=round(decision.predicted_tokens, 3),
        kept_tokens=stats.tokens_kept,
    )


def _percentiles(histogram: Histogram) -> Percentiles | None:
    p50, p95 = histogram.quantile(0.5), histogram.quantile(0.95)
    return None if p50 is None or p95 is None else Percentiles(round(p50, 6), round(p95, 6))


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
