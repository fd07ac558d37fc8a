"""What came of a decision: the capacity that replicas have shown, beside the one that was predicted for them."""

from datetime import datetime, timedelta

import msgspec

from smartspec_operator.capacity import expected
from smartspec_operator.fleet import Fleet, together
from smartspec_operator.reported import ScalingRecord
from smartspec_operator.resource import SmartSpec
from smartspec_operator.world import Observation, PolicyDecision, moment

MEASURED_AFTER_SECONDS = 60.0
"""Before so long after a decision the windows still hold what was before it."""
QUEUE_SECONDS = 0.5
"""Nobody waits so long for a step alone."""


def capacity_shown(fleet: Fleet) -> float:
    """Tokens per second of a replica while it works: idle time between steps is none of its doing."""
    return max(fleet.tokens_per_second, fleet.measured_goodput) / fleet.size if fleet.size else 0.0


def is_saturated(fleet: Fleet) -> bool:
    """Whether all are busy: more requests wait than those that came during a step and wait for the next one."""
    return fleet.waiting > fleet.size


def has_queue(fleet: Fleet) -> bool:
    """Whether requests wait for others to end. Some that come together to an idle replica are seen waiting as well, but
    the next step takes them."""
    return is_saturated(fleet) and fleet.longest_wait_seconds >= QUEUE_SECONDS


def completed(
    owner: SmartSpec, seen: Observation, policy: PolicyDecision, records: tuple[ScalingRecord, ...], now: datetime
) -> tuple[ScalingRecord, ...]:
    """*records*, the last one completed, once, by what replicas made of it when all that were added had come.

    Replicas that are less busy than the prediction supposed show their capacity in proportion: it is as much more or
    less than predicted as their throughput is than the model's at their own concurrency.
    """
    if not records or records[-1].measured_tokens_per_second is not None:
        return records
    last, fleet = records[-1], together(seen.loads)
    early = now - moment(last.time) < timedelta(seconds=MEASURED_AFTER_SECONDS)
    if early or last.to_replicas < last.from_replicas or fleet.size != last.to_replicas or not fleet.tokens_per_second:
        return records
    shown = capacity_shown(fleet)
    if last.predicted_tokens_per_second is not None and not has_queue(fleet):
        concurrency = _concurrency(fleet, shown)
        model = expected(owner, policy.settings.priors, fleet, policy.settings, concurrency) if concurrency else None
        if model is None:
            return records
        shown *= last.predicted_tokens_per_second / model
    return (*records[:-1], msgspec.structs.replace(last, measured_tokens_per_second=round(shown, 1)))


def _concurrency(fleet: Fleet, tokens_per_second: float) -> int:
    """Requests that a replica runs at once while it works, by Little's law: one look would be chance. 0 if unknown."""
    tpot = fleet.tpot.quantile(0.5)
    if tpot is None:
        return round(fleet.running / fleet.size)
    return max(1, round(tokens_per_second * tpot))
