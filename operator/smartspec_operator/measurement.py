"""What came of a decision: the capacity that replicas have shown, beside the one that was predicted for them."""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Capacity:
    """What one replica makes while it runs so many requests at once."""

    tokens_per_second: float
    concurrency: int


def capacity_shown(fleet: Fleet) -> Capacity:
    """That of a replica while it works: idle time between steps is none of its doing."""
    if not fleet.size:
        return Capacity(0.0, 0)
    tokens_per_second = max(fleet.tokens_per_second, fleet.measured_goodput) / fleet.size
    tpot = fleet.tpot.quantile(0.5)
    # By Little's law, where anything has finished: one look at what runs would be chance.
    concurrency = fleet.running / fleet.size if tpot is None else tokens_per_second * tpot
    return Capacity(tokens_per_second, max(1, round(concurrency)))


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

    They may run fewer requests now than the prediction supposed, or more: what they have shown counts as much more or
    less as the model expects between the two.
    """
    if not records or records[-1].measured_tokens_per_second is not None:
        return records
    last, fleet = records[-1], together(seen.loads)
    early = now - moment(last.time) < timedelta(seconds=MEASURED_AFTER_SECONDS)
    if early or last.to_replicas < last.from_replicas or fleet.size != last.to_replicas or not fleet.tokens_per_second:
        return records
    shown, supposed = capacity_shown(fleet), last.predicted_concurrency
    if supposed is None:
        return records
    priors, settings = policy.settings.priors, policy.settings
    here = expected(owner, priors, fleet, settings, shown.concurrency)
    there = expected(owner, priors, fleet, settings, supposed)
    if here is None or there is None:
        return records
    measured = round(shown.tokens_per_second * there / here, 1)
    return (*records[:-1], msgspec.structs.replace(last, measured_tokens_per_second=measured))
