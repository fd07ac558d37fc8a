"""Who leaves, and how the Deployment follows: drained first, and never more than was decided."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleets import NOW, later, load, pending, replica, seen
from smartspec_operator.removal import held, is_busy, replicas_now, victims
from smartspec_operator.render import DELETE_FIRST, DELETE_LAST
from smartspec_operator.world import Observation, Replica


def busy(name: str, running: int) -> Replica:
    """A replica with so many requests."""
    return replica(name, load(num_requests_running=running))


def draining(name: str, *, ready: bool, running: int = 0, age: float = 30.0) -> Replica:
    """A replica that drains, with so many requests, as ready as it is for *age* seconds."""
    return replica(name, load(state="draining", num_requests_running=running), ready=ready, since=later(-age))


def staying(world: Observation, wanted: int, *, age: float = 1.0) -> tuple[Replica, ...]:
    """Who stays for now, *age* seconds after the decision."""
    return held(world, wanted, since=later(-age), now=NOW, patience=timedelta(seconds=300))


def now_for(world: Observation, wanted: int, *, age: float = 1.0) -> int:
    """What the Deployment is told, *age* seconds after the decision."""
    return replicas_now(world, wanted, staying(world, wanted, age=age))


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


@pytest.mark.parametrize("wait", [{"num_requests_running": 1}, {"num_requests_waiting": 1}])
def test_the_deployment_waits_for_the_last_answer(wait: dict[str, int]) -> None:
    """A victim that is unready and still works stays as long as a pod may take to go, and no longer."""
    for age, told in ((200, 3), (301, 2)):
        works = replica("b", load(state="draining", **wait), ready=False, since=later(-age))
        assert now_for(seen(busy("a", 5), works, busy("c", 3)), 2, age=age + 10) == told


def test_a_replica_that_works_is_not_replaced_yet() -> None:
    """Wanted again while it drained: the other comes when it has answered, for until then there is no place."""
    assert now_for(seen(busy("a", 9), draining("b", ready=False, running=1)), 2) == 2
    assert now_for(seen(busy("a", 9), draining("b", ready=False, running=1, age=301)), 2) == 1


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


MADE: dict[str, Callable[[str], Replica]] = {
    "busy": lambda name: busy(name, 9),
    "idle": lambda name: busy(name, 0),
    "drained": lambda name: draining(name, ready=False),
    "works": lambda name: draining(name, ready=False, running=1),
    "drains": lambda name: draining(name, ready=True, running=1),
    "pending": pending,
}
KINDS = st.lists(st.sampled_from(sorted(MADE)), min_size=1, max_size=6)


@given(KINDS, st.data())
def test_a_replica_that_works_is_never_taken(kinds: list[str], data: st.DataObject) -> None:
    """In the order of a ReplicaSet (unready before ready, then by the cost of deletion) it takes only who may go."""
    world = seen(*(MADE[kind](f"r{index}") for index, kind in enumerate(kinds)))
    wanted = data.draw(st.integers(0, len(kinds)))
    stay, leave = staying(world, wanted), victims(world, wanted)

    def order(found: Replica) -> tuple[bool, int]:
        cost = int(DELETE_LAST if found in stay and is_busy(found) else DELETE_FIRST) if found in leave else 0
        return found.pod.ready, cost

    taken = sorted(world.replicas, key=order)[: len(kinds) - replicas_now(world, wanted, stay)]
    assert not [found for found in taken if is_busy(found)]


@given(KINDS, st.data())
def test_ready_replicas_never_fall_below_what_is_wanted(kinds: list[str], data: st.DataObject) -> None:
    """However the fleet looks, the number told leaves at least the wanted replicas once unready ones are removed."""
    world = seen(*(MADE[kind](f"r{index}") for index, kind in enumerate(kinds)))
    wanted = data.draw(st.integers(0, len(kinds)))
    told = now_for(world, wanted)
    serving, ready = len(world.serving), sum(r.pod.ready for r in world.replicas)
    assert told <= max(wanted, len(kinds))
    if wanted < len(kinds):
        # The controller removes unready pods first, so `told` ready ones survive, drains among them at worst.
        survivors = min(told, ready)
        assert survivors - sum(r.pod.ready for r in world.draining) >= min(wanted, serving)
