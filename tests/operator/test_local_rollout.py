"""What a Deployment's controller decides, as arithmetic."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartspec_operator.local_rollout import PodState, Rollout, bounds, plan


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


def test_without_a_spare_place_an_old_pod_ends_before_a_new_one_starts() -> None:
    """One at a time: the next goes when the new one serves, and the successor has the place of the one that ended."""
    old = [pod("a", "old"), pod("b", "old")]
    move = plan(old, replicas=2, revision="new", max_surge=0, max_unavailable=1)
    assert move == Rollout(start=1, end=("a",))
    loading = pod("n", ready=False)
    left = [replace(old[0], terminating=True), old[1], loading]
    assert plan(left, replicas=2, revision="new", max_surge=0, max_unavailable=1) == Rollout()
    serving = [old[1], replace(loading, ready=True)]
    move = plan(serving, replicas=2, revision="new", max_surge=0, max_unavailable=1)
    assert move == Rollout(start=1, end=("b",))


@pytest.mark.parametrize(("surge", "away", "replicas", "expected"), [
    (1, 0, 4, (1, 0)), (0, 1, 4, (0, 1)), ("25%", "25%", 5, (2, 1)), ("25%", 0, 1, (1, 0)), (0, "25%", 2, (0, 1)),
])  # fmt: skip
def test_percentages_are_of_the_replicas(surge: int | str, away: int | str, replicas: int, expected: object) -> None:
    """Surge is rounded up and absence down; where nothing is left of either, one may be away."""
    assert bounds({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": away}}, replicas) == expected


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


bounded = st.sampled_from([(1, 0), (0, 1), (2, 1), (0, 3)])


@given(pods, st.integers(0, 4), bounded)
def test_no_move_leaves_the_bounds(pods: list[PodState], replicas: int, bound: tuple[int, int]) -> None:
    """Whatever the state: no more serving pods away than may be, and no more pods than wished and as many beyond."""
    surge, away = bound
    move = plan(pods, replicas=replicas, revision="new", max_surge=surge, max_unavailable=away)
    living = [pod for pod in pods if not pod.terminating]
    kept = [pod for pod in living if pod.name not in move.end]
    assert sum(pod.ready for pod in kept) >= min(replicas - away, sum(pod.ready for pod in living))
    assert not move.start or len(kept) + move.start <= replicas + surge
    assert set(move.end) <= {pod.name for pod in living}


@given(pods, st.integers(0, 4), bounded)
def test_moves_lead_to_the_wished_pods_of_the_new_template(
    pods: list[PodState], replicas: int, bound: tuple[int, int]
) -> None:
    """When started pods get ready and ended pods end, a few moves reach the wish and then rest."""
    for turn in range(2 * len(pods) + 2 * replicas + 2):
        move = plan(pods, replicas=replicas, revision="new", max_surge=bound[0], max_unavailable=bound[1])
        pods = [replace(pod, ready=True) for pod in pods if not pod.terminating and pod.name not in move.end]
        pods += [PodState(f"n{turn}-{index}", "new", True, 20 + turn) for index in range(move.start)]
    assert [pod.revision for pod in pods] == ["new"] * replicas
    assert plan(pods, replicas=replicas, revision="new") == Rollout()
