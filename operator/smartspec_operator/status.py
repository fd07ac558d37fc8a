"""What is reported of a SmartSpec: pure, and equal while nothing worth telling has changed: rest means no writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal

import msgspec

from smartspec_operator import load_status
from smartspec_operator.conditions import conditions
from smartspec_operator.fleet import attainment, attainments, together
from smartspec_operator.reported import Condition, ReportedPolicy, Status
from smartspec_operator.resource import PORT_NAME, Manifest, SmartSpec
from smartspec_operator.world import Failure, Observation, PolicyDecision, ScalingDecision, timestamp

TOLD = (
    ("Ready", "True"), ("Degraded", "False"), ("MetricsAvailable", "True"), ("SLOMet", "True"), ("Integrated", "True"),
)  # fmt: skip
"""The conditions whose turns are Events, with the status that is good news."""
OF_THE_SPEC = ("ScalingActive", "Integrated")
"""Conditions that tell what was made of the spec."""
LONGEST = 4000
"""So many characters of a refusal are told: an API server names every fault of a template, and takes 32,768 back."""


def compute(
    owner: SmartSpec,
    seen: Observation,
    policy: PolicyDecision,
    scale: ScalingDecision,
    refusals: Mapping[str, Failure] = MappingProxyType({}),
    *,
    now: datetime,
) -> Status:
    """The status after this reconcile; *refusals* are replicas that did not take the policy, and why."""
    slo, old, fleet = owner.spec.slo, owner.status, together(seen.loads)
    met = attainment(fleet, slo.ttft_seconds, slo.tpot_seconds)
    attained = attainments(fleet, slo.ttft_seconds, slo.tpot_seconds)
    url = service_url(owner, seen.service)
    load, told = old.load, old.slo_attainment
    if seen.loads:
        load, told = load_status.reported(fleet, met, slo, old, now=now)
    return Status(
        observed_generation=owner.generation,
        replicas=sum(not replica.pod.terminating for replica in seen.replicas),
        ready_replicas=sum(replica.pod.ready and not replica.pod.terminating for replica in seen.replicas),
        selector=",".join(f"{key}={value}" for key, value in sorted(owner.labels.items())),
        url=url or old.url,
        policy=_policy(seen, policy),
        load=load,
        slo_attainment=told,
        scaling_history=scale.history,
        conditions=dated(conditions(owner, seen, policy, scale, attained, refusals), old, owner.generation, now),
    )


def observed(old: Status, seen: Status) -> Status:
    """*seen* of a resource that is not carried out: what its conditions say of the spec itself stays as in *old*."""
    kept = [condition for condition in old.conditions if condition.type in OF_THE_SPEC]
    new = [condition for condition in seen.conditions if condition.type not in OF_THE_SPEC]
    return msgspec.structs.replace(seen, conditions=(*new, *kept))


def refused(
    old: Status, reason: str, message: str, *, seen: Status | None = None, generation: int, now: datetime
) -> Status:
    """The status of a resource whose spec is not acted upon, after *old*: what is *seen* of it, but not ready.

    Where nothing could be seen, all else stays reported as it was.
    """
    told = message if len(message) <= LONGEST else message[: LONGEST - 3] + "..."
    ready = Condition("Ready", "False", reason, told)
    base = old if seen is None else seen
    others = [condition for condition in base.conditions if condition.type != "Ready"]
    return msgspec.structs.replace(
        base, observed_generation=generation, conditions=(*dated([ready], old, generation, now), *others)
    )


def dated(new: list[Condition], old: Status, generation: int, now: datetime) -> tuple[Condition, ...]:
    """*new* with the time at which each status last changed: that of *old* while it is the same."""

    def transition(condition: Condition) -> str:
        before = old.condition(condition.type)
        same = before is not None and before.status == condition.status
        return before.last_transition_time if same and before is not None else timestamp(now)

    return tuple(
        msgspec.structs.replace(condition, last_transition_time=transition(condition), observed_generation=generation)
        for condition in new
    )


@dataclass(frozen=True)
class News:
    """Something a person would want to read among the resource's Events."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def news(old: Status, new: Status) -> list[News]:
    """What happened between two reports: what turned, decisions about the policy and about replicas."""
    found: list[News] = []
    for kind, good in TOLD:
        before, after = old.condition(kind), new.condition(kind)
        if after is None or (before is None and after.status == good and kind != "Ready"):
            continue
        if any(after.reason == told.reason for told in found):  # readiness names the same problem
            continue
        if before is None or (before.status, before.reason) != (after.status, after.reason):
            expected = after.status == good or (before is None and after.reason == "NoReplicaReady")
            found.append(News("Normal" if expected else "Warning", after.reason, after.message))
    before_policy, policy = old.policy or ReportedPolicy(), new.policy
    if policy is not None and 0 != before_policy.generation != policy.generation:  # the first one is no news
        found.append(News("Normal", "PolicyChanged", f"generation {policy.generation}: {policy.reason}"))
    known = {(record.time, record.to_replicas) for record in old.scaling_history}
    found += [
        News(
            "Normal",
            "Scaled",
            f"{record.from_replicas} -> {record.to_replicas} replicas, {record.reason}: {record.message}",
        )
        for record in new.scaling_history
        if (record.time, record.to_replicas) not in known
    ]
    return found


def service_url(owner: SmartSpec, service: Manifest | None) -> str:
    """The base URL for OpenAI clients; empty while there is no Service."""
    if service is None:
        return ""
    ports: Mapping[str, int] = {port.get("name", ""): port["port"] for port in service["spec"].get("ports", ())}
    port = ports.get(PORT_NAME, 80)
    outside = service.get("status", {}).get("loadBalancer", {}).get("ingress") or [{}]
    host = outside[0].get("ip") or outside[0].get("hostname") or f"{owner.name}.{owner.namespace}.svc"
    return f"http://{host}/v1" if port == 80 else f"http://{host}:{port}/v1"


def _policy(seen: Observation, policy: PolicyDecision) -> ReportedPolicy:
    settings = policy.settings
    return ReportedPolicy(
        generation=settings.generation,
        applied_replicas=sum(load.generation == settings.generation for load in seen.loads),
        name=settings.policy,
        max_speculative_tokens=settings.max_speculative_tokens,
        tpot_target_seconds=settings.tpot_target_seconds,
        max_running_requests=settings.max_running_requests,
        max_queued_requests=settings.max_queued_requests,
        reason=settings.reason,
    )
