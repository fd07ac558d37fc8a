"""The metrics contract as data: every name spelled once, for the server that exports and the operator that reads.

Names under `vllm:` are those of vLLM, so that dashboards and autoscalers made for it work unchanged
(source: docs.vllm.ai, "Production metrics"); ours beside them start with `smartspec_`.
"""

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
    """One metric of the exposition: its name as Prometheus shows it, its type, meaning and labels.

    Every metric also carries the label `model_name`, as vLLM's do. *buckets* are a histogram's upper bounds.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TOKEN_BUCKETS: tuple[float, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
SPECULATIVE_TOKEN_BUCKETS: tuple[float, ...] = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
RATIO_BUCKETS: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0)


def _seconds(name: str, text: str) -> Metric:
    return Metric(name, "histogram", text, buckets=LATENCY_BUCKETS_SECONDS)


# vLLM's names: load and cache.
NUM_REQUESTS_RUNNING = Metric("vllm:num_requests_running", "gauge", "Requests in the running batch.")
NUM_REQUESTS_WAITING = Metric("vllm:num_requests_waiting", "gauge", "Requests in the queue.")
KV_CACHE_USAGE = Metric("vllm:kv_cache_usage_perc", "gauge", "Share of KV cache blocks in use, from 0 to 1.")
CACHE_CONFIG_INFO = Metric(
    "vllm:cache_config_info", "info", "Size of the KV cache in blocks, and of a block in tokens.",
    ("block_size", "num_gpu_blocks", "cache_dtype"),
)  # fmt: skip
PREFIX_CACHE_QUERIES = Metric(
    "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache."
)
PREFIX_CACHE_HITS = Metric(
    "vllm:prefix_cache_hits_total", "counter", "Prompt tokens found there, computed for an earlier request."
)

# vLLM's names: what was served.
PROMPT_TOKENS = Metric("vllm:prompt_tokens_total", "counter", "Prompt tokens of requests that began to answer.")
GENERATION_TOKENS = Metric("vllm:generation_tokens_total", "counter", "Generated tokens, none past a stop.")
REQUEST_SUCCESS = Metric(
    "vllm:request_success_total", "counter", "Sequences that ended, by reason.", ("finished_reason",)
)
NUM_PREEMPTIONS = Metric(
    "vllm:num_preemptions_total", "counter", "Requests put back into the queue for want of blocks."
)
TIME_TO_FIRST_TOKEN = _seconds("vllm:time_to_first_token_seconds", "From arrival to the first token.")
INTER_TOKEN_LATENCY = _seconds(
    "vllm:inter_token_latency_seconds", "Between two steps that brought a sequence tokens (each may bring several)."
)
TIME_PER_OUTPUT_TOKEN = _seconds(
    "vllm:request_time_per_output_token_seconds", "Mean time per token after the first, once per sequence."
)
E2E_LATENCY = _seconds("vllm:e2e_request_latency_seconds", "From arrival to the last token.")
QUEUE_TIME = _seconds("vllm:request_queue_time_seconds", "From arrival to the first step that had the request in it.")
REQUEST_PROMPT_TOKENS = Metric(
    "vllm:request_prompt_tokens", "histogram", "Prompt tokens per sequence.", buckets=TOKEN_BUCKETS
)
REQUEST_GENERATION_TOKENS = Metric(
    "vllm:request_generation_tokens", "histogram", "Generated tokens per sequence.", buckets=TOKEN_BUCKETS
)
ITERATION_TOKENS = Metric(
    "vllm:iteration_tokens_total", "histogram", "Rows of the target's forward per step.", buckets=TOKEN_BUCKETS
)

# vLLM's names: speculation.
SPEC_DRAFTS = Metric("vllm:spec_decode_num_drafts_total", "counter", "Proposals verified.")
SPEC_DRAFT_TOKENS = Metric("vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens proposed.")
SPEC_ACCEPTED_TOKENS = Metric("vllm:spec_decode_num_accepted_tokens_total", "counter", "Proposed tokens accepted.")
SPEC_ACCEPTED_PER_POSITION = Metric(
    "vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter", "Proposed tokens accepted, by position.",
    ("position",),
)  # fmt: skip

# Ours: goodput, predicted and measured. Rates of the counters give both over any window.
STEPS = Metric("smartspec_steps_total", "counter", "Engine steps.")
STEP_SECONDS = Metric(
    "smartspec_step_seconds_total", "counter", "Time in steps, by part: draft, target or host.", ("part",)
)
PREDICTED_STEP_SECONDS = Metric(
    "smartspec_predicted_step_seconds_total", "counter", "Step time predicted before each step."
)
TOKENS_KEPT = Metric("smartspec_tokens_kept_total", "counter", "Tokens that steps added to sequences.")
PREDICTED_TOKENS = Metric("smartspec_predicted_tokens_total", "counter", "Kept tokens predicted before each step.")
GOODPUT_MEASURED = Metric(
    "smartspec_goodput_measured", "gauge", "Tokens kept per second of step time, over the recent window."
)
GOODPUT_PREDICTED = Metric(
    "smartspec_goodput_predicted", "gauge", "Tokens per second the policy predicted, over the recent window."
)
TIME_MODEL_ERROR = Metric(
    "smartspec_time_model_error_ratio", "histogram", "|predicted - measured| / measured step time.",
    buckets=RATIO_BUCKETS,
)  # fmt: skip
TIME_MODEL_COEFFICIENT = Metric(
    "smartspec_time_model_coefficient_seconds", "gauge", "Seconds per unit of each term of the time model.",
    ("term",),
)  # fmt: skip

# Ours: speculation.
SPECULATIVE_TOKENS = Metric(
    "smartspec_speculative_tokens", "histogram", "k of each decoding sequence and step, by proposer (none: k = 0).",
    ("proposer",), SPECULATIVE_TOKEN_BUCKETS,
)  # fmt: skip
MEAN_SPECULATIVE_TOKENS = Metric("smartspec_mean_speculative_tokens", "gauge", "Mean k over the recent window.")
ACCEPTANCE_RATE = Metric("smartspec_acceptance_rate", "gauge", "Accepted / drafted over the recent window.")
ACCEPTANCE_BY_POSITION = Metric(
    "smartspec_acceptance_probability", "gauge",
    "Estimate that a position is accepted given that all before it were (position 0 is the first).",
    ("proposer", "verifier", "position"),
)  # fmt: skip
DRAFT_TOKENS = Metric("smartspec_draft_tokens_total", "counter", "Tokens proposed, by proposer.", ("proposer",))
ACCEPTED_TOKENS = Metric(
    "smartspec_accepted_tokens_total", "counter", "Proposed tokens accepted, by proposer.", ("proposer",)
)
WASTED_DRAFT_TOKENS = Metric(
    "smartspec_wasted_draft_tokens_total", "counter", "Proposed tokens rejected, by proposer.", ("proposer",)
)
CATCHUP_TOKENS = Metric(
    "smartspec_catchup_tokens_total", "counter", "Committed tokens fed to the draft model before it drafted."
)
PROBES = Metric("smartspec_probes_total", "counter", "Steps that speculated only to learn.")

# Ours: the replica.
POLICY_GENERATION = Metric("smartspec_policy_generation", "gauge", "Generation of the policy in force.")
REQUESTS_REJECTED = Metric("smartspec_requests_rejected_total", "counter", "Requests answered 429: the queue was full.")
REJECTION_SECONDS = _seconds("smartspec_rejection_seconds", "From a request's arrival to its 429.")
READY = Metric("smartspec_ready", "gauge", "1 when new requests are welcome, else 0.")
BUILD_INFO = Metric("smartspec_build_info", "info", "The version that runs.", ("version",))

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""Every metric, in the order above: what `/metrics` shows and dashboards may rely on."""
