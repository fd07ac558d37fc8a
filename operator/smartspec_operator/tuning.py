"""Stage one: change the policy of the running replicas, which takes effect in seconds and costs nothing.

The engine chooses its speculation step by step and knows its own time model. What it cannot know comes from here: how
much of the TPOT objective its predictions really keep, measured over all replicas; how many requests the fleet's model
lets run and queue; when memory pressure calls for shorter proposals. An unchanged decision keeps its generation.
"""

from datetime import datetime, timedelta
from math import floor

import msgspec

from smartspec.policy.capacity import OperatingPoint
from smartspec.policy.settings import PolicySettings, Priors
from smartspec_operator.capacity import predicted
from smartspec_operator.fleet import Fleet, differ, merged_priors, together
from smartspec_operator.resource import SmartSpec
from smartspec_operator.world import History, Observation, PolicyDecision, TuningState

AIM = 1.0
"""The share of the TPOT objective that replicas aim at first; they keep a margin of their own below it."""
LEAST_AIM = 0.3
"""Below this share slow predictions are no longer the reason: only fewer requests per replica would help."""
MIN_SAMPLES = 20
HIGH_KV_USAGE, LOW_KV_USAGE = 0.92, 0.75
CALM_SECONDS = 30.0
PRESSED_SECONDS = 10.0
LIMITS = ("max_running_requests", "max_queued_requests")
ADMISSION_STEP = 0.25
"""A limit on admission moves only when it would move by this share: smaller moves are noise."""


def decide(owner: SmartSpec, seen: Observation, history: History, *, now: datetime) -> PolicyDecision:
    """The policy for every replica, from what all of them report."""
    fleet, old, slo = together(seen.loads), history.settings, owner.spec.slo
    factor, exhausted = _aim(owner, _measured(seen, history, now), history.tuning.tpot_factor)
    target = round(slo.tpot_seconds * factor, 6) if slo.tpot_seconds is not None else None
    priors = _priors(seen, old)
    ceiling = _ceiling(owner, fleet, history, now)
    open_wide = PolicySettings(
        policy=owner.policy_name,
        max_speculative_tokens=ceiling or owner.spec.speculation.max_tokens,
        tpot_target_seconds=target,
    )
    carries = predicted(owner, priors, fleet, open_wide)
    wanted = msgspec.structs.replace(
        open_wide,
        max_running_requests=_running(owner, carries, old),
        max_queued_requests=_queued(owner, seen, carries, old),
    )
    reported = owner.status.policy.generation if owner.status.policy is not None else 0
    settings = _numbered(wanted, old, max([reported, *(load.generation for load in seen.loads)]))
    changed = now if old is None or settings.generation != old.generation else history.tuning.changed
    return PolicyDecision(
        msgspec.structs.replace(settings, priors=priors),
        TuningState(changed=changed, tpot_factor=factor, ceiling=ceiling),
        exhausted=exhausted,
    )


def keep(owner: SmartSpec, seen: Observation, history: History, *, now: datetime) -> PolicyDecision:
    """The decision in force, between two decisions; the first one where there is none."""
    if history.settings is None:
        return decide(owner, seen, history, now=now)
    return PolicyDecision(history.settings, history.tuning)


def _measured(seen: Observation, history: History, now: datetime) -> Fleet | None:
    """What was measured under the settings in force; None while windows still hold what was before them."""
    settings, changed = history.settings, history.tuning.changed
    if settings is None or changed is None:
        return None
    fresh = [
        load
        for load in seen.loads
        if load.generation == settings.generation and now - changed >= timedelta(seconds=load.window_seconds)
    ]
    return together(fresh) if fresh else None


def _aim(owner: SmartSpec, measured: Fleet | None, factor: float) -> tuple[float, bool]:
    """The share of the TPOT objective to aim at, and whether the objectives are missed with nothing left to give."""
    slo, factor = owner.spec.slo, min(factor, AIM)
    if measured is None:
        return factor, False
    wanted = slo.percentile / 100
    late = measured.ttft.share_within(slo.ttft_seconds) if slo.ttft_seconds is not None else None
    # A late first token with requests waiting is a matter of capacity, which no setting adds.
    exhausted = late is not None and measured.ttft.total >= MIN_SAMPLES and late < wanted and measured.waiting > 0
    share = measured.tpot.share_within(slo.tpot_seconds) if slo.tpot_seconds is not None else None
    if slo.tpot_seconds is None or share is None or measured.tpot.total < MIN_SAMPLES:
        return factor, exhausted
    slowest = measured.tpot.quantile(wanted) or slo.tpot_seconds
    if share < wanted:
        if factor <= LEAST_AIM:
            # More replicas help only where requests share one.
            return factor, exhausted or measured.running > measured.size
        return round(max(LEAST_AIM, factor * min(0.95, max(0.6, slo.tpot_seconds / slowest))), 3), exhausted
    if measured.waiting > 0 and slowest < 0.8 * slo.tpot_seconds:
        return round(min(AIM, factor * 1.1), 3), exhausted
    return factor, exhausted


def _ceiling(owner: SmartSpec, fleet: Fleet, history: History, now: datetime) -> int | None:
    """To how many tokens speculation is cut: halved while KV memory runs short, doubled back when it is calm."""
    most, cut, changed = owner.spec.speculation.max_tokens, history.tuning.ceiling, history.tuning.changed
    if owner.policy_name in ("fixed", "off"):
        return None
    ceiling, age = min(most, cut or most), (now - changed).total_seconds() if changed is not None else 0.0
    if fleet.kv_cache_usage > HIGH_KV_USAGE and age >= PRESSED_SECONDS:
        # Slots for speculation are blocks taken from requests: shorter proposals before preemption.
        ceiling = max(1, ceiling // 2)
    elif fleet.kv_cache_usage < LOW_KV_USAGE and age >= CALM_SECONDS:
        ceiling = min(most, ceiling * 2)
    return ceiling if ceiling < most else None


def _running(owner: SmartSpec, carries: OperatingPoint | None, old: PolicySettings | None) -> int | None:
    """How many requests may run on a replica: what the fleet's model carries within the TPOT target."""
    if owner.spec.slo.tpot_seconds is None:
        return None
    if carries is None:
        return old.max_running_requests if old is not None else None
    # A bound out of reach for a single request is no reason to serve one at a time: that bound the engine knows itself.
    wanted = carries.concurrency if carries.meets_targets else None
    before = old.max_running_requests if old is not None else None
    return _settled(wanted, before, owner.spec.server.max_num_seqs)


def _queued(
    owner: SmartSpec, seen: Observation, carries: OperatingPoint | None, old: PolicySettings | None
) -> int | None:
    """How many requests may wait so that the last of them still gets its first token in time.

    Only where no replica can be added: before that, a request that waits is better than one turned away.
    """
    slo, scale = owner.spec.slo, owner.spec.autoscaling
    if slo.ttft_seconds is None or (scale is not None and (seen.deployed_replicas or 0) < scale.max_replicas):
        return None
    before = old.max_queued_requests if old is not None else None
    if carries is None:
        return before
    return _settled(
        max(1, floor(slo.ttft_seconds * carries.requests_per_second)), before, owner.spec.server.max_queued_requests
    )


def _settled(wanted: int | None, old: int | None, most: int) -> int | None:
    """*wanted*, or *old* while it is near enough; None where it would not tighten *most*, which is what None means."""
    if wanted is None:
        return None
    before = most if old is None else old
    if abs(min(wanted, most) - before) <= ADMISSION_STEP * before:
        return old
    return wanted if wanted < most else None


def _priors(seen: Observation, old: PolicySettings | None) -> Priors | None:
    """What the fleet has learned; what was known, while that is as good."""
    known = old.priors if old is not None else None
    learned = merged_priors(load.priors for load in seen.loads)
    return learned if differ(known, learned) else known


def _numbered(wanted: PolicySettings, old: PolicySettings | None, latest: int) -> PolicySettings:
    """*wanted* under the generation in force when nothing changed, else under a new one with the reason for it.

    A replica that echoes a later generation was told by someone else, or the ConfigMap was lost: numbering goes on
    from *latest*, or replicas would refuse what is older.
    """
    if old is not None and old.generation >= latest and _same(wanted, old):
        return old
    newest = max(old.generation if old is not None else 0, latest) + 1
    return msgspec.structs.replace(wanted, generation=newest, reason=_reason(wanted, old))


def _same(wanted: PolicySettings, old: PolicySettings) -> bool:
    return wanted == msgspec.structs.replace(old, generation=0, priors=None, reason="")


def _reason(wanted: PolicySettings, old: PolicySettings | None) -> str:
    """What changed, for people."""
    if old is None:
        return "from the spec"
    changes = [
        f"{name} {'none' if before is None else before} -> {'none' if after is None else after}"
        for name in ("policy", "max_speculative_tokens", "tpot_target_seconds", *LIMITS)
        if (before := getattr(old, name)) != (after := getattr(wanted, name))
    ]
    return ", ".join(changes) or "renumbered after a foreign policy"
