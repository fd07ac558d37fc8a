"""How long a resource that was refused is left alone: longer each time, until something changes that may help."""

from dataclasses import dataclass

from smartspec_operator.cluster import Cluster
from smartspec_operator.resource import InvalidSpecError, Manifest, parse

FIRST_SECONDS = 2.0
LONGEST_SECONDS = 240.0
"""A spec that is wrong stays so until it is edited, which is seen at once: this is only for what a newer API server, or
another admission policy, would take."""
ELSEWHERE_SECONDS = 30.0
"""The same where the cause lies with others, who tell nobody: a quota, a right, an object that has our child's name."""


@dataclass(frozen=True)
class Refusal:
    """That a resource was refused under these `circumstances`, `times` in a row, and until when that is believed.

    `until` is on a monotonic clock, in seconds.
    """

    reason: str
    circumstances: tuple[str, ...]
    times: int
    until: float
    message: str = ""


def refused(
    reason: str, circumstances: tuple[str, ...], before: Refusal | None, now: float, message: str = ""
) -> Refusal:
    """One more refusal after the one *before*; the first one where reason or circumstances have changed."""
    again = before is not None and (before.reason, before.circumstances) == (reason, circumstances)
    times = before.times + 1 if again and before is not None else 1
    longest = LONGEST_SECONDS if reason == "InvalidSpec" else ELSEWHERE_SECONDS
    return Refusal(reason, circumstances, times, now + min(longest, FIRST_SECONDS * 2.0 ** min(times - 1, 16)), message)


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
