"""How replicas are read and told: the seam to the pods' admin port."""

from typing import Protocol

from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings
from smartspec_operator.resource import SmartSpec
from smartspec_operator.world import Failure, Pod


class Replicas(Protocol):
    """The admin ports of the pods of a SmartSpec. A failure is a value, never an exception."""

    async def load(self, owner: SmartSpec, pod: Pod) -> LoadReport | Failure:
        """What the replica says of itself."""
        ...

    async def push(self, owner: SmartSpec, pod: Pod, settings: PolicySettings) -> Failure | None:
        """Hand the replica a policy; one that has a later generation keeps its own."""
        ...

    async def drain(self, owner: SmartSpec, pod: Pod) -> Failure | None:
        """Have the replica take no new requests and finish those it has; asking twice is asking once."""
        ...
