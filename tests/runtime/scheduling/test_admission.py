"""Room in the queue: bounded by requests and by tokens, and never all one tenant's."""

from hypothesis import given
from hypothesis import strategies as st

from smartspec.scheduling.admission import Backlog, QueueBounds, most_at_once


def fill(
    backlog: Backlog, tenant: str, bounds: QueueBounds, tokens: int = 1, most: int = 10_000, num_startable: int = 0
) -> int:
    """Add requests of *tenant* while there is room; how many."""
    for count in range(most):
        if not backlog.has_room(tenant, tokens, bounds, num_startable=num_startable):
            return count
        backlog.add(tenant, tokens)
    return most


def test_the_nameless_may_fill_the_queue() -> None:
    """With nobody else to leave room for, all of it is theirs, in requests or in tokens."""
    assert fill(Backlog(), "", QueueBounds(10, 1000)) == 10
    assert fill(Backlog(), "", QueueBounds(10, 1000), tokens=300) == 3


def test_an_empty_queue_takes_any_prompt() -> None:
    """One that is longer than the bound on tokens could else never be served."""
    assert fill(Backlog(), "", QueueBounds(10, 100), tokens=5000) == 1
    assert fill(Backlog(), "a", QueueBounds(10, 100), tokens=5000) == 1


def test_what_can_start_does_not_queue() -> None:
    """Room in the batch is room, whatever the bounds."""
    backlog = Backlog()
    assert backlog.has_room("", 5000, QueueBounds(0, 1), num_startable=1)
    backlog.add("", 5000)
    assert not backlog.has_room("", 1, QueueBounds(0, 1), num_startable=1)
    assert not Backlog().has_room("", 1, QueueBounds(0, 1), num_startable=0)


def test_a_tenant_alone_leaves_half() -> None:
    """However much it sends, in requests or in tokens."""
    assert fill(Backlog(), "a", QueueBounds(300, 10**6)) == 150
    assert fill(Backlog(), "a", QueueBounds(300, 1000), tokens=10) == 50


@given(st.sampled_from(["", "a"]), st.integers(0, 40), st.integers(1, 40))
def test_what_an_idle_server_takes_at_once_is_known_beforehand(tenant: str, queued: int, startable: int) -> None:
    """A request of more sequences is refused for good, so one of as many must not be: with a short queue, too."""
    most = fill(Backlog(), tenant, QueueBounds(queued, 10**6), num_startable=startable)
    assert most == most_at_once(tenant, num_startable=startable, max_queued=queued)


@given(
    events=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.booleans()), max_size=200),
    max_requests=st.integers(16, 60),
    max_tokens=st.integers(800, 2000),
)
def test_a_greedy_tenant_never_shuts_another_out(
    events: list[tuple[str, int, bool]], max_requests: int, max_tokens: int
) -> None:
    """Whatever three others did before, a fourth gets its first request in; bounds are kept, and counts come back to
    nothing."""
    backlog, bounds, inside = Backlog(), QueueBounds(max_requests, max_tokens), []
    for tenant, tokens, leaves in events:
        if leaves and inside:
            backlog.remove(*inside.pop())
        elif backlog.has_room(tenant, tokens, bounds, num_startable=0):
            backlog.add(tenant, tokens)
            inside.append((tenant, tokens))
        assert backlog.num_requests == len(inside) <= max_requests
        assert backlog.num_tokens == sum(tokens for _, tokens in inside)
        assert backlog.num_tokens <= max_tokens
        assert backlog.has_room("newcomer", 50, bounds, num_startable=0)
    while inside:
        backlog.remove(*inside.pop())
    assert (backlog.num_requests, backlog.num_tokens) == (0, 0)
    assert fill(backlog, "a", bounds) >= 1
    assert backlog.has_room("b", 1, bounds, num_startable=0)
