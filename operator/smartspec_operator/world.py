"""The world as the decisions see it, and what they decide: frozen values, from a live cluster or from a recording."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings
from smartspec_operator.reported import ScalingRecord
from smartspec_operator.resource import Manifest

T = TypeVar("T")
UNSCHEDULABLE = "Unschedulable"


@dataclass(frozen=True)
class Problem:
    """Why a pod does not get ready, in Kubernetes' own words (CrashLoopBackOff, Unschedulable, ...)."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Pod:
    """One pod of a SmartSpec. `admin_url` is where its admin port answers; None before it has an address, `node` before
    it has a place.

    `since` is when it was made or last became ready or unready: how long a pending one has been waited for.
    `admin_key_version` is the one that it was made for.
    """

    name: str
    since: datetime
    ready: bool = False
    terminating: bool = False
    admin_url: str | None = None
    problem: Problem | None = None
    node: str | None = None
    admin_key_version: str | None = None


@dataclass(frozen=True)
class Failure:
    """A replica did not answer, or answered nonsense; a value, because one broken pod never blocks the rest.

    `is_key_refused` says that it answered, and wants another admin key; `is_late` that it did not answer in time.
    """

    message: str
    is_key_refused: bool = False
    is_late: bool = False


@dataclass(frozen=True)
class Replica:
    """A pod together with what it said of itself: a report, a failure, or neither when it was not asked."""

    pod: Pod
    load: LoadReport | None = None
    failure: Failure | None = None

    @property
    def draining(self) -> bool:
        """Whether it finishes what it has and takes nothing new."""
        return self.load is not None and self.load.state == "draining"

    @property
    def unschedulable(self) -> bool:
        """Whether no node has room for it."""
        return self.pod.problem is not None and self.pod.problem.reason == UNSCHEDULABLE

    @property
    def serving(self) -> bool:
        """Whether it is ready, and neither drains nor terminates."""
        return self.pod.ready and not self.draining and not self.pod.terminating


@dataclass(frozen=True)
class Recommendation:
    """So many replicas were recommended from `since` until the next recommendation in the list."""

    since: datetime
    replicas: int


@dataclass(frozen=True)
class TuningState:
    """What stage one must remember between two decisions; kept in an annotation of the policy ConfigMap.

    `changed` is when the settings last changed: what was measured before tells nothing about them. `tpot_factor` is
    the share of the TPOT objective that replicas aim at, lower where predictions proved too hopeful. `ceiling` is what
    memory pressure has cut speculation to, in tokens; None where it has not.
    """

    changed: datetime | None = None
    tpot_factor: float = 1.0
    ceiling: int | None = None


@dataclass(frozen=True)
class Decided:
    """The decision that a Deployment was written by, in an annotation of it: the status is written later, or never.

    `record` is the last one there is; both are None where nothing is known.
    """

    replicas: int | None = None
    record: ScalingRecord | None = None


@dataclass(frozen=True)
class History:
    """What survives a restart of the operator: read back from status and annotations.

    `replicas` is how many were decided last; None where only `scaling` may tell.
    """

    settings: PolicySettings | None = None
    tuning: TuningState = TuningState()
    recommendations: tuple[Recommendation, ...] = ()
    replicas: int | None = None
    scaling: tuple[ScalingRecord, ...] = ()


@dataclass(frozen=True)
class Observation:
    """Everything one reconcile knows.

    `replicas` are all pods, terminating ones too, but not those that have ended and only lie there;
    `deployed_replicas` is what the Deployment asks for now (None: there is none), `model_source` the model it was made
    for, `rolling` whether it replaces pods, `problem` why pods cannot be made at all, or what ended one that is not
    replaced yet. `makes_room` is whether a replica that ends, within its time, has a place on a node yet.
    `shared_cache` is False where the cache's claim can be used on one node only. `admin_key_version` names the Secret
    as it is and says nothing of its content; None when there is no such key; `is_key_lost` where somebody
    took the generated one out of its Secret. `deployed_key_version` is the one that pods are made for, None where that
    is none or another Secret's. `integrations` are children of optional kinds, `known_kinds` those of these kinds that
    the cluster has, and `integration_problems` what stands in the way of one, by kind.
    """

    replicas: tuple[Replica, ...] = ()
    service: Manifest | None = None
    deployed_replicas: int | None = None
    rolling: bool = False
    makes_room: bool = False
    problem: Problem | None = None
    shared_cache: bool = True
    admin_key_version: str | None = None
    is_key_lost: bool = False
    deployed_key_version: str | None = None
    model_source: str | None = None
    integrations: tuple[Manifest, ...] = ()
    known_kinds: frozenset[str] = frozenset()
    integration_problems: Mapping[str, Problem] = field(default_factory=dict)
    history: History = History()

    @property
    def serving(self) -> tuple[Replica, ...]:
        """Replicas that take new requests."""
        return tuple(replica for replica in self.replicas if replica.serving)

    @property
    def loads(self) -> tuple[LoadReport, ...]:
        """The reports of serving replicas that answered."""
        return tuple(replica.load for replica in self.serving if replica.load is not None)

    @property
    def pending(self) -> tuple[Replica, ...]:
        """Replicas that are not ready yet, or not any more, and are not on their way out."""
        return tuple(r for r in self.replicas if not (r.pod.ready or r.draining or r.pod.terminating))

    @property
    def draining(self) -> tuple[Replica, ...]:
        """Replicas that finish what they have; not those already terminating."""
        return tuple(replica for replica in self.replicas if replica.draining and not replica.pod.terminating)

    @property
    def is_key_outdated(self) -> bool:
        """Whether a pod of the newest template was started with another admin key than that of now: it refuses this."""
        return any(
            replica.failure is not None
            and replica.failure.is_key_refused
            and replica.pod.admin_key_version == self.deployed_key_version
            for replica in self.replicas
        )

    @property
    def missing(self) -> tuple[Replica, ...]:
        """Serving replicas of which nothing is known: never the same as replicas without load."""
        return tuple(replica for replica in self.serving if replica.load is None)


@dataclass(frozen=True)
class PolicyDecision:
    """Stage one's answer. An unchanged decision carries the same generation, state and reason.

    `exhausted` says that the objectives are missed and no setting is left that would help: only replicas would.
    """

    settings: PolicySettings
    state: TuningState
    exhausted: bool = False


@dataclass(frozen=True)
class ScalingDecision:
    """Stage two's answer.

    `desired` is how many replicas there shall be, `replicas` what the Deployment is told now: more than `desired`
    while `victims` finish their requests: those in `busy` still do, and go after all others. `history` gains a record
    when `desired` changes; `active` is whether demand decides, rather than `spec.replicas`.
    """

    desired: int
    replicas: int
    victims: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""
    active: bool = True
    recommendations: tuple[Recommendation, ...] = ()
    history: tuple[ScalingRecord, ...] = ()


@dataclass(frozen=True)
class Timing:
    """How often the stages run and how long they wait, in seconds."""

    tick_seconds: float = 2.0
    tuning_seconds: float = 5.0
    scaling_seconds: float = 15.0
    pending_timeout_seconds: float = 900.0
    problem_timeout_seconds: float = 120.0
    loading_timeout_seconds: float = 3600.0
    """How long a pod may stay pending, or without a place (a new node with a GPU takes ten minutes), how long one that
    names a problem of its own, and how long one that says that it loads (weights can be hundreds of gigabytes), before
    it is given up."""
    retry_seconds: float = 300.0


@dataclass(frozen=True)
class Due:
    """Which stages this reconcile runs; one that is not due keeps its decision. Scaling is due only with tuning."""

    tuning: bool = True
    scaling: bool = True


def encode(state: Any) -> str:
    """A small state as the text of an annotation."""
    return msgspec.json.encode(state).decode()


def decode(text: str | None, kind: type[T], empty: T) -> T:
    """The inverse of `encode`; *empty* for no text, and for what another version wrote."""
    try:
        return empty if text is None else msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError:
        return empty


def timestamp(moment: datetime) -> str:
    """A moment as the API writes it, in whole seconds of UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """The inverse of `timestamp`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
