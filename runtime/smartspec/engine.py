"""One page tells the story: an engine step is plan, draft, verify, commit."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from smartspec.policy.types import StepSeconds
from smartspec.scheduling.output import ModelRunnerOutput, SchedulerOutput, StepOutput

if TYPE_CHECKING:  # it brings a compiler along, which a client of the endpoint (`smartspec bench`) may lack
    from smartspec.scheduling.scheduler import Scheduler

D = TypeVar("D")
D_co = TypeVar("D_co", covariant=True)
D_contra = TypeVar("D_contra", contravariant=True)


class Proposer(Protocol[D_co]):
    """Drafts tokens for a plan; *D* is whatever it hands to the runner."""

    def propose(self, plan: SchedulerOutput) -> D_co:
        """Proposals for the requests of *plan* that speculate."""


class Runner(Protocol[D_contra]):
    """Computes a plan with its drafts on the target model."""

    def execute(self, plan: SchedulerOutput, drafts: D_contra) -> ModelRunnerOutput:
        """One forward pass, verified: ints come out."""


class Engine(Generic[D]):
    """Steps a scheduler's requests through a proposer and a runner. Owned by one thread, like the scheduler."""

    def __init__(
        self, scheduler: "Scheduler", proposer: Proposer[D], runner: Runner[D], clock: Callable[[], float]
    ) -> None:
        self.scheduler = scheduler
        self.proposer = proposer
        self.runner = runner
        self._clock = clock
        self._host_since: float | None = None

    def step(self) -> StepOutput:
        """Run one step: plan, draft, verify, commit."""
        begun = self._clock() if self._host_since is None else self._host_since
        plan = self.scheduler.schedule()
        if not plan.scheduled:
            return StepOutput((), None)
        planned = self._clock()
        drafts = self.proposer.propose(plan)
        drafted = self._clock()
        result = self.runner.execute(plan, drafts)
        verified = self._clock()
        seconds = StepSeconds(draft=drafted - planned, target=verified - drafted, host=planned - begun)
        output = self.scheduler.update(plan, replace(result, seconds=seconds))
        # Committing, detokenising and publishing delay the next step, so they are the next step's host time.
        self._host_since = verified if self.scheduler.has_work else None
        return output
