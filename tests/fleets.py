"""Fleets for tests of the operator's decisions: only what a test is about need be spelled out."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from smartspec.metrics import LATENCY_BUCKETS_SECONDS, Histogram
from smartspec.policy.load import LoadReport, RequestShape, SpeculationReport
from smartspec.policy.online import OnlineLatencyModel
from smartspec.policy.settings import AcceptancePrior, PolicySettings, Priors
from smartspec.policy.types import StepFeatures, StepSeconds
from smartspec_operator.reported import ScalingRecord
from smartspec_operator.resource import SmartSpec, parse
from smartspec_operator.world import (
    Failure,
    History,
    Observation,
    Pod,
    PolicyDecision,
    Problem,
    Replica,
    TuningState,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def later(seconds: float) -> datetime:
    """So many seconds after `NOW`."""
    return NOW + timedelta(seconds=seconds)


def smartspec(**spec: Any) -> SmartSpec:
    """A resource with *spec* over the least one."""
    body = {
        "metadata": {"name": "demo", "namespace": "default", "uid": "u-1", "generation": 3},
        "spec": {"model": {"source": "org/model"}, **spec},
    }
    return parse(body)


def histogram(*seconds: float) -> Histogram:
    """A histogram of these observations."""
    counts = [0] * (len(LATENCY_BUCKETS_SECONDS) + 1)
    for value in seconds:
        counts[sum(value > bound for bound in LATENCY_BUCKETS_SECONDS)] += 1
    return Histogram(tuple(counts))


def load(
    *,
    tokens_per_second: float = 0.0,
    requests_per_second: float | None = None,
    recent_requests_per_second: float | None = None,
    mean_output: float = 100.0,
    state: str = "ready",
    **more: Any,
) -> LoadReport:
    """A report; arrivals follow from the tokens unless they are given, and were lately as they were before."""
    arrivals = tokens_per_second / mean_output if requests_per_second is None else requests_per_second
    shape = RequestShape(
        requests_per_second=arrivals,
        recent_requests_per_second=arrivals if recent_requests_per_second is None else recent_requests_per_second,
        generation_tokens_per_second=tokens_per_second,
        mean_prompt_tokens=50.0 if arrivals else 0.0,
        mean_generation_tokens=mean_output if arrivals else 0.0,
    )
    speculation = SpeculationReport(mean_k=2.0, acceptance_rate=0.7) if tokens_per_second else SpeculationReport()
    fields: dict[str, Any] = {"shape": shape, "speculation": speculation, "kv_cache_tokens": 1 << 20, **more}
    return LoadReport(model="demo", version="1", state=state, **fields)  # type: ignore[arg-type]


def replica(name: str, report: LoadReport | Failure | None = None, **pod: Any) -> Replica:
    """A ready replica with *report*, unless *pod* says otherwise."""
    fields: dict[str, Any] = {"ready": True, "since": later(-3600), "admin_url": f"http://{name}:8001", **pod}
    made = Pod(name=name, **fields)
    return Replica(made, failure=report) if isinstance(report, Failure) else Replica(made, load=report)


def pending(name: str, *, age: float = 10.0, problem: str | None = None) -> Replica:
    """A replica that is not ready, for *age* seconds by now."""
    return replica(
        name, ready=False, since=later(-age), admin_url=None, problem=Problem(problem) if problem is not None else None
    )


def seen(*replicas: Replica, deployed: int | None = None, **more: Any) -> Observation:
    """An observation of *replicas*, as many as are deployed unless said otherwise."""
    return Observation(replicas=replicas, deployed_replicas=len(replicas) if deployed is None else deployed, **more)


def history(*records: ScalingRecord, settings: PolicySettings | None = None, **more: Any) -> History:
    """A history with these scaling records."""
    return History(settings=settings, scaling=records, **more)


def policy(
    priors: Priors | None = None, *, exhausted: bool = False, ceiling: int | None = None, **settings: Any
) -> PolicyDecision:
    """Stage one's answer with these settings."""
    made = PolicySettings(generation=1, priors=priors, **settings)
    return PolicyDecision(made, TuningState(changed=later(-600), ceiling=ceiling), exhausted=exhausted)


def linear_priors(
    *, step_seconds: float = 0.02, token_seconds: float = 0.0005, rates: Mapping[str, tuple[float, ...]] | None = None
) -> Priors:
    """What a replica has learned whose steps take *step_seconds* and *token_seconds* more for each token."""
    model = OnlineLatencyModel()
    for repeat in range(8):
        for requests in (1, 2, 4, 8, 16, 32, 64, 128):
            tokens = requests + (0, 32, 128)[repeat % 3]
            features = StepFeatures(
                target_tokens=tokens, context_tokens=100 * requests, num_requests=requests,
                prefill_tokens=tokens - requests,
            )  # fmt: skip
            model.observe(features, StepSeconds(draft=0.0, target=step_seconds + token_seconds * tokens, host=0.0001))
    acceptance = tuple(
        AcceptancePrior(proposer="draft", verifier="rejection", rates=r, weights=(1000.0,) * len(r))
        for r in (rates or {}).values()
    )
    return Priors(key="cpu/float32/demo", latency=model.prior(), acceptance=acceptance)
