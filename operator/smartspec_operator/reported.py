"""The status of a SmartSpec as frozen types: written by `status.compute`, read back after a restart."""

from typing import Any

import msgspec
from msgspec import Struct, field


class _Reported(Struct, frozen=True, rename="camel"):
    """A part of the status: camelCase in the API, unknown fields of a newer version ignored."""


class ReportedPolicy(_Reported, frozen=True):
    """The policy in force, and how many replicas echo it."""

    generation: int = 0
    applied_replicas: int = 0
    name: str = ""
    max_speculative_tokens: int = 0
    tpot_target_seconds: float | None = None
    max_running_requests: int | None = None
    max_queued_requests: int | None = None
    reason: str = ""


class ReportedLoad(_Reported, frozen=True):
    """The load of all replicas together as of `time`, held while it hardly changes: a steady load is no write."""

    time: str = ""
    requests_per_second: float = 0.0
    tokens_per_second: float = 0.0
    running_requests: int = 0
    waiting_requests: int = 0
    mean_speculative_tokens: float = 0.0
    acceptance_rate: float = 0.0
    predicted_goodput: float = 0.0
    measured_goodput: float = 0.0
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    kv_cache_usage: float = 0.0


class ScalingRecord(_Reported, frozen=True):
    """One decision about replicas, and the capacity it predicted: tokens per second of a replica that runs so many
    requests at once; measured is what such a replica has shown."""

    time: str
    from_replicas: int
    to_replicas: int
    reason: str
    message: str = ""
    demand_tokens_per_second: float | None = None
    predicted_tokens_per_second: float | None = None
    predicted_concurrency: int | None = None
    measured_tokens_per_second: float | None = None


class Condition(_Reported, frozen=True):
    """One aspect of the resource's health, in the API's usual form."""

    type: str
    status: str
    reason: str
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0


class Status(_Reported, frozen=True):
    """All that is reported of a SmartSpec."""

    observed_generation: int = 0
    replicas: int = 0
    ready_replicas: int = 0
    selector: str = ""
    url: str = ""
    policy: ReportedPolicy | None = None
    load: ReportedLoad | None = None
    slo_attainment: float | None = None
    scaling_history: tuple[ScalingRecord, ...] = ()
    conditions: tuple[Condition, ...] = field(default=())

    def condition(self, kind: str) -> Condition | None:
        """The condition of type *kind*, if it is set."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


def as_manifest(status: Status) -> dict[str, Any]:
    """The status as the API's object holds it: zeros are said, what is not known is absent."""
    found: dict[str, Any] = _known(msgspec.to_builtins(status))
    return found


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items() if inner is not None and inner != ""}
    return [_known(inner) for inner in value] if isinstance(value, list | tuple) else value
