"""Coefficients that are never negative, and how surely they are known: what step times are predicted by.

Of `seconds = features @ coefficients` the covariance says two things that a plain forgetting regression cannot: a
coefficient whose feature was not seen lately keeps its value instead of dying, and all coefficients may move *together*
(a clock throttled, a core lost), so that one slow step also tells something about the shapes that were not run.
Predicting needs no more than this; how steps are learned from is `kalman.py`'s.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.intp]

WIDEST_TOGETHER = 0.5
WIDEST_APART = 1.0
"""Relative standard deviation of coefficients nobody knows; uncertainty never grows beyond it."""
UNKNOWN_NOISE = 0.1
"""Relative standard deviation of a step around its prediction, before any was measured."""


class Coefficients:
    """Coefficients `mean` [d] (seconds per unit, >= 0), known to `covariance` [d, d]; `noise` is the relative standard
    deviation of a single step around its prediction, and `streak` how many outliers of one sign (its own) came last.

    `scale` [d] is what a coefficient of unknown value may plausibly amount to: it lets one that stands at zero rise.
    `kinship` [d, d] correlates what is unknown of each (1 on the diagonal): kin are believed to be alike.
    """

    def __init__(self, mean: Array, scale: Array, kinship: Array) -> None:
        self.mean = mean.copy()
        self.scale = scale.copy()
        self.kinship = kinship
        self.covariance = self._spread(self.mean, WIDEST_TOGETHER, WIDEST_APART)
        self.noise = UNKNOWN_NOISE
        self.streak = 0

    def predict(self, features: Array) -> float:
        """Seconds for *features* [d]."""
        return float(features @ self.mean)

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
        self.scale *= factor
        self.covariance *= factor * factor

    def _spread(self, mean: Array, together: float, apart: float) -> Array:
        """Covariance [d, d] of coefficients known to these relative standard deviations, moving together and apart."""
        alone = apart * (mean + self.scale)
        moved = together * mean
        covariance: Array = alone[:, None] * alone
        covariance *= self.kinship
        covariance += moved[:, None] * moved
        return covariance

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
