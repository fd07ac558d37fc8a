"""How long what does not help is left alone, longer each time: a resource that was refused, a child that others change
back again and again."""

from dataclasses import dataclass

from smartspec_operator.cluster import Cluster
from smartspec_operator.resource import InvalidSpecError, Manifest, parse

FIRST_SECONDS = 2.0
LONGEST_SECONDS = 240.0
"""A spec that is wrong stays so until it is edited, which is seen at once: this is only for what a newer API server, or
another admission policy, would take."""
ELSEWHERE_SECONDS = 30.0
"""The same where the cause lies with others, who tell nobody: a quota, a right, an object that has our child's name."""

CALM_SECONDS = 600.0
"""A child that nobody has touched for so long is repaired at once again."""
CONTESTED_TIMES = 3
"""From so many repairs of the same on, it is somebody's business, and a Warning."""
AT_ONCE = frozenset({"spec.replicas"})
"""What is never left to others: the number of replicas is a decision, and a wrong one costs requests."""


@dataclass(frozen=True)
class Refusal:
    """That a resource was refused under these `circumstances`, `times` in a row, and until when that is believed.

    `until` is on a monotonic clock, in seconds.
    """

    reason: str
    circumstances: tuple[str, ...]
    times: int
    until: float


def refused(reason: str, circumstances: tuple[str, ...], before: Refusal | None, now: float) -> Refusal:
    """One more refusal after the one *before*; the first one where reason or circumstances have changed."""
    again = before is not None and (before.reason, before.circumstances) == (reason, circumstances)
    times = before.times + 1 if again and before is not None else 1
    longest = LONGEST_SECONDS if reason == "InvalidSpec" else ELSEWHERE_SECONDS
    return Refusal(reason, circumstances, times, now + min(longest, FIRST_SECONDS * 2.0 ** min(times - 1, 16)))


@dataclass(frozen=True)
class Contest:
    """That others changed the same `paths` of a child, repaired `times` in a row, and until when they are let be.

    `repaired` and `until` are on a monotonic clock, in seconds. `left` is the digest of the object as it is let be.
    """

    paths: frozenset[str]
    times: int
    repaired: float
    until: float
    left: bytes = b""

    @property
    def wait_seconds(self) -> float:
        """How long they are let be."""
        return self.until - self.repaired

    def covers(self, paths: frozenset[str]) -> bool:
        """Whether a change of *paths* is more of the same; what else changes is repaired at once."""
        return bool(paths) and paths <= self.paths - AT_ONCE


def contested(paths: frozenset[str], before: Contest | None, now: float) -> Contest:
    """One more repair of *paths* after the one *before*; the first one where it is another's, or long ago."""
    again = before is not None and bool(paths & before.paths) and now - before.until < CALM_SECONDS
    times = before.times + 1 if again and before is not None else 1
    return Contest(paths, times, now, now + min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(times - 1, 16)))


async def circumstances(body: Manifest, cluster: Cluster) -> tuple[str, ...]:
    """What a refusal of the resource *body* depends on, as versions: its own, and those of what it has and refers to.

    Asks the API server for no more than a tick asks for anyway. Raises `ApiError` where it does not answer.
    """
    metadata = body["metadata"]
    found = [f"{metadata['uid']}/{metadata['generation']}"]
    try:
        owner = parse(body)
    except InvalidSpecError:  # then it depends on nothing else
        return tuple(found)
    for kind in ("ConfigMap", "Deployment", "PersistentVolumeClaim", "Service"):
        found += sorted(_version(child) for child in await cluster.list(kind, owner.namespace, owner.labels))
    if owner.spec.server.admin_key_secret_ref is not None:
        secret = await cluster.get("Secret", owner.namespace, owner.admin_key.name)
        found.append("" if secret is None else _version(secret))
    return tuple(found)


def _version(live: Manifest) -> str:
    """What changes with the object, but not with the status of one whose spec is counted."""
    metadata = live["metadata"]
    return f"{metadata.get('uid')}/{metadata.get('generation') or metadata.get('resourceVersion')}"
