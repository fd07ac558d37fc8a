"""How long a step takes: predicted from what it consists of, corrected online by every step measured.

A step is three parts, each with its own model, because each is measured by itself: the target's forward, the draft's
forwards and the host. A forward's time over its tokens is no line (a CPU: 24, 27, 36, 34, 52, 67, 108, 231 ms for 1, 4,
8, 16, 32, 64, 128, 256 tokens; a GPU: flat, then stairs), so it is a rising piecewise-linear curve over knots half an
octave apart; context, requests and prefill tokens add slopes. Every coefficient is named, never negative, and in
seconds per unit, so that a model can travel as a `LatencyPrior` (source: arXiv 2406.14066, section 4.2, made online).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.regression import Array, NonNegativeFilter
from smartspec.policy.settings import LatencyPrior
from smartspec.policy.types import StepFeatures, StepSeconds

KNOTS: tuple[int, ...] = (
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096,
)  # fmt: skip
"""Tokens of one forward at which its time may bend."""
_LOWER = np.array(KNOTS, dtype=np.float64)
_WIDTH = np.append(np.diff(_LOWER), np.inf)

POOR_ERROR = 0.3
"""A model that errs by more than this share says so, and is explored more."""
MOST_PRIOR_STEPS = 200.0
"""Evidence handed in counts as at most this many steps: it was measured elsewhere."""
BETWEEN_REPLICAS = 0.1
"""Relative standard deviation between replicas of one key, as a whole and per coefficient."""


@dataclass(frozen=True)
class Part:
    """One measured part of a step: its coefficients' names, and in units of the time of its smallest forward the
    values believed before anything was measured (optimistic: what seems cheap is tried, and so is learned) and those
    that are thinkable."""

    names: tuple[str, ...]
    believed: Array
    thinkable: Array


def _part(prefix: str, first: str, slopes: dict[str, float], *, curve: bool) -> Part:
    names, believed, thinkable = [first], [1.0], [1.0]
    if curve:
        names += [f"tokens_from_{knot}" for knot in KNOTS]
        believed += [0.008] * len(KNOTS)
        thinkable += [0.03] * len(KNOTS)
    names += slopes
    believed += [0.0] * len(slopes)
    thinkable += slopes.values()
    return Part(tuple(f"{prefix}.{name}" for name in names), np.array(believed), np.array(thinkable))


TARGET = _part("target", "step", {"context": 3e-5, "requests": 0.01, "prefill": 0.01}, curve=True)
DRAFT = _part("draft", "forward", {"context": 3e-5}, curve=True)
HOST = _part("host", "step", {"requests": 0.05, "tokens": 0.02}, curve=False)
DRAFT_SHARE = 0.1
"""What a draft forward is believed to cost, in target forwards, before one was measured."""


def curve_features(tokens: float) -> Array:
    """How many of *tokens* lie in each segment of the curve: [len(KNOTS)]."""
    overlap: Array = np.minimum(np.maximum(tokens - _LOWER, 0.0), _WIDTH)
    return overlap


def curve_seconds(tokens: NDArray[Any], first: float, slopes: Array) -> Array:
    """Seconds of one forward for each of *tokens*; 0 where there are none."""
    values = first + np.concatenate(([0.0], np.cumsum(slopes[:-1] * _WIDTH[:-1])))
    beyond = np.maximum(tokens - _LOWER[-1], 0.0) * slopes[-1]
    seconds: Array = np.where(tokens > 0, np.interp(tokens, _LOWER, values) + beyond, 0.0)
    return seconds


def target_features(features: StepFeatures) -> Array:
    """Regressors of the target's forward, in the order of `TARGET.names`; all zero where there is no forward."""
    if features.target_tokens <= 0:
        return np.zeros(len(TARGET.names))
    tail = (features.context_tokens, features.num_requests, features.prefill_tokens)
    return np.concatenate(([1.0], curve_features(features.target_tokens), tail))


def draft_rows(features: StepFeatures) -> tuple[int, ...]:
    """Tokens of each draft forward: the first one also feeds what the draft had not seen yet."""
    batch = features.draft_batch_by_depth
    return (max(batch[0], features.catchup_tokens), *batch[1:]) if batch else ()


def draft_features(features: StepFeatures) -> Array:
    """Regressors of the draft's forwards in sum, in the order of `DRAFT.names`."""
    rows = draft_rows(features)
    curve = np.minimum(np.maximum(np.array(rows, dtype=np.float64)[:, None] - _LOWER, 0.0), _WIDTH).sum(axis=0)
    return np.concatenate(([float(len(rows))], curve, (features.draft_context_tokens,)))


def host_features(features: StepFeatures) -> Array:
    """Regressors of what is neither draft nor target, in the order of `HOST.names`."""
    return np.array((1.0, features.num_requests, features.target_tokens), dtype=np.float64)


class LatencyModel:
    """Predicts `StepSeconds` from `StepFeatures`, and learns from what was measured."""

    def __init__(self) -> None:
        self._target = NonNegativeFilter(0.02 * TARGET.believed, 0.02 * TARGET.thinkable)
        self._draft = NonNegativeFilter(0.002 * DRAFT.believed, 0.002 * DRAFT.thinkable)
        self._host = NonNegativeFilter(0.0005 * HOST.believed, 0.0005 * HOST.thinkable)
        self.num_steps = 0.0
        self.num_draft_steps = 0.0
        self.error = 0.0
        self._num_errors = 0

    @property
    def is_poor(self) -> bool:
        """Whether recent predictions erred by more than `POOR_ERROR` on average."""
        return self._num_errors > 0 and self.error > POOR_ERROR

    def predict(self, features: StepFeatures) -> StepSeconds:
        """Seconds of each part of a step."""
        return StepSeconds(
            draft=self._draft.predict(draft_features(features)) if features.draft_batch_by_depth else 0.0,
            target=self._target.predict(target_features(features)),
            host=self._host.predict(host_features(features)),
        )

    def observe(self, features: StepFeatures, seconds: StepSeconds) -> None:
        """Learn from one measured step; a step without tokens, or with no time measured, teaches nothing."""
        if features.target_tokens <= 0 or not math.isfinite(seconds.total) or seconds.target <= 0.0:
            return
        target = target_features(features)
        if not self.num_steps:
            self._scale_to(features, target, seconds)
        predicted = self._target.predict(target)
        self._target.observe(target, seconds.target)
        host, measured_host = host_features(features), seconds.host
        if features.draft_batch_by_depth:
            draft = draft_features(features)
            if not self.num_draft_steps:
                self._draft.rescale(seconds.draft / max(self._draft.predict(draft), 1e-9))
            predicted += self._draft.predict(draft)
            self._draft.observe(draft, seconds.draft)
            self.num_draft_steps += 1
        else:
            measured_host += seconds.draft  # looking at proposals that never reach a draft model is host work
        predicted += self._host.predict(host)
        self._host.observe(host, measured_host)
        self.num_steps += 1
        error = abs(predicted - seconds.total) / seconds.total
        self._num_errors += 1
        self.error += (min(error, 3.0) - self.error) / min(self._num_errors, 50)

    def _scale_to(self, features: StepFeatures, target: Array, seconds: StepSeconds) -> None:
        """The first step measured says how fast this device is at all."""
        factor = seconds.target / self._target.predict(target)
        self._target.rescale(factor)
        if not self.num_draft_steps:
            self._draft.rescale(DRAFT_SHARE * self._target.mean[0] / self._draft.mean[0])
        if seconds.host > 0:
            self._host.rescale(seconds.host / self._host.predict(host_features(features)))

    def target_curve(self, tokens: NDArray[Any], *, context: int, requests: int, prefill: int) -> Array:
        """Seconds of target and host together for each total of *tokens* in the step."""
        mean, host = self._target.mean, self._host.mean
        fixed = mean[-3] * context + mean[-2] * requests + mean[-1] * prefill + host[0] + host[1] * requests
        seconds: Array = curve_seconds(tokens, mean[0], mean[1:-3]) + fixed + host[2] * tokens
        return seconds

    def draft_curve(self, rows: NDArray[Any]) -> Array:
        """Seconds of one draft forward for each number of *rows*, context aside."""
        return curve_seconds(rows, self._draft.mean[0], self._draft.mean[1:-1])

    @property
    def draft_context_seconds(self) -> float:
        """Seconds per token of context that one draft forward attends to."""
        return float(self._draft.mean[-1])

    def coefficients(self) -> dict[str, float]:
        """Every coefficient by name, in seconds per unit."""
        parts = ((TARGET, self._target), (DRAFT, self._draft), (HOST, self._host))
        return {n: float(v) for part, model in parts for n, v in zip(part.names, model.mean, strict=True)}

    def prior(self) -> LatencyPrior | None:
        """What was learned, to hand on; None before the first step. The draft's part is left out until measured."""
        if not self.num_steps:
            return None
        known = self.coefficients()
        if not self.num_draft_steps:
            known = {name: value for name, value in known.items() if not name.startswith("draft.")}
        return LatencyPrior(coefficients=known, weight=self.num_steps, relative_error=self.error)

    def adopt(self, prior: LatencyPrior) -> None:
        """Take *prior* in: as the whole truth where nothing was measured here, else where it knows better. Names
        that this model does not have are ignored, and those that the prior lacks are left as they are."""
        if prior.weight <= 0:
            return
        # A prior of few steps, or one that erred where it was made, is believed less.
        doubt = math.hypot(BETWEEN_REPLICAS, prior.relative_error) + 1.0 / math.sqrt(1.0 + prior.weight)
        for part, model, evidence in (
            (TARGET, self._target, self.num_steps),
            (DRAFT, self._draft, self.num_draft_steps),
            (HOST, self._host, self.num_steps),
        ):
            if part.names[0] not in prior.coefficients:
                continue
            mean = np.array([prior.coefficients.get(n, v) for n, v in zip(part.names, model.mean, strict=True)])
            if evidence:
                model.blend(mean, together=doubt, apart=doubt)
            else:
                unit = max(mean[0], 1e-9)
                model.rescale(unit / max(model.mean[0], 1e-9))
                model.seed(mean, together=doubt, apart=doubt)
        if not self.num_steps:
            self.num_steps = min(prior.weight, MOST_PRIOR_STEPS)
            self.error = prior.relative_error
        if not self.num_draft_steps and DRAFT.names[0] in prior.coefficients:
            self.num_draft_steps = min(prior.weight, MOST_PRIOR_STEPS)


def predict_seconds(prior: LatencyPrior, features: StepFeatures) -> StepSeconds:
    """Predicted seconds of a step by a model that travelled as *prior*."""
    return model_of(prior).predict(features)


def model_of(prior: LatencyPrior) -> LatencyModel:
    """The model that *prior* describes."""
    model = LatencyModel()
    model.adopt(prior)
    return model
