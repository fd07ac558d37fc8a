"""Who leaves the queue next: fair between tenants, by priority and age within one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integer_model import IntegerProposer, IntegerRunner, RandomPolicy
from smartspec.config import SchedulerConfig
from smartspec.engine import Engine
from smartspec.scheduling.request import Request, SamplingParams
from smartspec.scheduling.scheduler import Scheduler
from smartspec.scheduling.waiting_queue import GENERATED_TOKEN, PROMPT_TOKEN, WaitingQueue


def request(name: str, tenant: str = "", priority: int = 0, prompt: int = 4, max_tokens: int = 8) -> Request:
    """A request that arrived at time 0."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return Request(name, [1 + len(name) % 3] * prompt, sampling, 0, 0.0, tenant=tenant, priority=priority)


def names(queue: WaitingQueue) -> list[str]:
    """The order in which they leave, nothing being served meanwhile."""
    return [queue.pop().request_id for _ in range(len(queue))]


def test_one_tenant_is_served_by_priority_then_age() -> None:
    """Smaller numbers first, and of equals the one that came first."""
    queue = WaitingQueue()
    for name, priority in (("a", 0), ("b", 0), ("c", -1), ("d", 5), ("e", 0)):
        queue.push(request(name, priority=priority))
    assert names(queue) == ["c", "a", "b", "e", "d"]


def test_preempted_requests_come_first_in_their_old_order() -> None:
    """They were chosen before, whoever's they are, and however little others were served since."""
    queue = WaitingQueue()
    first, second, third = request("first", "a"), request("second", "a"), request("third", "b")
    for one in (first, second, third):
        queue.push(one)
    assert [queue.pop(), queue.pop()] == [first, second]
    queue.charge(first, prompt_tokens=1000)
    queue.push_preempted(second)
    queue.push_preempted(first)
    assert names(queue) == ["first", "second", "third"]


def test_a_priority_is_a_tenants_own() -> None:
    """Nobody goes before others by calling its own requests urgent."""
    queue = WaitingQueue()
    queue.push(request("calm", "b"))
    for i in range(3):
        queue.push(request(f"urgent-{i}", "a", priority=-1000))
    order = []
    while len(queue):
        one = queue.pop()
        queue.charge(one, prompt_tokens=10)
        order.append(one.request_id)
    assert order.index("calm") <= 1


def test_who_comes_back_has_saved_nothing_and_owes_nothing() -> None:
    """A newcomer is lifted to those who wait; a busy period's end clears all accounts."""
    queue = WaitingQueue()
    for i in range(4):
        queue.push(request(f"a{i}", "a"))
    for _ in range(2):
        queue.charge(queue.pop(), prompt_tokens=500)
    for i in range(4):
        queue.push(request(f"b{i}", "b"))
    order = []
    while len(queue):
        one = queue.pop()
        queue.charge(one, prompt_tokens=10)
        order.append(one.tenant)
    assert sorted(order[:4]) == ["a", "a", "b", "b"]
    queue.forget_the_past()
    queue.push(request("a9", "a"))
    queue.push(request("b9", "b"))
    assert names(queue) == ["a9", "b9"]


def test_removed_requests_are_gone() -> None:
    """From either part of the queue; another that does not wait is a mistake."""
    queue = WaitingQueue()
    kept, waiting, preempted = request("kept"), request("waiting"), request("preempted")
    for one in (preempted, kept, waiting):
        queue.push(one)
    queue.push_preempted(queue.pop())
    queue.remove(waiting)
    queue.remove(preempted)
    assert (len(queue), queue.head) == (1, kept)
    with pytest.raises(ValueError, match="not in list"):
        queue.remove(waiting)
    assert names(queue) == ["kept"]
    with pytest.raises(ValueError, match="empty"):
        queue.pop()


Served = dict[str, float]


@settings(max_examples=60, deadline=None)
@given(
    greedy=st.integers(1, 5),
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=24, max_size=24),
    priorities=st.lists(st.integers(-5, 5), min_size=24, max_size=24),
    num_tenants=st.integers(2, 4),
    max_num_seqs=st.integers(1, 6),
    num_blocks=st.integers(12, 64),
    seed=st.integers(0, 100),
)
def test_backlogged_tenants_are_served_alike(
    greedy: int,
    lengths: list[tuple[int, int]],
    priorities: list[int],
    num_tenants: int,
    max_num_seqs: int,
    num_blocks: int,
    seed: int,
) -> None:
    """While tenants have requests waiting, what they were served differs by no more than two batches' worth, whatever
    the lengths, priorities, preemptions and numbers of requests (source: arXiv 2401.00588, theorem 4.8)."""
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=32, block_size=4, prefix_caching=False),
        RandomPolicy(seed=seed),
        num_blocks=num_blocks,
        max_model_len=64,
        proposers=("draft", "lookup"),
    )
    engine = Engine(scheduler, IntegerProposer(4), IntegerRunner(4), clock=lambda: 0.0)
    tenants = [f"t{i}" for i in range(num_tenants)]
    for i, ((prompt, max_tokens), priority) in enumerate(zip(lengths, priorities, strict=True)):
        tenant = tenants[i % num_tenants] if i % (greedy + 1) == 0 else tenants[0]  # the first sends far more
        urgent = -1000 if tenant == tenants[0] else priority
        scheduler.add(request(f"{i:03}", tenant, urgent, prompt, max_tokens))
    owners = {one.request_id: one.tenant for one in scheduler.waiting}
    served: Served = dict.fromkeys(tenants, 0.0)
    begun: set[str] = set()
    bound = 2 * max_num_seqs * (PROMPT_TOKEN * 20 + GENERATED_TOKEN * 20) + GENERATED_TOKEN * 9 * max_num_seqs
    while scheduler.has_work:
        backlogged = {one.tenant for one in scheduler.waiting}
        output = engine.step()
        for name in output.first_scheduled:
            begun.add(name)
            served[owners[name]] += PROMPT_TOKEN * lengths[int(name)][0]
        for result in output.outputs:
            served[owners[result.request_id]] += GENERATED_TOKEN * len(result.new_token_ids)
        backlogged &= {one.tenant for one in scheduler.waiting if one.request_id not in begun}
        shares = [served[tenant] for tenant in backlogged]
        assert not shares or max(shares) - min(shares) <= bound
    scheduler.check_idle()


def test_a_greedy_tenant_delays_another_by_a_batch_not_by_its_queue() -> None:
    """A hundred requests of one key wait when another's first comes: it starts as soon as a place is free."""
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=32, block_size=4),
        RandomPolicy(fixed_k=0),
        num_blocks=64,
        max_model_len=64,
    )
    engine = Engine(scheduler, IntegerProposer(4), IntegerRunner(4), clock=lambda: 0.0)
    for i in range(100):
        scheduler.add(request(f"greedy-{i}", "greedy"))
    for _ in range(20):
        engine.step()
    scheduler.add(request("modest", "modest"))
    before = len(scheduler.waiting)
    for _ in range(9):  # a request of 8 tokens takes no more steps than this
        if "modest" in engine.step().first_scheduled:
            break
    else:
        raise AssertionError("the modest tenant still waits")
    assert before - len(scheduler.waiting) <= 3


@pytest.mark.parametrize("tenant", ["", "named"])
def test_priorities_decide_who_is_preempted(tenant: str) -> None:
    """When blocks run out, the least urgent goes back, though it came first; but among tenants with names the newest
    does, for there nobody's word counts on who is urgent."""
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=32, block_size=4, prefix_caching=False),
        RandomPolicy(fixed_k=0),
        num_blocks=8,
        max_model_len=32,
    )
    engine = Engine(scheduler, IntegerProposer(4), IntegerRunner(4), clock=lambda: 0.0)
    idle = request("idle", tenant, priority=1, max_tokens=20)
    urgent = request("urgent", tenant and "other", priority=0, max_tokens=20)
    scheduler.add(idle)
    engine.step()
    scheduler.add(urgent)
    ended = []
    while scheduler.has_work:
        ended += [output.request_id for output in engine.step().outputs if output.finish_reason]
    first, last = (idle, urgent) if tenant else (urgent, idle)
    assert ended == [first.request_id, last.request_id]
    assert (last.num_preemptions > 0, first.num_preemptions) == (True, 0)
