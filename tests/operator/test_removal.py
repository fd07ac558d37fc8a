"""Who leaves, and how the Deployment follows: drained first, and never more than was decided."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from fleets import NOW, load, pending, replica, seen
from smartspec_operator.removal import replicas_now, victims
from smartspec_operator.world import Observation, Replica


def busy(name: str, running: int) -> Replica:
    """A replica with so many requests."""
    return replica(name, load(num_requests_running=running))


def draining(name: str, *, ready: bool) -> Replica:
    """A replica that drains."""
    return replica(name, load(state="draining", num_requests_running=1), ready=ready)


def now_for(world: Observation, wanted: int, *, age: float = 1.0) -> int:
    """What the Deployment is told, *age* seconds after the decision."""
    return replicas_now(world, wanted, since=NOW - timedelta(seconds=age), now=NOW, timeout_seconds=300.0)


def test_the_least_busy_leave_first() -> None:
    """Of three replicas the one with the fewest requests is drained, and stays deployed while it is ready."""
    world = seen(busy("a", 5), busy("b", 1), busy("c", 3))
    assert [victim.pod.name for victim in victims(world, 2)] == ["b"]
    assert now_for(world, 2) == 3


def test_the_deployment_follows_when_the_victim_is_unready() -> None:
    """The number falls once the ReplicaSet controller would take the drained pod, and no other."""
    world = seen(busy("a", 5), draining("b", ready=False), busy("c", 3))
    assert now_for(world, 2) == 2
    assert [victim.pod.name for victim in victims(world, 2)] == ["b"]


def test_a_drain_that_never_ends_is_cut_short() -> None:
    """After the timeout the number falls regardless: the pod's grace period takes over."""
    world = seen(busy("a", 5), draining("b", ready=True))
    assert now_for(world, 1, age=10) == 2
    assert now_for(world, 1, age=301) == 1


def test_pods_that_are_not_ready_go_without_a_drain() -> None:
    """A pending replica is what the ReplicaSet controller removes first: no serving one needs to drain."""
    world = seen(busy("a", 0), pending("b"))
    assert victims(world, 1) == ()
    assert now_for(world, 1) == 1


def test_a_replica_that_is_wanted_again_is_replaced_when_drained() -> None:
    """A drained replica takes no requests any more: it goes, and then another comes."""
    drained = seen(busy("a", 9), draining("b", ready=False))
    assert now_for(drained, 2) == 1
    lagging = seen(busy("a", 9), draining("b", ready=False), deployed=1)
    assert now_for(lagging, 2) == 1, "the Deployment was lowered and its pod not yet gone: not lowered again"
    gone = seen(busy("a", 9), deployed=1)
    assert now_for(gone, 2) == 2


def test_a_rollout_drains_nobody() -> None:
    """While pods are replaced there are more than wanted: the Deployment takes the right ones away itself."""
    world = seen(busy("old", 2), busy("new", 0), deployed=1, rolling=True)
    assert victims(world, 1) == ()
    assert now_for(world, 1) == 1
    shrinking = seen(busy("old", 2), busy("new", 0), busy("newer", 0), deployed=2, rolling=True)
    assert victims(shrinking, 1) == ()


def test_a_replica_of_which_nothing_is_known_is_the_last_to_leave() -> None:
    """Without a report a replica may be full of requests."""
    world = seen(replica("a"), busy("b", 7))
    assert [victim.pod.name for victim in victims(world, 1)] == ["b"]


@given(st.lists(st.sampled_from(["busy", "idle", "drained", "drains", "pending"]), min_size=1, max_size=6), st.data())
def test_ready_replicas_never_fall_below_what_is_wanted(kinds: list[str], data: st.DataObject) -> None:
    """However the fleet looks, the number told leaves at least the wanted replicas once unready ones are removed."""
    made = {
        "busy": lambda name: busy(name, 9),
        "idle": lambda name: busy(name, 0),
        "drained": lambda name: draining(name, ready=False),
        "drains": lambda name: draining(name, ready=True),
        "pending": pending,
    }
    world = seen(*(made[kind](f"r{index}") for index, kind in enumerate(kinds)))
    wanted = data.draw(st.integers(0, len(kinds)))
    told = now_for(world, wanted)
    serving, ready = len(world.serving), sum(r.pod.ready for r in world.replicas)
    assert told <= max(wanted, len(kinds))
    if wanted < len(kinds):
        # The controller removes unready pods first, so `told` ready ones survive, drains among them at worst.
        survivors = min(told, ready)
        assert survivors - sum(r.pod.ready for r in world.draining) >= min(wanted, serving)
