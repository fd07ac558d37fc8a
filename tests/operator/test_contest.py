"""How long others are let be who change a child back."""

from smartspec_operator.contest import CALM_SECONDS, LONGEST_SECONDS, Contest, contested


def test_who_changes_the_same_back_is_let_be_for_longer_each_time() -> None:
    """Up to a bound; anew after a calm, and for another path."""
    last: Contest | None = None
    now, found = 1000.0, []
    for _ in range(9):
        last = contested(frozenset({"a"}), last, now)
        found.append(last.wait_seconds)
        now = last.until + 1
    assert found == [2, 4, 8, 16, 32, 64, 128, LONGEST_SECONDS, LONGEST_SECONDS]
    assert last is not None
    assert contested(frozenset({"b"}), last, now).times == 1
    assert contested(frozenset({"a"}), last, last.until + CALM_SECONDS).times == 1


def test_only_more_of_the_same_is_let_be() -> None:
    """Another path is repaired at once, and so is the number of replicas."""
    contest = contested(frozenset({"a", "b", "spec.replicas"}), None, 0.0)
    assert contest.covers(frozenset({"a"}))
    assert not contest.covers(frozenset({"a", "c"}))
    assert not contest.covers(frozenset({"a", "spec.replicas"}))
    assert not contest.covers(frozenset())
