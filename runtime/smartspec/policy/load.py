"""What one replica says of itself on `/load`: small, complete, and the only thing the operator decides upon."""

from typing import Literal

import msgspec
from msgspec import Struct

from smartspec.metrics import Histogram
from smartspec.policy.settings import Priors

EMPTY = Histogram()


class RequestShape(Struct, frozen=True):
    """What requests looked like over the window: means in tokens, rates per second."""

    requests_per_second: float = 0.0
    recent_requests_per_second: float = 0.0
    """Over the last seconds of the window alone: a step of load is seen here long before the window is full of it."""
    prompt_tokens_per_second: float = 0.0
    generation_tokens_per_second: float = 0.0
    mean_prompt_tokens: float = 0.0
    mean_generation_tokens: float = 0.0
    mean_requested_tokens: float = 0.0
    """Mean `max_tokens` of arriving requests: known before anything has finished."""
    prefix_hit_share: float = 0.0
    """Share of prompt tokens that were found in the prefix cache: they take memory, and no time."""


class SpeculationReport(Struct, frozen=True):
    """How speculation went over the window.

    `mean_k` averages drafted tokens over decoding requests and steps (0 where none were drafted);
    `mean_acceptance_length` is tokens kept per request and verification step that drafted, bonus included; goodputs
    are tokens kept per second of step time; `time_error` is the mean of |predicted - measured| / measured over steps.
    """

    mean_k: float = 0.0
    acceptance_rate: float = 0.0
    mean_acceptance_length: float = 0.0
    predicted_goodput: float = 0.0
    measured_goodput: float = 0.0
    time_error: float = 0.0
    num_probes: int = 0
    last_reason: str = ""


class LoadReport(Struct, frozen=True):
    """One replica, now (`num_*`, `*_usage`) and over the last `window_seconds` (rates, histograms, speculation).

    `longest_wait_seconds` is how long the request has waited that waits longest for its first step.
    `generation` echoes the policy in force. Totals count since start. `arrivals` includes rejected requests.
    `tpot` is observed once per finished request (mean time per output token after the first), `ttft` once per request,
    `e2e` (from arrival to the last token) once per finished request.
    """

    model: str
    version: str
    state: Literal["loading", "ready", "draining"]
    generation: int = 0
    uptime_seconds: float = 0.0
    window_seconds: float = 30.0
    num_requests_running: int = 0
    num_requests_waiting: int = 0
    longest_wait_seconds: float = 0.0
    num_waiting_prompt_tokens: int = 0
    num_context_tokens: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    max_queued_requests: int = 0
    kv_cache_usage: float = 0.0
    kv_cache_tokens: int = 0
    requests_total: int = 0
    requests_rejected_total: int = 0
    preemptions_total: int = 0
    shape: RequestShape = RequestShape()
    ttft: Histogram = EMPTY
    tpot: Histogram = EMPTY
    e2e: Histogram = EMPTY
    queue_time: Histogram = EMPTY
    speculation: SpeculationReport = SpeculationReport()
    priors: Priors | None = None


def decode_load(data: bytes) -> LoadReport:
    """Parse a `/load` body; raises `msgspec.MsgspecError` when it is not one."""
    return msgspec.json.decode(data, type=LoadReport)
