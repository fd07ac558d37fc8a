"""`/metrics`: what the engine and the server report, kept in prometheus-client under the names of the contract."""

import math
from collections.abc import Callable, Iterable, Sequence

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client import Histogram as PrometheusHistogram
from prometheus_client import Metric as PrometheusMetric

from smartspec import __version__, metrics
from smartspec.metrics import METRICS, Metric
from smartspec.policy.load import LoadReport
from smartspec.policy.settings import Priors
from smartspec.scheduling.client import EngineInfo, GenerationDelta
from smartspec.scheduling.output import StepStats

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4


class Exposition:
    """All metrics of the contract for one model, in a registry of their own."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._registry = CollectorRegistry()
        self._counters: dict[Metric, Counter] = {}
        self._gauges: dict[Metric, Gauge] = {}
        self._histograms: dict[Metric, PrometheusHistogram] = {}
        # By name and labels what is written many times a step: looking a child up costs more than writing to it.
        self._counted: dict[tuple[str, ...], Counter] = {}
        self._observed: dict[tuple[str, ...], PrometheusHistogram] = {}
        self._terms: set[str] = set()
        ProcessCollector(registry=self._registry)
        for metric in METRICS:
            self._register(metric)
        self._gauges[metrics.BUILD_INFO].labels(model, __version__).set(1)

    def _register(self, metric: Metric) -> None:
        labels = ("model_name", *metric.labels)
        match metric.kind:
            case "counter":  # the client appends _total itself
                name = metric.name.removesuffix("_total")
                self._counters[metric] = counter = Counter(name, metric.help, labels, registry=self._registry)
                if not metric.labels:
                    counter.labels(self._model)  # shown as 0 before the first event, so that rates start right
            case "histogram":
                self._histograms[metric] = histogram = PrometheusHistogram(
                    metric.name, metric.help, labels, registry=self._registry, buckets=metric.buckets
                )
                if not metric.labels:
                    histogram.labels(self._model)
            case "gauge" | "info":  # an info is a gauge that is 1, as vLLM shows it
                self._gauges[metric] = Gauge(metric.name, metric.help, labels, registry=self._registry)

    def count(self, metric: Metric, amount: float = 1, *labels: str) -> None:
        """Add *amount* to a counter."""
        child = self._counted.get((metric.name, *labels))
        if child is None:
            child = self._counted[metric.name, *labels] = self._counters[metric].labels(self._model, *labels)
        child.inc(amount)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add one observation to a histogram."""
        child = self._observed.get((metric.name, *labels))
        if child is None:
            child = self._observed[metric.name, *labels] = self._histograms[metric].labels(self._model, *labels)
        child.observe(value)

    def describe(self, info: EngineInfo) -> None:
        """Show what was loaded."""
        shown = self._gauges[metrics.CACHE_CONFIG_INFO]
        shown.labels(self._model, str(info.block_size), str(info.num_blocks), info.dtype).set(1)

    def observe_step(self, stats: StepStats) -> None:
        """Count one engine step."""
        measured, predicted = stats.seconds.total, stats.decision.predicted_seconds
        self.count(metrics.STEPS)
        for part in ("draft", "target", "host"):
            self.count(metrics.STEP_SECONDS, max(0.0, getattr(stats.seconds, part)), part)
        self.count(metrics.GENERATION_TOKENS, stats.tokens_kept)
        self.count(metrics.TOKENS_KEPT, stats.tokens_kept)
        self.count(metrics.PREDICTED_STEP_SECONDS, max(0.0, predicted))
        self.count(metrics.PREDICTED_TOKENS, max(0.0, stats.decision.predicted_tokens))
        if measured > 0 and predicted > 0:
            self.observe(metrics.TIME_MODEL_ERROR, abs(predicted - measured) / measured)
        self.observe(metrics.ITERATION_TOKENS, stats.features.target_tokens)
        self.count(metrics.NUM_PREEMPTIONS, stats.num_preempted)
        self.count(metrics.PREFIX_CACHE_QUERIES, stats.prefix_query_tokens)
        self.count(metrics.PREFIX_CACHE_HITS, stats.prefix_hit_tokens)
        for seconds in stats.queue_seconds:
            self.observe(metrics.QUEUE_TIME, seconds)
        self._observe_speculation(stats)

    def _observe_speculation(self, stats: StepStats) -> None:
        self.count(metrics.SPEC_DRAFTS, stats.num_drafts)
        self.count(metrics.SPEC_DRAFT_TOKENS, sum(stats.drafted_by_proposer.values()))
        self.count(metrics.SPEC_ACCEPTED_TOKENS, sum(stats.accepted_by_proposer.values()))
        for position, accepted in enumerate(stats.accepted_by_position):
            self.count(metrics.SPEC_ACCEPTED_PER_POSITION, accepted, str(position))
        for proposer, drafted in stats.drafted_by_proposer.items():
            accepted = stats.accepted_by_proposer.get(proposer, 0)
            self.count(metrics.DRAFT_TOKENS, drafted, proposer)
            self.count(metrics.ACCEPTED_TOKENS, accepted, proposer)
            self.count(metrics.WASTED_DRAFT_TOKENS, drafted - accepted, proposer)
        for proposer, k in stats.k_by_request:
            self.observe(metrics.SPECULATIVE_TOKENS, k, proposer)
        self.count(metrics.CATCHUP_TOKENS, stats.catchup_tokens)
        self.count(metrics.PROBES, int(stats.decision.probe))

    def render(self, load: LoadReport) -> bytes:
        """The text of `/metrics`, its gauges taken from *load*."""
        for metric, value in (
            (metrics.NUM_REQUESTS_RUNNING, load.num_requests_running),
            (metrics.NUM_REQUESTS_WAITING, load.num_requests_waiting),
            (metrics.KV_CACHE_USAGE, load.kv_cache_usage),
            (metrics.GOODPUT_MEASURED, load.speculation.measured_goodput),
            (metrics.GOODPUT_PREDICTED, load.speculation.predicted_goodput),
            (metrics.MEAN_SPECULATIVE_TOKENS, load.speculation.mean_k),
            (metrics.ACCEPTANCE_RATE, load.speculation.acceptance_rate),
            (metrics.POLICY_GENERATION, load.generation),
            (metrics.READY, float(load.state == "ready")),
        ):
            self._gauges[metric].labels(self._model).set(value)
        self._show_learned(load.priors)
        return prometheus_client.generate_latest(self)

    def _show_learned(self, priors: Priors | None) -> None:
        """Show the time model and the acceptance that the policy has learned."""
        if priors is None:
            return
        if priors.latency is not None:
            # A term that stands at zero is one of many that never mattered here, unless it was shown before.
            for term, seconds in priors.latency.coefficients.items():
                if seconds > 0 or term in self._terms:
                    self._terms.add(term)
                    self._gauges[metrics.TIME_MODEL_COEFFICIENT].labels(self._model, term).set(seconds)
        shown = self._gauges[metrics.ACCEPTANCE_BY_POSITION]
        for prior in priors.acceptance:
            for position, rate in enumerate(prior.rates):
                shown.labels(self._model, prior.proposer, prior.verifier, str(position)).set(rate)

    def collect(self) -> Iterable[PrometheusMetric]:
        """The registry's families without `_created`: a time for every counter would double the text, for nobody."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class RecentText:
    """A text that is dear to make, and that anybody may ask for: made again only when ten times as long has passed as
    it took to make, by *clock*, so that no flood of questions takes more than a tenth of a core."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._text = b""
        self._until = -math.inf

    def text(self, make: Callable[[], bytes]) -> bytes:
        """The text that *make* gives now, or gave a moment ago."""
        if (began := self._clock()) >= self._until:
            self._text = make()
            ended = self._clock()
            self._until = ended + 10 * (ended - began)
        return self._text


class SequenceTimer:
    """Latencies and counts of one sequence from its deltas: when the engine had them, not when they were read."""

    def __init__(self, exposition: Exposition, clock: Callable[[], float]) -> None:
        self._exposition = exposition
        self._arrival = clock()
        self._first: float | None = None
        self._last = self._arrival
        self._counted = 0
        self._prompt_tokens = self._cached_tokens = 0
        self._queue_seconds = 0.0
        self._finish_reason: str | None = None

    @property
    def is_begun(self) -> bool:
        """Whether anything was heard of the sequence."""
        return self._first is not None

    def facts(self) -> dict[str, str | int | float]:
        """What was seen of a sequence that is begun: tokens, why it ended, and seconds by phase."""
        assert self._first is not None
        to_first = self._first - self._arrival
        return {
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached_tokens,
            "generated_tokens": self._counted,
            "finish_reason": self._finish_reason or "none",
            "queue_seconds": self._queue_seconds,
            "prefill_seconds": max(0.0, to_first - self._queue_seconds),
            "ttft_seconds": to_first,
            "decode_seconds": self._last - self._first,
        }

    def observe(self, delta: GenerationDelta) -> None:
        """Take in the next delta."""
        now, shown = delta.time, self._exposition
        if self._first is None:
            self._first = now
            self._prompt_tokens, self._cached_tokens = delta.num_prompt_tokens, delta.num_cached_tokens
            self._queue_seconds = delta.queue_seconds
            shown.count(metrics.PROMPT_TOKENS, delta.num_prompt_tokens)
            shown.observe(metrics.TIME_TO_FIRST_TOKEN, now - self._arrival)
        elif delta.num_generation_tokens > self._counted:
            shown.observe(metrics.INTER_TOKEN_LATENCY, now - self._last)
        self._counted, self._last = delta.num_generation_tokens, now
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
            shown.count(metrics.REQUEST_SUCCESS, 1, delta.finish_reason)
            shown.observe(metrics.E2E_LATENCY, now - self._arrival)
            shown.observe(metrics.REQUEST_PROMPT_TOKENS, delta.num_prompt_tokens)
            shown.observe(metrics.REQUEST_GENERATION_TOKENS, self._counted)
            if self._counted > 1:
                shown.observe(metrics.TIME_PER_OUTPUT_TOKEN, (now - self._first) / (self._counted - 1))


def facts_of(timers: Sequence[SequenceTimer]) -> dict[str, str | int | float]:
    """The facts of one request's sequences together: tokens add up (a prompt's too, for each), phases overlap."""
    if not timers:
        return {}
    every = [timer.facts() for timer in timers]
    together: dict[str, str | int | float] = {"sequences": len(every)} if len(every) > 1 else {}
    for name, first in every[0].items():
        values = [facts[name] for facts in every]
        if isinstance(first, str):
            together[name] = ",".join(sorted({str(value) for value in values}))
        else:
            together[name] = (sum if isinstance(first, int) else max)(
                value for value in values if not isinstance(value, str)
            )
    return together
