"""Who leaves the queue next: tenants share the tokens served, and each tenant's own requests go by priority, then age.

Each tenant has a counter of what it was served; the next request is the most urgent one of the tenant served least. A
tenant that comes back is lifted to those who wait, so that nobody saves up while away, and nobody owes for what was
served while nobody else wanted it (source: arXiv 2401.00588, the virtual token counter; start-time fair queueing, with
what was really served in place of what might be). Two tenants that both have requests waiting never drift apart by
more than a request and a batch are worth, so no number of requests of one keeps another waiting for long.
"""

from bisect import insort
from collections.abc import Iterator

from smartspec.scheduling.request import Request

PROMPT_TOKEN = 1.0
GENERATED_TOKEN = 2.0
"""What a token counts for: a generated one takes a row in a step of its own (source: ibid., section 5)."""

_Place = tuple[int, int, Request]


class WaitingQueue:
    """Waiting requests. Those that were preempted come first, whoever's: they were chosen before, and paid for.

    With a single tenant this is first come, first served among equal priorities. Priorities are a tenant's own: a
    smaller number goes before the tenant's other requests, and never before another tenant's turn.
    """

    def __init__(self) -> None:
        self._preempted: list[_Place] = []
        self._waiting: dict[str, list[_Place]] = {}
        self._served: dict[str, float] = {}
        self._last_served = 0.0
        self._num_seen = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Request]:
        """All of them, in no order that means anything."""
        for places in (self._preempted, *self._waiting.values()):
            yield from (request for _, _, request in places)

    @property
    def head(self) -> Request:
        """Who is next; raises ValueError when nobody waits."""
        places = self._preempted or self._waiting[self._next_tenant()]
        return places[0][-1]

    def push(self, request: Request) -> None:
        """Queue a new request."""
        request.queue_number = self._num_seen
        self._num_seen += 1
        tenant = request.tenant
        if tenant not in self._waiting:
            self._waiting[tenant] = []
            others = [self._served[other] for other in self._waiting if other != tenant]
            floor = min(others) if others else self._last_served
            self._served[tenant] = max(self._served.get(tenant, 0.0), floor)
        insort(self._waiting[tenant], (request.priority, request.queue_number, request))
        self._length += 1

    def push_preempted(self, request: Request) -> None:
        """Take back a request that had left."""
        insort(self._preempted, (request.precedence, request.queue_number, request))
        self._length += 1

    def pop(self) -> Request:
        """Remove and return `head`; raises ValueError when nobody waits."""
        request = self.head
        if not self._preempted:
            self._last_served = max(self._last_served, self._served[request.tenant])
        self._take_out(self._preempted or self._waiting[request.tenant], request)
        return request

    def remove(self, request: Request) -> None:
        """Take out a request that waits; raises ValueError when it does not."""
        is_preempted = any(request is other for _, _, other in self._preempted)
        self._take_out(self._preempted if is_preempted else self._waiting.get(request.tenant, []), request)

    def charge(self, request: Request, *, prompt_tokens: int = 0, generated_tokens: int = 0) -> None:
        """Count what was served of *request*."""
        cost = PROMPT_TOKEN * prompt_tokens + GENERATED_TOKEN * generated_tokens
        self._served[request.tenant] = self._served.get(request.tenant, self._last_served) + cost

    def forget_the_past(self) -> None:
        """Begin anew, as when nothing runs or waits any more: what was served then was in nobody's way."""
        self._served.clear()
        self._last_served = 0.0

    def _next_tenant(self) -> str:
        return min(self._waiting, key=lambda tenant: (self._served[tenant], self._waiting[tenant][0][1]))

    def _take_out(self, places: list[_Place], request: Request) -> None:
        precedes = request.precedence if places is self._preempted else request.priority
        places.remove((precedes, request.queue_number, request))
        self._length -= 1
        if places is not self._preempted and not places:
            del self._waiting[request.tenant]
