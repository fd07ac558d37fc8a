"""Learning step times online: a Kalman filter that forgets, withstands outliers and stays non-negative, compiled.

Noise is relative: a step of 100 ms is not ten times as informative as one of 10 ms. Every step may have changed all
coefficients a little, together and apart; what is measured is then weighed by how surely it was predicted.
"""

import math
from typing import Any

import numpy as np

from smartspec.native import njit
from smartspec.policy.regression import WIDEST_APART, WIDEST_TOGETHER, Array, Coefficients

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
SMALLEST_NOISE = 0.02
NOISE_SHARE = 0.03
"""What a single step counts in the mean that the noise is."""


def learn(known: Coefficients, features: Array, seconds: float) -> float:
    """Learn that *features* [d] took *seconds*; returns what had been predicted."""
    predicted, known.noise, known.streak = _learn(
        known.mean, known.covariance, known.scale, known.kinship, known.noise, known.streak, features, seconds,
        WIDEST_TOGETHER, WIDEST_APART,
    )  # fmt: skip
    return float(predicted)


def deviation(known: Coefficients, features: Array) -> float:
    """Standard deviation of the prediction for *features* [d], noise of a single step aside."""
    return float(_deviation(known.covariance, features))


@njit("float64(float64[:,::1], float64[::1])", cache=True)
def _deviation(covariance: Any, features: Any) -> float:
    """Square root of features @ covariance @ features."""
    variance = 0.0
    for i in range(len(features)):
        if features[i] != 0.0:
            along = 0.0
            for j in range(len(features)):
                along += covariance[i, j] * features[j]
            variance += features[i] * along
    return math.sqrt(max(variance, 0.0))


@njit("(float64[::1], float64[:,::1], float64[::1], float64[:,::1], float64, float64)", cache=True)
def _spread(mean: Any, covariance: Any, scale: Any, kinship: Any, together: float, apart: float) -> None:
    """Add what is not known of coefficients that moved by these relative standard deviations, together and apart."""
    for i in range(len(mean)):
        for j in range(len(mean)):
            alone = apart * (mean[i] + scale[i]) * apart * (mean[j] + scale[j])
            covariance[i, j] += alone * kinship[i, j] + together * mean[i] * together * mean[j]


@njit("(float64[::1], float64[:,::1], float64[::1], float64, float64)", cache=True)
def _narrow(mean: Any, covariance: Any, scale: Any, together: float, apart: float) -> None:
    """Keep every variance within that of coefficients known to these relative standard deviations."""
    shrink = np.ones(len(mean))
    is_wide = False
    for i in range(len(mean)):
        widest = (together * mean[i]) ** 2 + (apart * (mean[i] + scale[i])) ** 2
        if covariance[i, i] > widest:
            shrink[i] = math.sqrt(widest / covariance[i, i])
            is_wide = True
    if is_wide:
        for i in range(len(mean)):
            for j in range(len(mean)):
                covariance[i, j] *= shrink[i] * shrink[j]


@njit("(float64[::1], float64[:,::1])", cache=True)
def _keep_non_negative(mean: Any, covariance: Any) -> None:
    """Project onto coefficients >= 0 in the covariance's own metric: what one may not take, its correlates do."""
    for _ in range(4):
        lowest = mean.argmin()
        if mean[lowest] >= 0.0:
            return
        excess = mean[lowest] / max(covariance[lowest, lowest], 1e-30)
        for i in range(len(mean)):
            mean[i] -= covariance[i, lowest] * excess
        mean[lowest] = 0.0
    for i in range(len(mean)):
        mean[i] = max(mean[i], 0.0)


@njit(
    "Tuple((float64, float64, int64))"
    "(float64[::1], float64[:,::1], float64[::1], float64[:,::1], float64, int64, float64[::1], float64, "
    "float64, float64)",
    cache=True,
)
def _learn(
    mean: Any,
    covariance: Any,
    scale: Any,
    kinship: Any,
    noise: float,
    streak: int,
    features: Any,
    seconds: float,
    widest_together: float,
    widest_apart: float,
) -> Any:
    """One step of the filter on `mean` [d] and `covariance` [d, d], in place: what had been predicted, and the new
    noise and streak. Arguments as in `Coefficients`."""
    dimension = len(mean)
    _spread(mean, covariance, scale, kinship, DRIFT_TOGETHER, DRIFT_APART)
    _narrow(mean, covariance, scale, widest_together, widest_apart)
    expected = 0.0
    for i in range(dimension):
        expected += features[i] * mean[i]
    expected = max(expected, 1e-9)
    along = np.empty(dimension)
    for attempt in range(2):
        variance = (noise * expected) ** 2
        for i in range(dimension):
            along[i] = 0.0
            for j in range(dimension):
                along[i] += covariance[i, j] * features[j]
            variance += features[i] * along[i]
        if attempt:
            break
        residual = seconds - expected
        sigma = math.sqrt(variance)
        bound = HUBER_SIGMAS * sigma
        if residual > 0.0:
            bound = min(bound, MOST_SURPRISE * expected)
        clipped, trust = residual, 1.0
        if abs(residual) <= bound:
            streak = 0
            break
        sign = 1 if residual > 0.0 else -1
        streak = streak + sign if streak * sign >= 0 else sign
        if abs(streak) < SHIFT_STEPS and residual >= -IMPOSSIBLE_SIGMAS * sigma:
            clipped, trust = sign * bound, bound / abs(residual)
            break
        # Everything may have changed by as much as was just seen: once more, with less believed.
        change = min(abs(residual) / expected, 10.0)
        _spread(mean, covariance, scale, kinship, change, 0.3 * change)
    for i in range(dimension):
        gain = along[i] / variance
        mean[i] += gain * clipped
        for j in range(dimension):
            covariance[i, j] -= trust * gain * along[j]
    _keep_non_negative(mean, covariance)
    # The spread around the prediction is learned from the clipped residual, slowly, so that it stays a noise level.
    relative = min(abs(residual), bound) / expected
    noise = max(SMALLEST_NOISE, math.sqrt(noise**2 + NOISE_SHARE * (relative**2 - noise**2)))
    return expected, noise, streak
