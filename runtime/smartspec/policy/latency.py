"""How long a step takes: predicted from what it consists of.

Forwards have stairs (a CPU: 24, 27, 36, 34, 52, 67, 108, 231 ms for 1, 4, 8, 16, 32, 64, 128, 256 tokens; a GPU: flat,
then steep), so the curve over tokens is learned where steps fall on it, beside slopes for context, requests and
tokens whose logits are wanted. Every coefficient is named, never negative, and in seconds per unit, so that a model can
travel as a `LatencyPrior` (source: arXiv 2406.14066, section 4.2, there fitted once and in advance). Whoever only
predicts, as an operator does, needs no more than this and no compiler; `online.py` corrects the model by every step
measured.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.features import Part, Regressors
from smartspec.policy.regression import Array, Coefficients, Ints
from smartspec.policy.settings import LatencyPrior
from smartspec.policy.types import StepFeatures, StepSeconds

Number = int | NDArray[Any]
"""One step's count, or that of many."""
MOST_PRIOR_STEPS = 200.0
"""Evidence handed in counts as at most this many steps: it was measured elsewhere."""
BETWEEN_REPLICAS = 0.1
"""Relative standard deviation between replicas of one key, as a whole and per coefficient."""
LARGE_STEP = 512
"""Tokens up to which a line is fitted to the curve."""


class LatencyModel:
    """Predicts `StepSeconds` from `StepFeatures`."""

    def __init__(self, regressors: Regressors | None = None) -> None:
        self._regressors = regressors or Regressors()
        self._target = _unmeasured(self._regressors.target_part, 0.02)
        self._draft = _unmeasured(self._regressors.draft_part, 0.002)
        self._host = _unmeasured(self._regressors.host_part, 0.0005)
        self.num_steps = 0.0
        self.num_draft_steps = 0.0
        self.error = 0.0

    def predict(self, features: StepFeatures) -> StepSeconds:
        """Seconds of each part of a step."""
        drafts = bool(features.draft_batch_by_depth)
        return StepSeconds(
            draft=self._draft.predict(self._regressors.draft(features)) if drafts else 0.0,
            target=self._target.predict(self._regressors.target(features)),
            host=self._host.predict(self._regressors.host(features)),
        )

    def target_curve(self, tokens: NDArray[Any], *, context: Number, requests: Number, prefill: Number) -> Array:
        """Seconds of target and host together for each total of *tokens* in the step, *prefill* of them a prompt's."""
        mean, host = self._target.mean, self._host.mean
        fixed = mean[-3] * context + mean[-2] * requests + host[0] + host[1] * requests
        curve = self._regressors.curve_seconds(self._regressors.padded(tokens), mean[0], mean[1:-3])
        seconds: Array = curve + fixed + mean[-1] * (tokens - prefill) + host[2] * tokens
        return seconds

    def draft_curve(self, rows: NDArray[Any]) -> Array:
        """Seconds of one draft forward for each number of *rows*, context aside."""
        return self._regressors.curve_seconds(rows, self._draft.mean[0], self._draft.mean[1:-1])

    def curves(self) -> tuple[Array, Array, Array, Array]:
        """What the curves are made of: the tokens at which they bend, and the coefficients of target, draft and host in
        the order of their parts' names."""
        return self._regressors.bends, self._target.mean, self._draft.mean, self._host.mean

    @property
    def buckets(self) -> Ints:
        """Sizes that a step's tokens are padded to."""
        return self._regressors.bucket_sizes

    @property
    def draft_context_seconds(self) -> float:
        """Seconds per token of context that one draft forward attends to."""
        return float(self._draft.mean[-1])

    def coefficients(self) -> dict[str, float]:
        """Every coefficient by name, in seconds per unit."""
        return {n: float(v) for part, model in self._parts() for n, v in zip(part.names, model.mean, strict=True)}

    def prior(self) -> LatencyPrior | None:
        """What was learned, to hand on; None before the first step. The draft's part is left out until measured."""
        if not self.num_steps:
            return None
        known = self.coefficients()
        if not self.num_draft_steps:
            known = {name: value for name, value in known.items() if not name.startswith("draft.")}
        return LatencyPrior(coefficients=known, weight=self.num_steps, relative_error=self.error)

    def line(self) -> LatencyPrior | None:
        """The same with straight lines for curves, fitted over the sizes steps mostly have: for `Regressors(LINE)`."""
        prior = self.prior()
        if prior is None:
            return None
        sizes = np.array([size for size in self._regressors.knots if size <= LARGE_STEP], dtype=np.float64)
        known = {name: value for name, value in prior.coefficients.items() if "tokens_from" not in name}
        for prefix, first, model in (("target", "step", self._target), ("draft", "forward", self._draft)):
            if f"{prefix}.{first}" in known:
                slopes = model.mean[1 : 1 + len(self._regressors.knots)]
                seconds = self._regressors.curve_seconds(sizes, float(model.mean[0]), slopes)
                slope, start = np.polyfit(sizes - 1.0, seconds, 1)
                known[f"{prefix}.{first}"] = max(float(start), 0.0)
                known[f"{prefix}.tokens_from_1"] = max(float(slope), 0.0)
        return LatencyPrior(known, prior.weight, prior.relative_error)

    def adopt(self, prior: LatencyPrior) -> None:
        """Take *prior* in: as the whole truth where nothing was measured here, else where it knows better. Names
        that this model does not have are ignored, and those that the prior lacks are left as they are."""
        if prior.weight <= 0:
            return
        # A prior of few steps, or one that erred where it was made, is believed less.
        doubt = min(0.5, math.hypot(BETWEEN_REPLICAS, prior.relative_error) + 1.0 / math.sqrt(1.0 + prior.weight))
        for part, model in self._parts():
            if part.names[0] not in prior.coefficients:
                continue
            measured = self.num_draft_steps if model is self._draft else self.num_steps
            mean = np.array([prior.coefficients.get(n, v) for n, v in zip(part.names, model.mean, strict=True)])
            if measured:
                model.blend(mean, doubt)
            else:
                model.rescale(max(mean[0], 1e-9) / max(model.mean[0], 1e-9))
                model.seed(mean, doubt)
        steps = min(prior.weight, MOST_PRIOR_STEPS)
        if not self.num_steps:
            self.num_steps = steps
            self.error = prior.relative_error
        if not self.num_draft_steps and self._regressors.draft_part.names[0] in prior.coefficients:
            self.num_draft_steps = steps

    def _parts(self) -> tuple[tuple[Part, Coefficients], ...]:
        regressors = self._regressors
        return (
            (regressors.target_part, self._target),
            (regressors.draft_part, self._draft),
            (regressors.host_part, self._host),
        )


def _unmeasured(part: Part, unit_seconds: float) -> Coefficients:
    return Coefficients(unit_seconds * part.believed, unit_seconds * part.thinkable, part.kinship)


def model_of(prior: LatencyPrior) -> LatencyModel:
    """The model that *prior* describes."""
    model = LatencyModel()
    model.adopt(prior)
    return model


def predict_seconds(prior: LatencyPrior, features: StepFeatures) -> StepSeconds:
    """Predicted seconds of a step by the model that travelled as *prior*."""
    return model_of(prior).predict(features)
