"""Stage two: change the number of replicas, which takes minutes and costs a machine.

Several analysers look at the fleet: going up the largest answer counts, going down they must agree. A replica that
starts counts as supply; one that never will is given up. What is not known never scales down.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import ceil, floor

from smartspec_operator.capacity import predicted
from smartspec_operator.fleet import Fleet, attainment, together
from smartspec_operator.measurement import Capacity, capacity_shown, completed, has_queue, is_saturated
from smartspec_operator.removal import held, is_busy, replicas_now, victims
from smartspec_operator.reported import ScalingRecord
from smartspec_operator.resource import AutoscalingSpec, SmartSpec
from smartspec_operator.rules import NOTHING
from smartspec_operator.window import extended, stabilised
from smartspec_operator.world import (
    History,
    Observation,
    PolicyDecision,
    Replica,
    ScalingDecision,
    Timing,
    moment,
    timestamp,
)

HIGH_USE, LOW_USE = 0.85, 0.70
"""Demand fills at most the first share of the replicas before more come, and less than the second before any goes."""
BACKLOG_SECONDS = 30.0
"""Within this time what waits now should be served: it turns a queue into a rate."""
GROWTH = 2
"""One decision at most doubles the replicas: demand is known better once they have come."""
HISTORY_LENGTH = 10
GAVE_UP = "GaveUp"
OTHERS_WORK = frozenset({"Unschedulable", "SchedulingGated", "Stuck"})
"""Problems that others are solving: an autoscaler brings a node, a queue lets the pod in, a volume is attached."""


@dataclass(frozen=True)
class Advice:
    """So many replicas, and why; with the tokens per second asked for, and what one replica is thought to carry."""

    replicas: int
    reason: str
    message: str
    demand: float | None = None
    supply: Capacity | None = None


def decide(
    owner: SmartSpec, seen: Observation, history: History, policy: PolicyDecision, *, now: datetime, timing: Timing
) -> ScalingDecision:
    """How many replicas there shall be, and which leave first."""
    scale, current = owner.spec.autoscaling, _current(owner, seen, history)
    if scale is None:
        wanted = _fixed(owner)
        advice = Advice(wanted, "SpecReplicas", f"spec.replicas asks for {wanted}")
        return _carried_out(owner, seen, history, policy, current, advice, now=now)
    advice = _advice(owner, scale, seen, history, policy, current, now=now, timing=timing)
    up, down = scale.scale_up_stabilization_seconds, scale.scale_down_stabilization_seconds
    past = extended(history.recommendations, advice.replicas, current=current, now=now, longest_seconds=max(up, down))
    wanted = stabilised(past, current=current, now=now, up_seconds=up, down_seconds=down)
    if advice.reason == GAVE_UP:  # nothing is served by what does not start: no window to wait for
        wanted = advice.replicas
    bounded = min(max(wanted, scale.min_replicas), scale.max_replicas)
    if bounded != wanted:
        text = f"spec.autoscaling allows {scale.min_replicas} to {scale.max_replicas} replicas"
        advice = replace(advice, reason="Bounds", message=text)
    wanted = bounded
    decision = _carried_out(owner, seen, history, policy, current, replace(advice, replicas=wanted), now=now)
    return replace(decision, recommendations=past, active=True)


def keep(
    owner: SmartSpec, seen: Observation, history: History, policy: PolicyDecision, *, now: datetime, timing: Timing
) -> ScalingDecision:
    """The decision in force carried further, between two decisions; the first one where there is none."""
    if owner.spec.autoscaling is None or seen.deployed_replicas is None:
        return decide(owner, seen, history, policy, now=now, timing=timing)
    advice = Advice(_current(owner, seen, history), "", "")
    decision = _carried_out(owner, seen, history, policy, advice.replicas, advice, now=now)
    return replace(decision, recommendations=history.recommendations, active=True)


def _fixed(owner: SmartSpec) -> int:
    return 1 if owner.spec.replicas is None else owner.spec.replicas


def _current(owner: SmartSpec, seen: Observation, history: History) -> int:
    """What was decided last; where nothing was, what is deployed, or is about to be."""
    if history.replicas is not None:
        return history.replicas
    if history.scaling:
        return history.scaling[-1].to_replicas
    if seen.deployed_replicas is not None:
        return seen.deployed_replicas
    scale = owner.spec.autoscaling
    return _fixed(owner) if scale is None else scale.min_replicas


def _advice(
    owner: SmartSpec,
    scale: AutoscalingSpec,
    seen: Observation,
    history: History,
    policy: PolicyDecision,
    current: int,
    *,
    now: datetime,
    timing: Timing,
) -> Advice:
    """What this moment alone asks for, before any window."""
    hopeless = [replica for replica in seen.pending if _is_hopeless(owner, replica, now, timing)]
    if hopeless and current > scale.min_replicas and not seen.rolling:
        problem = hopeless[0].pod.problem
        why = f": {problem.reason} {problem.message}".rstrip() if problem else " for too long"
        return Advice(
            max(scale.min_replicas, current - len(hopeless)), GAVE_UP, f"{hopeless[0].pod.name} is pending{why}"
        )
    fleet = together(seen.loads)
    supply = _supply(owner, policy, fleet)
    demand = _demand(fleet)
    more = max(_answers_up(seen, policy, fleet, current, demand, supply, len(hopeless)), key=lambda a: a.replicas)
    if more.replicas > current:
        if _gave_up_lately(history, now, timing):
            return Advice(current, "BackingOff", f"replicas did not start lately; still {more.message}", demand, supply)
        return replace(more, replicas=min(more.replicas, current * GROWTH))
    return _answer_down(owner, scale, seen, policy, fleet, current, demand, supply)


def _answers_up(
    seen: Observation,
    policy: PolicyDecision,
    fleet: Fleet,
    current: int,
    demand: float,
    supply: Capacity | None,
    hopeless: int,
) -> list[Advice]:
    """One answer for each analyser, *current* where it asks for nothing."""
    answers = [Advice(current, "Steady", "demand and replicas agree", demand, supply)]
    if supply is not None:
        # Replicas still starting count: or each tick of a slow start would add one more.
        each = supply.tokens_per_second
        required = demand / HIGH_USE - each * (current - hopeless)
        if required > 0:
            text = f"{demand:.0f} tokens/s are asked for and a replica makes {each:.0f}"
            answers.append(Advice(current + ceil(required / each), "Demand", text, demand, supply))
    if not seen.pending:
        if has_queue(fleet) and fleet.waiting > fleet.running:
            text = f"{fleet.waiting} requests wait and {fleet.running} run"
            answers.append(Advice(current + 1, "Queue", text, demand, supply))
        if policy.exhausted:
            text = "objectives are missed and the policy has nothing left to give"
            answers.append(Advice(current + 1, "Objectives", text, demand, supply))
    return answers


def _answer_down(
    owner: SmartSpec,
    scale: AutoscalingSpec,
    seen: Observation,
    policy: PolicyDecision,
    fleet: Fleet,
    current: int,
    demand: float,
    supply: Capacity | None,
) -> Advice:
    """Fewer replicas when every analyser agrees; each reason to stay is named."""
    slo = owner.spec.slo
    met = attainment(fleet, slo.ttft_seconds, slo.tpot_seconds)
    stays = [
        (bool(seen.missing), "MetricsMissing", f"{len(seen.missing)} replicas do not answer"),
        (not seen.serving, "Starting", "no replica is ready yet"),
        (seen.rolling, "Rolling", "replicas are being replaced"),
        (bool(seen.pending), "Pending", f"{len(seen.pending)} replicas are starting"),
        # A request that came during a step waits for the next one: a look at the wrong moment is no queue yet.
        (is_saturated(fleet), "Queue", f"{fleet.waiting} requests wait"),
        (met is not None and met < slo.percentile / 100, "Objectives", "objectives are missed"),
        (policy.state.ceiling is not None, "SpeculationCut", "speculation is cut for lack of memory"),
    ]
    for applies, reason, message in stays:
        if applies:
            return Advice(current, reason, message, demand, supply)
    if supply is None:
        fewer = scale.min_replicas if demand == 0 and fleet.running == 0 else current
    else:
        each = supply.tokens_per_second
        fewer = current - max(0, floor((each * current - demand / LOW_USE) / each))
    fewer = min(current, max(scale.min_replicas, fewer))
    if fewer == current:
        return Advice(current, "Steady", "demand and replicas agree", demand, supply)
    return Advice(fewer, "Spare", f"{demand:.0f} tokens/s pass on {fewer}", demand, supply)


def _demand(fleet: Fleet) -> float:
    """Tokens per second that are asked for, with those that serve what waits now.

    The window is half a minute old before it shows all of a step. What came in its last seconds shows it at once, and
    much that is chance besides; but chance alone does not keep all replicas busy, so it counts while they are.
    """
    output = fleet.lengths.output_tokens
    recent = fleet.recent_requests_per_second * output if is_saturated(fleet) else 0.0
    return max(fleet.demand_tokens_per_second, recent) + fleet.waiting * output / BACKLOG_SECONDS


def _supply(owner: SmartSpec, policy: PolicyDecision, fleet: Fleet) -> Capacity | None:
    """What one replica carries: by the model, and by measurement where that tells more."""
    shown = capacity_shown(fleet)
    if has_queue(fleet) and shown.tokens_per_second > 0:  # what they make now is what they can make
        return shown
    point = predicted(owner, policy.settings.priors, fleet, policy.settings)
    if point is None:
        return None
    measured = fleet.tokens_per_second / fleet.size if fleet.size else 0.0
    return shown if measured > point.tokens_per_second else Capacity(point.tokens_per_second, point.concurrency)


def _is_hopeless(owner: SmartSpec, replica: Replica, now: datetime, timing: Timing) -> bool:
    problem = replica.pod.problem
    if replica.load is not None:  # it answers: it loads, again after it ended, or is about to be called ready
        limit = timing.loading_timeout_seconds
    elif problem is None or problem.reason in OTHERS_WORK:
        limit = timing.pending_timeout_seconds
    else:
        limit = timing.problem_timeout_seconds
    template = owner.spec.template
    if replica.unschedulable and template.rollout.max_unavailable not in NOTHING:
        limit += template.termination_grace_period_seconds  # its predecessor may drain for so long, and has its place
    return now - replica.pod.since > timedelta(seconds=limit)


def _gave_up_lately(history: History, now: datetime, timing: Timing) -> bool:
    horizon = now - timedelta(seconds=timing.retry_seconds)
    return any(record.reason == GAVE_UP and moment(record.time) > horizon for record in history.scaling)


def _carried_out(
    owner: SmartSpec,
    seen: Observation,
    history: History,
    policy: PolicyDecision,
    current: int,
    advice: Advice,
    *,
    now: datetime,
) -> ScalingDecision:
    """The way from what is deployed to what is wanted, with a record when that is something new."""
    records = completed(owner, seen, policy, history.scaling, now)
    if advice.replicas != current:
        record = ScalingRecord(
            time=timestamp(now),
            from_replicas=current,
            to_replicas=advice.replicas,
            reason=advice.reason,
            message=advice.message,
            demand_tokens_per_second=None if advice.demand is None else round(advice.demand, 1),
            predicted_tokens_per_second=None if advice.supply is None else round(advice.supply.tokens_per_second, 1),
            predicted_concurrency=None if advice.supply is None else advice.supply.concurrency,
        )
        records = (*records, record)
    since = moment(records[-1].time) if records else None
    # So long those that leave get by themselves, and once more when they are told to end.
    patience = timedelta(seconds=owner.spec.template.termination_grace_period_seconds)
    stay = held(seen, advice.replicas, since=since, now=now, patience=patience)
    return ScalingDecision(
        desired=advice.replicas,
        replicas=replicas_now(seen, advice.replicas, stay),
        victims=tuple(replica.pod.name for replica in victims(seen, advice.replicas)),
        busy=tuple(replica.pod.name for replica in stay if is_busy(replica)),
        reason=advice.reason,
        message=advice.message,
        active=False,
        history=records[-HISTORY_LENGTH:],
    )
