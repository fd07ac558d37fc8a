"""What the scheduler asks of a policy: the seam between integers and floats."""

from typing import Protocol

from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import BatchState, Decision, Limits, StepOutcome


class Policy(Protocol):
    """What the scheduler asks of `smartspec.policy.controller.SpeculationPolicy`."""

    @property
    def settings(self) -> PolicySettings:
        """The settings in force."""

    def rests(self, num_requests: int) -> bool:
        """Whether a coming step of so many decoding requests is plain unless one of them insists, so that nobody else
        need look for what could be copied."""

    def limits(self, batch: BatchState) -> Limits:
        """Bounds for the coming step."""

    def decide(self, batch: BatchState) -> Decision:
        """How much each candidate speculates in the coming step."""

    def observe(self, outcome: StepOutcome) -> None:
        """Learn from a finished step."""

    def forget(self, request_id: str) -> None:
        """Drop what is kept for a request that has ended."""
