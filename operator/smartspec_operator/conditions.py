"""The conditions of a SmartSpec: one function each, None where the condition does not apply."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from smartspec_operator.fleet import Attainment
from smartspec_operator.integrations import integrated
from smartspec_operator.objectives import slo_met
from smartspec_operator.reported import Condition
from smartspec_operator.resource import SmartSpec
from smartspec_operator.rules import NOTHING
from smartspec_operator.world import Failure, Observation, PolicyDecision, Problem, ScalingDecision


def conditions(
    owner: SmartSpec,
    seen: Observation,
    policy: PolicyDecision,
    scale: ScalingDecision,
    attained: Sequence[Attainment],
    refusals: Mapping[str, Failure] = MappingProxyType({}),
) -> list[Condition]:
    """All that apply, `Ready` first. Positive polarity, but for `Degraded`."""
    available = _available(seen, scale)
    degraded = _degraded(owner, seen)
    parts = [
        available,
        _progressing(owner, seen, scale),
        degraded,
        _metrics_available(seen),
        _policy_applied(seen, policy, refusals),
        slo_met(owner, attained),
        _scaling_active(owner, scale),
        integrated(owner, seen),
    ]
    return [_ready(seen, scale, available, degraded), *(part for part in parts if part is not None)]


def _ready(seen: Observation, scale: ScalingDecision, available: Condition, degraded: Condition) -> Condition:
    if available.status == "True":
        return Condition("Ready", "True", "Serving", available.message)
    if degraded.status == "True":
        return Condition("Ready", "False", degraded.reason, degraded.message)
    return Condition("Ready", "False", available.reason, available.message)


def _available(seen: Observation, scale: ScalingDecision) -> Condition:
    ready = len(seen.serving)
    message = f"{ready} of {scale.desired} replicas are ready"
    if ready:
        return Condition("Available", "True", "ReplicasReady", message)
    if scale.desired == 0:
        return Condition("Available", "False", "ScaledToZero", "no replica is asked for")
    return Condition("Available", "False", "NoReplicaReady", message)


def _progressing(owner: SmartSpec, seen: Observation, scale: ScalingDecision) -> Condition:
    homeless = next((replica.pod for replica in seen.pending if replica.unschedulable), None)
    if homeless is not None and (seen.rolling or seen.makes_room):
        why = "" if homeless.problem is None else homeless.problem.message
        message = f"{homeless.name} waits for room: {why}".removesuffix(": ")
        if seen.makes_room:
            message = f"{homeless.name} waits for room, which a replica that drains will leave"
        elif owner.spec.template.rollout.max_unavailable in NOTHING:
            message += "; spec.template.rollout with maxSurge 0 and maxUnavailable 1 would do without a spare place"
        return Condition("Progressing", "True", "WaitsForRoom", message)
    if seen.rolling:
        return Condition("Progressing", "True", "Rolling", "replicas are being replaced")
    if scale.victims or scale.replicas > scale.desired:
        leaving = ", ".join(scale.victims)
        return Condition("Progressing", "True", "Draining", f"draining {leaving}" if leaving else "replicas leave")
    if len(seen.serving) < scale.desired:
        return Condition("Progressing", "True", "Starting", f"{len(seen.serving)} of {scale.desired} are ready")
    return Condition("Progressing", "False", "Complete", "every replica is as asked for")


def _degraded(owner: SmartSpec, seen: Observation) -> Condition:
    if owner.spec.server.admin_key_secret_ref is not None and seen.admin_key_version is None:
        wanted = owner.admin_key
        message = f"spec.server.adminKeySecretRef: there is no Secret {wanted.name} with the key {wanted.key}"
        return Condition("Degraded", "True", "SecretMissing", message)
    if seen.is_key_lost:
        name = owner.admin_key.name
        message = f"Secret {name} has lost its key {owner.admin_key.key}: delete the Secret, and it is made anew"
        return Condition("Degraded", "True", "SecretMissing", message)
    nodes = {replica.pod.node for replica in seen.replicas if replica.pod.node is not None}
    if not seen.shared_cache and len(nodes) > 1:
        message = (
            f"spec.storage.cache: the claim can be used on one node only, and replicas were placed on {len(nodes)}: "
            "use a ReadWriteMany claim, or keep them together by spec.template.affinity"
        )
        return Condition("Degraded", "True", "CacheNotShared", message)
    for replica in seen.replicas:
        if replica.unschedulable and seen.makes_room:  # a rollout that ends replicas first looks like this each time
            continue
        if replica.pod.problem is not None and not replica.pod.terminating:
            return _troubled(owner, replica.pod.problem, f"{replica.pod.name}: ")
    if seen.problem is not None:
        return _troubled(owner, seen.problem, "")
    return Condition("Degraded", "False", "AsExpected", "no replica names a problem")


def _troubled(owner: SmartSpec, problem: Problem, where: str) -> Condition:
    message = f"{where}{problem.message}".removesuffix(": ")
    before = owner.status.condition("Degraded")
    if before is not None and before.reason == problem.reason and "Back-off pulling image" in problem.message:
        message = before.message  # the attempt before said why; that it waits for the next one is no news
    return Condition("Degraded", "True", problem.reason, message)


def _metrics_available(seen: Observation) -> Condition | None:
    if not seen.serving:
        return None
    if not seen.missing:
        return Condition("MetricsAvailable", "True", "AllReplicasAnswer", "every ready replica reports its load")
    first = seen.missing[0]
    why = first.failure.message if first.failure is not None else "was not asked"
    reason = "NoReplicaAnswers" if not seen.loads else "SomeReplicasSilent"
    return Condition("MetricsAvailable", "False", reason, f"{first.pod.name}: {why}")


def _policy_applied(seen: Observation, policy: PolicyDecision, refusals: Mapping[str, Failure]) -> Condition | None:
    if not seen.loads:
        return None
    generation = policy.settings.generation
    behind = [r.pod.name for r in seen.serving if r.load is not None and r.load.generation != generation]
    if not behind and not seen.missing:
        return Condition("PolicyApplied", "True", "Applied", f"every replica runs policy generation {generation}")
    late = (behind or [replica.pod.name for replica in seen.missing])[0]
    message = f"generation {generation} has not reached {late}"
    if late in refusals:
        return Condition("PolicyApplied", "False", "Refused", f"{message}: {refusals[late].message}")
    return Condition("PolicyApplied", "False", "Pending", message)


def _scaling_active(owner: SmartSpec, scale: ScalingDecision) -> Condition:
    if not scale.active:
        message = "spec.autoscaling is absent: spec.replicas decides, set by hand, by an HPA or by KEDA"
        return Condition("ScalingActive", "False", "AutoscalingAbsent", message)
    if owner.spec.replicas is not None:
        message = "spec.autoscaling decides; spec.replicas is ignored while it is present"
        return Condition("ScalingActive", "True", "AutoscalingWins", message)
    return Condition("ScalingActive", "True", "Autoscaling", "demand decides on the number of replicas")
