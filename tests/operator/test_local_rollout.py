"""What a Deployment's controller decides, as arithmetic."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from smartspec_operator.local_rollout import PodState, Rollout, plan


def pod(name: str, revision: str = "new", *, ready: bool = True, created: float = 0.0, cost: int = 0) -> PodState:
    """A pod of the current template that serves, unless said otherwise."""
    return PodState(name, revision, ready, created, cost)


def test_missing_pods_are_started_at_once() -> None:
    """Nothing there: start them all."""
    assert plan([], replicas=2, revision="new") == Rollout(start=2)


def test_pods_of_another_deployments_wish_are_left_alone_at_rest() -> None:
    """As many as wished, all current: no move."""
    assert plan([pod("a"), pod("b")], replicas=2, revision="new") == Rollout()


def test_scaling_down_ends_the_pod_that_does_not_serve() -> None:
    """The drained victim is unready, and so it is the one that goes, though others are younger and cheaper."""
    pods = [pod("old", created=1), pod("drained", created=2, ready=False), pod("young", created=3, cost=-5)]
    assert plan(pods, replicas=2, revision="new") == Rollout(end=("drained",))


def test_scaling_down_ends_the_cheapest_then_the_youngest() -> None:
    """Between pods that serve, `pod-deletion-cost` decides, then youth."""
    pods = [pod("a", created=1, cost=-1000), pod("b", created=2), pod("c", created=3)]
    assert plan(pods, replicas=1, revision="new") == Rollout(end=("a", "c"))


def test_a_new_template_starts_one_pod_before_it_ends_any() -> None:
    """While the new pod loads, the old ones serve on."""
    old = [pod("a", "old"), pod("b", "old")]
    assert plan(old, replicas=2, revision="new") == Rollout(start=1)
    loading = pod("n", ready=False)
    assert plan([*old, loading], replicas=2, revision="new") == Rollout()
    assert plan([*old, replace(loading, ready=True)], replicas=2, revision="new") == Rollout(start=1, end=("a",))


def test_old_pods_that_never_served_go_at_once() -> None:
    """A template that could not start is corrected without waiting for it."""
    assert plan([pod("a", "old", ready=False)], replicas=1, revision="new") == Rollout(start=1, end=("a",))


pods = st.lists(
    st.builds(
        PodState,
        name=st.uuids().map(str),
        revision=st.sampled_from(["new", "old"]),
        ready=st.booleans(),
        created=st.floats(0, 10),
        deletion_cost=st.integers(-2, 2),
        terminating=st.booleans(),
    ),
    max_size=8,
)


@given(pods, st.integers(0, 4))
def test_no_move_takes_serving_pods_below_what_is_wished(pods: list[PodState], replicas: int) -> None:
    """Whatever the state: never fewer serving pods than before or than wished, never more than wished plus one."""
    move = plan(pods, replicas=replicas, revision="new")
    living = [pod for pod in pods if not pod.terminating]
    kept = [pod for pod in living if pod.name not in move.end]
    assert sum(pod.ready for pod in kept) >= min(replicas, sum(pod.ready for pod in living))
    assert not move.start or len(kept) + move.start <= replicas + 1
    assert set(move.end) <= {pod.name for pod in living}


@given(pods, st.integers(0, 4))
def test_moves_lead_to_the_wished_pods_of_the_new_template(pods: list[PodState], replicas: int) -> None:
    """When started pods get ready and ended pods end, a few moves reach the wish and then rest."""
    for turn in range(2 * len(pods) + 2 * replicas + 2):
        move = plan(pods, replicas=replicas, revision="new")
        pods = [replace(pod, ready=True) for pod in pods if not pod.terminating and pod.name not in move.end]
        pods += [PodState(f"n{turn}-{index}", "new", True, 20 + turn) for index in range(move.start)]
    assert [pod.revision for pod in pods] == ["new"] * replicas
    assert plan(pods, replicas=replicas, revision="new") == Rollout()
