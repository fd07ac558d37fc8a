"""What was decided, read back: from the children that were written by it, or from the status where that tells more."""

from datetime import datetime
from typing import get_args

import msgspec

from smartspec.policy.settings import PolicyName, PolicySettings, decode_settings
from smartspec_operator.foreign import is_ours
from smartspec_operator.reported import ScalingRecord
from smartspec_operator.resource import ANNOTATION_DECIDED, ANNOTATION_TUNING, POLICY_FILE, Manifest, SmartSpec
from smartspec_operator.world import Decided, TuningState, decode

LARGEST = 2**53
"""A foreign number beyond this is nonsense: there would be none left after it."""


def in_force(owner: SmartSpec, config_map: Manifest | None, now: datetime) -> tuple[PolicySettings | None, TuningState]:
    """The policy that was decided last, and what stage one remembers; None where there is none yet.

    The status tells all of a policy but its priors, which replicas know. Under its own number, so that nothing changes
    for those that run it: unless what stands there has that number too, and whoever read it must be told otherwise.
    """
    metadata = {} if config_map is None else config_map["metadata"]
    noted = (metadata.get("annotations") or {}).get(ANNOTATION_TUNING)
    tuning = None if noted is None else decode(noted, TuningState, TuningState())
    found = _written(config_map)
    if config_map is not None and found is not None and is_ours(config_map, ("data", POLICY_FILE)):
        return found, tuning or TuningState()
    reported = _reported(owner)
    if reported is None:
        return None, tuning or TuningState()
    if found is not None and reported.generation <= found.generation < LARGEST:
        reason = "as it was, under a new number: a foreign policy had taken it"
        reported = msgspec.structs.replace(reported, generation=found.generation + 1, reason=reason)
    return reported, tuning or _guessed(owner, reported, now)


def scaled(owner: SmartSpec, deployment: Manifest | None) -> tuple[int | None, tuple[ScalingRecord, ...]]:
    """How many replicas were decided last, None where no Deployment of ours tells; and the last decisions about them.

    The status gets a decision after the Deployment: where that failed, the Deployment alone has its record.
    """
    records = owner.status.scaling_history
    noted = None if deployment is None else (deployment["metadata"].get("annotations") or {}).get(ANNOTATION_DECIDED)
    if deployment is None or not is_ours(deployment, ("metadata", "annotations", ANNOTATION_DECIDED)):
        return None, records
    decided = decode(noted, Decided, Decided())
    last = decided.record
    if last is None or any((known.time, known.to_replicas) == (last.time, last.to_replicas) for known in records):
        return decided.replicas, records
    return decided.replicas, (*records, last)


def _written(config_map: Manifest | None) -> PolicySettings | None:
    text = None if config_map is None else (config_map.get("data") or {}).get(POLICY_FILE)
    try:
        found = None if text is None else decode_settings(text)
    except msgspec.MsgspecError:
        return None  # someone wrote nonsense into it: as good as absent, and repaired by this very reconcile
    return None if found is None or found.generation == 0 else found  # none of ours is without a number


def _reported(owner: SmartSpec) -> PolicySettings | None:
    """The policy of the status; None while none is reported, or where it is of another kind than the spec's."""
    policy = owner.status.policy
    if policy is None or policy.generation == 0 or policy.name not in get_args(PolicyName):
        return None
    return (
        PolicySettings(
            generation=policy.generation,
            policy=owner.policy_name,
            max_speculative_tokens=policy.max_speculative_tokens,
            tpot_target_seconds=policy.tpot_target_seconds,
            max_running_requests=policy.max_running_requests,
            max_queued_requests=policy.max_queued_requests,
            reason=policy.reason,
        )
        if policy.name == owner.policy_name
        else None
    )


def _guessed(owner: SmartSpec, settings: PolicySettings, now: datetime) -> TuningState:
    """What stage one must have remembered when it decided *settings*."""
    objective, target, most = (
        owner.spec.slo.tpot_seconds,
        settings.tpot_target_seconds,
        owner.spec.speculation.max_tokens,
    )
    factor = 1.0 if objective is None or target is None else min(1.0, round(target / objective, 3))
    is_cut = owner.policy_name not in ("fixed", "off") and settings.max_speculative_tokens < most
    ceiling = settings.max_speculative_tokens if is_cut else None
    return TuningState(changed=now, tpot_factor=factor, ceiling=ceiling)
