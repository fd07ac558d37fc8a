"""Stage two over whole histories: generated demand, replicas that start late or fall silent, and what must never be."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fleets import history, later, linear_priors, load, pending, policy, replica, seen, smartspec
from smartspec_operator import scaling
from smartspec_operator.capacity import predicted
from smartspec_operator.fleet import together
from smartspec_operator.world import Failure, History, Observation, Replica, Timing

PERIOD = 15.0
LEAST, MOST = 1, 6
OWNER = smartspec(
    autoscaling={"minReplicas": LEAST, "maxReplicas": MOST, "scaleDownStabilizationSeconds": 60},
    server={"maxNumSeqs": 4},
)
POLICY = policy(linear_priors())
OUTPUT = 100.0


def _capacity() -> float:
    busy = together([load(tokens_per_second=100.0, mean_output=OUTPUT)])
    point = predicted(OWNER, POLICY.settings.priors, busy, POLICY.settings)
    assert point is not None
    return point.tokens_per_second


CAPACITY = _capacity()


@dataclass
class World:
    """A fleet that serves a demand in tokens per second, as the operator would see it every period."""

    start_seconds: float = 30.0
    now: float = 0.0
    ready_at: list[float] = field(default_factory=lambda: [0.0])
    backlog: float = 0.0
    past: History = field(default_factory=history)
    desired: list[int] = field(default_factory=lambda: [1])

    def step(self, demand: float, silent: int = 0) -> Observation:
        """One period: serve, look, decide, and carry the decision out; what the decision was made from."""
        ready = [moment for moment in self.ready_at if moment <= self.now]
        asked = demand + self.backlog / PERIOD
        served = min(asked, CAPACITY * len(ready))
        self.backlog = max(0.0, (asked - served) * PERIOD)
        world = seen(*self._replicas(ready, demand, served, silent), deployed=len(self.ready_at))
        decision = scaling.decide(OWNER, world, self.past, POLICY, now=later(self.now), timing=Timing())
        self.past = history(*decision.history, recommendations=decision.recommendations)
        self.desired.append(decision.desired)
        self.ready_at = sorted(self.ready_at)[: decision.desired]
        self.ready_at += [self.now + self.start_seconds] * (decision.desired - len(self.ready_at))
        self.now += PERIOD
        return world

    def _replicas(self, ready: list[float], demand: float, served: float, silent: int) -> list[Replica]:
        each = len(ready) or 1
        report = load(
            tokens_per_second=served / each,
            requests_per_second=demand / OUTPUT / each,
            mean_output=OUTPUT,
            num_requests_running=min(4, round(4 * served / each / CAPACITY)),
            num_requests_waiting=int(self.backlog / OUTPUT / each),
            longest_wait_seconds=self.backlog / each / CAPACITY,
        )
        known = [replica(f"r{i}", Failure("timeout") if i < silent else report) for i in range(len(ready))]
        starting = [pending(f"s{i}", age=10.0 - self.now) for i in range(len(self.ready_at) - len(ready))]
        return [*known, *starting]


demands = st.floats(0.0, 1.3 * MOST * CAPACITY)
STEPS = st.lists(st.tuples(demands, st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=10)


@settings(max_examples=20, deadline=None)
@given(STEPS)
def test_never_outside_its_bounds(steps: list[tuple[float, int, int]]) -> None:
    """Whatever is asked for, and whoever falls silent."""
    world = World()
    for demand, periods, silent in steps:
        for _ in range(periods):
            world.step(demand, silent)
    assert all(LEAST <= desired <= MOST for desired in world.desired)


@settings(max_examples=20, deadline=None)
@given(st.floats(1.5 * CAPACITY, 5 * CAPACITY), st.floats(0.0, 0.2 * CAPACITY), st.integers(1, MOST))
def test_never_down_on_missing_data(flood: float, calm: float, silent: int) -> None:
    """After a flood, while a ready replica is silent, there are no fewer for however long: missing is not idle."""
    world = World()
    for _ in range(30):
        world.step(flood)
    before = world.desired[-1]
    for _ in range(15):
        assert world.step(calm, silent).missing
        assert world.desired[-1] == before
    for _ in range(15):
        world.step(calm)
    assert world.desired[-1] < before


@settings(max_examples=20, deadline=None)
@given(demands, demands)
def test_constant_load_settles(before: float, demand: float) -> None:
    """After whatever came before, the number moves one way, ends, and stays for good."""
    world = World()
    for _ in range(10):
        world.step(before)
    for _ in range(40):
        world.step(demand)
    settled = len(world.desired)
    for _ in range(20):
        world.step(demand)
    assert set(world.desired[settled - 1 :]) == {world.desired[settled - 1]}


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 0.6 * CAPACITY), st.floats(0.9 * CAPACITY, 6 * CAPACITY))
def test_a_step_up_is_answered_within_two_periods(calm: float, flood: float) -> None:
    """More demand than 85 % of what there is asks for more replicas at the second look at the latest."""
    world = World()
    for _ in range(20):
        world.step(calm)
    before = world.desired[-1]
    world.step(flood)
    world.step(flood)
    assert world.desired[-1] > before == 1


@settings(max_examples=10, deadline=None)
@given(st.floats(1.5 * CAPACITY, 5 * CAPACITY))
def test_what_is_added_suffices_and_goes_again(flood: float) -> None:
    """The flood is served by what was asked for, without waste; when it ends, all that was added goes."""
    world = World()
    for _ in range(60):
        world.step(flood)
    assert world.backlog == 0.0
    assert world.desired[-1] * CAPACITY * 0.45 < flood < world.desired[-1] * CAPACITY
    for _ in range(30):
        world.step(0.0)
    assert world.desired[-1] == LEAST
