"""What the engine has been doing lately: counts in one-second slots, summed over a sliding window when asked."""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from smartspec.metrics import LATENCY_BUCKETS_SECONDS, Histogram
from smartspec.policy.load import RequestShape, SpeculationReport
from smartspec.scheduling.output import StepStats

WINDOW_SECONDS = 30.0
RECENT_SECONDS = 8.0
SLOT_SECONDS = 1.0


def _no_counts() -> list[int]:
    return [0] * (len(LATENCY_BUCKETS_SECONDS) + 1)


@dataclass(slots=True)
class _Slot:
    """Sums over one second, or over a window of them."""

    begins: float = 0.0
    arrivals: int = 0
    turned_away: int = 0
    prompt_tokens: int = 0
    requested_tokens: int = 0
    finished: int = 0
    finished_tokens: int = 0
    generated_tokens: int = 0
    prefilled_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    ttft: list[int] = field(default_factory=_no_counts)
    tpot: list[int] = field(default_factory=_no_counts)
    e2e: list[int] = field(default_factory=_no_counts)
    queue_time: list[int] = field(default_factory=_no_counts)
    steps: int = 0
    step_seconds: float = 0.0
    predicted_seconds: float = 0.0
    predicted_tokens: float = 0.0
    time_errors: float = 0.0
    timed_steps: int = 0
    probes: int = 0
    decodes: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, other: "_Slot") -> None:
        """Add the sums of *other* to these."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _COUNTS:
            mine: list[int] = getattr(self, name)
            mine[:] = map(sum, zip(mine, getattr(other, name), strict=True))


_COUNTS = ("ttft", "tpot", "e2e", "queue_time")
_SUMS = tuple(name for name in _Slot.__slots__ if name not in (*_COUNTS, "begins"))


@dataclass(frozen=True, slots=True)
class RecentLoad:
    """The window as a load report shows it."""

    shape: RequestShape
    ttft: Histogram
    tpot: Histogram
    e2e: Histogram
    queue_time: Histogram
    speculation: SpeculationReport
    tokens_per_second: float
    """Prompt tokens prefilled and tokens generated, per second of step time: what a busy engine gets through."""


class LoadMeter:
    """Observations at the *clock*'s now, over the last `WINDOW_SECONDS`. Owned by one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._slots: deque[_Slot] = deque()
        self._last_reason = ""

    def arrived(self, num_prompt_tokens: int, max_tokens: int) -> None:
        """A request came, whether there was room for it or not."""
        slot = self._slot()
        slot.arrivals += 1
        slot.prompt_tokens += num_prompt_tokens
        slot.requested_tokens += max_tokens

    def turned_away(self) -> None:
        """A request came and was refused unread: it is demand, of the size that the others have."""
        self._slot().turned_away += 1

    def first_token(self, seconds: float) -> None:
        """A request got its first token *seconds* after it came."""
        _count(self._slot().ttft, seconds)

    def finished(self, num_generation_tokens: int, decode_seconds: float, e2e_seconds: float) -> None:
        """A request ended *decode_seconds* after its first token, and *e2e_seconds* after it came."""
        slot = self._slot()
        slot.finished += 1
        slot.finished_tokens += num_generation_tokens
        _count(slot.e2e, e2e_seconds)
        if num_generation_tokens > 1:
            _count(slot.tpot, decode_seconds / (num_generation_tokens - 1))

    def stepped(self, stats: StepStats) -> None:
        """The engine made a step."""
        slot, measured, decision = self._slot(), stats.seconds.total, stats.decision
        slot.steps += 1
        slot.step_seconds += measured
        slot.generated_tokens += stats.tokens_kept
        slot.prefilled_tokens += stats.features.prefill_tokens
        slot.prefix_query_tokens += stats.prefix_query_tokens
        slot.prefix_hit_tokens += stats.prefix_hit_tokens
        slot.predicted_seconds += decision.predicted_seconds
        slot.predicted_tokens += decision.predicted_tokens
        if measured > 0 and decision.predicted_seconds > 0:
            slot.timed_steps += 1
            slot.time_errors += abs(decision.predicted_seconds - measured) / measured
        slot.probes += decision.probe
        slot.decodes += len(stats.k_by_request)
        slot.drafts += stats.num_drafts
        slot.drafted += sum(stats.drafted_by_proposer.values())
        slot.accepted += sum(stats.accepted_by_proposer.values())
        for seconds in stats.queue_seconds:
            _count(slot.queue_time, seconds)
        self._last_reason = decision.reason or self._last_reason

    def recent(self) -> RecentLoad:
        """The window that ends now. Rates are demand for requests and prompts (refused ones included), and delivery
        for generated tokens."""
        now, total = self._clock(), _Slot()
        self._forget(now)
        for slot in self._slots:
            total.add(slot)
        lately = [slot for slot in self._slots if now - slot.begins < RECENT_SECONDS]
        covered = max(SLOT_SECONDS, min(WINDOW_SECONDS, now - self._since))
        return RecentLoad(
            shape=RequestShape(
                requests_per_second=(total.arrivals + total.turned_away) / covered,
                recent_requests_per_second=(
                    sum(slot.arrivals + slot.turned_away for slot in lately) / min(covered, RECENT_SECONDS)
                ),
                prompt_tokens_per_second=(
                    total.prompt_tokens * (1 + _ratio(total.turned_away, total.arrivals)) / covered
                ),
                generation_tokens_per_second=total.generated_tokens / covered,
                mean_prompt_tokens=_ratio(total.prompt_tokens, total.arrivals),
                mean_generation_tokens=_ratio(total.finished_tokens, total.finished),
                mean_requested_tokens=_ratio(total.requested_tokens, total.arrivals),
                prefix_hit_share=_ratio(total.prefix_hit_tokens, total.prefix_query_tokens),
            ),
            ttft=Histogram(tuple(total.ttft)),
            tpot=Histogram(tuple(total.tpot)),
            e2e=Histogram(tuple(total.e2e)),
            queue_time=Histogram(tuple(total.queue_time)),
            speculation=SpeculationReport(
                mean_k=_ratio(total.drafted, total.decodes),
                acceptance_rate=_ratio(total.accepted, total.drafted),
                mean_acceptance_length=_ratio(total.accepted + total.drafts, total.drafts),
                predicted_goodput=_ratio(total.predicted_tokens, total.predicted_seconds),
                measured_goodput=_ratio(total.generated_tokens, total.step_seconds),
                time_error=_ratio(total.time_errors, total.timed_steps),
                num_probes=total.probes,
                last_reason=self._last_reason,
            ),
            tokens_per_second=_ratio(total.generated_tokens + total.prefilled_tokens, total.step_seconds),
        )

    def _slot(self) -> _Slot:
        """The slot of now."""
        now = self._clock()
        if not self._slots or now - self._slots[-1].begins >= SLOT_SECONDS:
            self._forget(now)
            self._slots.append(_Slot(begins=now - now % SLOT_SECONDS))
        return self._slots[-1]

    def _forget(self, now: float) -> None:
        while self._slots and now - self._slots[0].begins >= WINDOW_SECONDS:
            self._slots.popleft()


def _count(counts: list[int], seconds: float) -> None:
    counts[bisect_left(LATENCY_BUCKETS_SECONDS, seconds)] += 1


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
