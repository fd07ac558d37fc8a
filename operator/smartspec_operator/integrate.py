"""Optional children: looked at and made apart from the others, because a SmartSpec is served without them, too.

Nothing here raises what the API server or another owner refuses: it becomes a `Problem` of that kind.
"""

from collections.abc import Mapping, Sequence

from smartspec_operator.cluster import Cluster, NotOursError, controller_of
from smartspec_operator.kube import ApiError
from smartspec_operator.resource import INTEGRATIONS, Manifest, SmartSpec
from smartspec_operator.world import Problem


async def found(
    owner: SmartSpec, cluster: Cluster
) -> tuple[frozenset[str], tuple[Manifest, ...], Mapping[str, Problem]]:
    """The optional kinds that can be had, *owner*'s children of these, and what hides other kinds, by kind."""
    known: set[str] = set()
    children: list[Manifest] = []
    problems: dict[str, Problem] = {}
    for kind in INTEGRATIONS:
        try:
            if await cluster.knows(kind):
                children += await cluster.list(kind, owner.namespace, owner.labels)
                known.add(kind)
        except ApiError as error:
            problems[kind] = Problem("Refused", str(error))
    mine = tuple(live for live in children if controller_of(live) == owner.uid)
    return frozenset(known), mine, problems


async def make(wishes: Sequence[Manifest], there: Sequence[Manifest], cluster: Cluster) -> Mapping[str, Problem]:
    """Make *wishes*, and remove those *there* that are none of them; what stood in the way, by kind."""
    problems: dict[str, Problem] = {}
    for manifest in wishes:
        try:
            await cluster.apply(manifest)
        except (ApiError, NotOursError) as error:
            problems[manifest["kind"]] = _refusal(error)
    wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in wishes}
    for live in there:
        if (live["kind"], live["metadata"]["name"]) not in wanted:
            try:
                await cluster.delete(live)
            except ApiError as error:
                problems[live["kind"]] = _refusal(error)
    return problems


def _refusal(error: Exception) -> Problem:
    return Problem("Conflict" if isinstance(error, NotOursError) else "Refused", str(error))
