"""The policy as it travels: from flags, over `PUT /policy`, in a ConfigMap, from one replica to the next.

Both packages read and write these types; JSON is made and checked by msgspec, whose errors name the field.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

PolicyName = Literal["request", "batch", "fixed", "off"]
NonNegativeInt = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0.0, le=3600.0)]
"""What one unit of anything takes: beyond an hour it is no measurement, and sums of it would no longer be numbers."""
Evidence = Annotated[float, Meta(ge=0.0, le=1e12)]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]


class LatencyPrior(Struct, frozen=True, forbid_unknown_fields=True):
    """Coefficients of the time model with the evidence behind them.

    `coefficients` maps a feature's name to seconds per unit; `weight` is the number of steps behind them.
    """

    coefficients: dict[str, Seconds]
    weight: Evidence
    relative_error: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0


class AcceptancePrior(Struct, frozen=True, forbid_unknown_fields=True):
    """Conditional acceptance by position for one proposer and verifier: `rates[i]` given that i-1 were accepted.

    `weights[i]` is the number of trials behind `rates[i]`, after forgetting.
    """

    proposer: Literal["draft", "lookup"]
    verifier: Literal["coupled", "rejection", "greedy"]
    rates: tuple[Probability, ...]
    weights: tuple[Evidence, ...]


class Priors(Struct, frozen=True, forbid_unknown_fields=True):
    """What one replica, or a fleet, has learned; refused by a runtime whose `key` differs.

    `key` names device, dtype, target, draft, attention backend and tensor parallelism.
    """

    key: str
    latency: LatencyPrior | None = None
    acceptance: tuple[AcceptancePrior, ...] = ()


class PolicySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The policy of a replica. A higher generation replaces a lower one, hot, between two steps.

    `tpot_target_seconds` bounds the predicted time per output token of every running request; `max_running_requests`
    and `max_queued_requests` tighten (never widen) what the replica was started with.
    """

    generation: NonNegativeInt = 0
    policy: PolicyName = "request"
    max_speculative_tokens: Annotated[int, Meta(ge=0, le=32)] = 8
    tpot_target_seconds: Annotated[float, Meta(gt=0.0, le=3600.0)] | None = None
    max_running_requests: Annotated[int, Meta(ge=1)] | None = None
    max_queued_requests: NonNegativeInt | None = None
    priors: Priors | None = None
    reason: str = ""


def encode_settings(settings: PolicySettings) -> bytes:
    """JSON with keys in a stable order, so that equal settings are equal text."""
    return msgspec.json.encode(settings, order="deterministic")


def decode_settings(data: bytes | str) -> PolicySettings:
    """Parse JSON; raises `msgspec.ValidationError`, which names the field, or `msgspec.DecodeError`."""
    return msgspec.json.decode(data, type=PolicySettings)
