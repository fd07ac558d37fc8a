"""Where a step's time goes, and that nothing runs for nothing."""

from integer_model import IntegerProposer, IntegerRunner, RandomPolicy
from smartspec.config import SchedulerConfig
from smartspec.engine import Engine
from smartspec.scheduling.output import ModelRunnerOutput, SchedulerOutput
from smartspec.scheduling.request import Request, SamplingParams
from smartspec.scheduling.scheduler import Scheduler

Drafts = dict[str, tuple[int, ...]]


class Clock:
    """Time that the parts of a step move."""

    now = 100.0

    def __call__(self) -> float:
        """Now."""
        return self.now


def test_the_parts_of_a_step_are_timed() -> None:
    """Drafting, the target's pass, and all that happens between two steps are told apart; idle time is none of them."""
    clock = Clock()

    class SlowProposer(IntegerProposer):
        def propose(self, plan: SchedulerOutput) -> Drafts:
            clock.now += 2.0
            return super().propose(plan)

    class SlowRunner(IntegerRunner):
        def execute(self, plan: SchedulerOutput, drafts: Drafts) -> ModelRunnerOutput:
            clock.now += 5.0
            return super().execute(plan, drafts)

    policy = RandomPolicy(fixed_k=0)
    scheduler = Scheduler(SchedulerConfig(block_size=4), policy, num_blocks=16, max_model_len=32)
    engine = Engine(scheduler, SlowProposer(4), SlowRunner(4), clock)
    for request_id in ("a", "b"):
        scheduler.add(Request(request_id, [1, 2], SamplingParams(max_tokens=2), 0, 0.0))
        for _ in range(2):
            engine.step()
            clock.now += 1.0  # text is made and sent
        clock.now += 1000.0  # nobody asks for anything
    seconds = [outcome.seconds for outcome in policy.observed]
    assert [s.draft for s in seconds] == [2.0] * 4
    assert [s.target for s in seconds] == [5.0] * 4
    assert [s.host for s in seconds] == [0.0, 1.0, 0.0, 1.0]


def test_an_idle_engine_runs_nothing() -> None:
    """With nothing to do there is no forward pass, and nothing to tell."""
    runner = IntegerRunner(4)
    scheduler = Scheduler(SchedulerConfig(), RandomPolicy(), num_blocks=4, max_model_len=8)
    output = Engine(scheduler, IntegerProposer(4), runner, lambda: 0.0).step()
    assert (output.outputs, output.stats, runner.steps) == ((), None, [])
