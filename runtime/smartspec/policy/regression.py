"""Online regression with coefficients that are never negative, for step times: forgetting, robust, cheap.

A Kalman filter over the coefficients of `seconds = features @ coefficients`. Its covariance says two things a plain
forgetting regression cannot: a coefficient whose feature was not seen lately keeps its value instead of dying, and all
coefficients may move *together* (a clock throttled, a core lost), so that one slow step also tells something about the
shapes that were not run. Noise is relative: a step of 100 ms is not ten times as informative as one of 10 ms.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HUBER_SIGMAS = 2.0
"""A residual beyond this many standard deviations counts as this many: one preempted step must not move the model."""
MOST_SURPRISE = 1.0
"""Nor does a slow step count as more than this share above its prediction, however little was known of its shape: a
straggler where nothing was known would else be believed, and its shape avoided ever after."""
IMPOSSIBLE_SIGMAS = 4.0
"""Steps are slow by accident, never fast: one faster than expected by so much proves the expectation wrong at once."""
SHIFT_STEPS = 4
"""This many outliers of one sign in a row are no outliers but a new truth, and are followed at once."""
DRIFT_TOGETHER = 0.004
DRIFT_APART = 0.004
"""Relative standard deviation a step adds to all coefficients together, and to each alone."""
WIDEST_TOGETHER = 0.5
WIDEST_APART = 1.0
"""Relative standard deviation of coefficients nobody knows; uncertainty never grows beyond it."""
SMALLEST_NOISE = 0.02


class NonNegativeFilter:
    """Coefficients `mean` [d] (seconds per unit, >= 0) with `covariance` [d, d], updated by one observation at a time.

    `scale` [d] is what a coefficient of unknown value may plausibly amount to: it lets one that stands at zero rise.
    `kinship` [d, d] correlates what is unknown of each (1 on the diagonal): kin are believed to be alike.
    """

    def __init__(self, mean: Array, scale: Array, kinship: Array) -> None:
        self.mean = mean.copy()
        self._scale = scale.copy()
        self._kinship = kinship
        self.covariance = self._spread(self.mean, WIDEST_TOGETHER, WIDEST_APART)
        self.noise = 0.1
        self._streak = 0

    def predict(self, features: Array) -> float:
        """Seconds for *features* [d]."""
        return float(features @ self.mean)

    def uncertainty(self, features: Array) -> float:
        """Standard deviation of the prediction for *features* [d], noise of a single step aside."""
        return math.sqrt(max(0.0, float(features @ self.covariance @ features)))

    def observe(self, features: Array, seconds: float) -> float:
        """Learn that *features* [d] took *seconds*; returns what had been predicted."""
        self._drift()
        expected = max(float(features @ self.mean), 1e-9)
        along = self.covariance @ features
        noise = self.noise * expected
        variance = float(features @ along) + noise * noise
        residual = seconds - expected
        sigma = math.sqrt(variance)
        bound = min(HUBER_SIGMAS * sigma, MOST_SURPRISE * expected) if residual > 0 else HUBER_SIGMAS * sigma
        trust = 1.0
        if abs(residual) <= bound:
            self._streak = 0
        else:
            sign = 1 if residual > 0 else -1
            self._streak = self._streak + sign if self._streak * sign >= 0 else sign
            if abs(self._streak) >= SHIFT_STEPS or residual < -IMPOSSIBLE_SIGMAS * sigma:
                self._widen(residual, expected)
                along = self.covariance @ features
                variance = float(features @ along) + noise * noise
            else:
                trust = bound / abs(residual)
                residual = math.copysign(bound, residual)
        gain = along / variance
        self.mean += gain * residual
        self.covariance -= (trust * gain)[:, None] * along
        self._keep_non_negative()
        # The spread around the prediction is learned from the clipped residual, slowly, so that it stays a noise level.
        relative = min(abs(seconds - expected), bound) / expected
        self.noise = max(SMALLEST_NOISE, math.sqrt(self.noise**2 + 0.03 * (relative**2 - self.noise**2)))
        return expected

    def seed(self, mean: Array, doubt: float) -> None:
        """Start from *mean*, believed to the relative standard deviation *doubt*, together and apart."""
        self.mean = np.maximum(mean, 0.0)
        self.covariance = self._spread(self.mean, doubt, doubt)

    def blend(self, mean: Array, doubt: float) -> None:
        """Move towards *mean* where it is known better than here; certainty is left as it was, because the same
        evidence may be handed in again and again."""
        other = self._spread(mean, doubt, doubt)
        self.mean += self.covariance @ np.linalg.solve(self.covariance + other, mean - self.mean)
        self._keep_non_negative()

    def rescale(self, factor: float) -> None:
        """Multiply every coefficient, and what is thinkable, by *factor*."""
        self.mean *= factor
        self._scale *= factor
        self.covariance *= factor * factor

    def _spread(self, mean: Array, together: float, apart: float) -> Array:
        """Covariance [d, d] of coefficients known to these relative standard deviations, moving together and apart."""
        alone = apart * (mean + self._scale)
        moved = together * mean
        covariance: Array = alone[:, None] * alone
        covariance *= self._kinship
        covariance += moved[:, None] * moved
        return covariance

    def _drift(self) -> None:
        self.covariance += self._spread(self.mean, DRIFT_TOGETHER, DRIFT_APART)
        diagonal = self.covariance.diagonal()
        widest = (WIDEST_TOGETHER * self.mean) ** 2 + (WIDEST_APART * (self.mean + self._scale)) ** 2
        if (diagonal > widest).any():
            shrink = np.minimum(1.0, np.sqrt(widest / diagonal))
            self.covariance *= np.outer(shrink, shrink)

    def _widen(self, residual: float, expected: float) -> None:
        """Admit that everything may have changed by as much as was just seen."""
        change = min(abs(residual) / expected, 10.0)
        self.covariance += self._spread(self.mean, change, 0.3 * change)

    def _keep_non_negative(self) -> None:
        """Project onto coefficients >= 0 in the covariance's own metric: what one may not take, its correlates do."""
        for _ in range(4):
            lowest = int(self.mean.argmin())
            if self.mean[lowest] >= 0.0:
                return
            column = self.covariance[:, lowest]
            self.mean -= column * (self.mean[lowest] / max(column[lowest], 1e-30))
            self.mean[lowest] = 0.0
        np.maximum(self.mean, 0.0, out=self.mean)
