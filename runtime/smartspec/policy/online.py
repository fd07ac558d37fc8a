"""The time model as a running engine has it: corrected by every step measured."""

import math

from smartspec.policy.features import Regressors
from smartspec.policy.kalman import deviation, learn
from smartspec.policy.latency import LatencyModel
from smartspec.policy.regression import Array
from smartspec.policy.types import StepFeatures, StepSeconds

DRAFT_SHARE = 0.1
"""What a draft forward is believed to cost, in target forwards, before one was measured."""
POOR_ERROR = 0.3
"""A model that errs by more than this share says so, and is explored more."""
ERROR_STEPS = 50
"""The published error is a mean over about this many steps."""


class OnlineLatencyModel(LatencyModel):
    """A `LatencyModel` that learns from what was measured."""

    def __init__(self, regressors: Regressors | None = None) -> None:
        super().__init__(regressors)
        self._num_errors = 0

    @property
    def is_poor(self) -> bool:
        """Whether recent predictions erred by more than `POOR_ERROR` on average."""
        return self._num_errors > 0 and self.error > POOR_ERROR

    def uncertainty(self, features: StepFeatures) -> float:
        """Standard deviation, in seconds, of the target's predicted time: large for shapes not run lately."""
        return deviation(self._target, self._regressors.target(features))

    def observe(self, features: StepFeatures, seconds: StepSeconds) -> None:
        """Learn from one measured step; a step without tokens, or with no time measured, teaches nothing."""
        total = seconds.total
        if features.target_tokens <= 0 or not math.isfinite(total) or seconds.target <= 0.0:
            return
        target = self._regressors.target(features)
        host = self._regressors.host(features)
        if not self.num_steps:
            self._scale_to(target, host, seconds)
        predicted = learn(self._target, target, seconds.target)
        host_seconds = seconds.host
        if features.draft_batch_by_depth:
            draft = self._regressors.draft(features)
            if not self.num_draft_steps:
                self._draft.rescale(seconds.draft / max(self._draft.predict(draft), 1e-9))
            predicted += learn(self._draft, draft, seconds.draft)
            self.num_draft_steps += 1
        else:
            host_seconds += seconds.draft  # looking at proposals that never reach a draft model is host work
        predicted += learn(self._host, host, host_seconds)
        self.num_steps += 1
        self._num_errors += 1
        error = min(abs(predicted - total) / total, 3.0)
        self.error += (error - self.error) / min(self._num_errors, ERROR_STEPS)

    def _scale_to(self, target: Array, host: Array, seconds: StepSeconds) -> None:
        """The first step measured says how fast this device is at all."""
        self._target.rescale(seconds.target / self._target.predict(target))
        if not self.num_draft_steps:
            self._draft.rescale(DRAFT_SHARE * self._target.mean[0] / self._draft.mean[0])
        if seconds.host > 0:
            self._host.rescale(seconds.host / self._host.predict(host))
