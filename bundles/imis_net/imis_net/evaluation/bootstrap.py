"""How far chance reaches: the percentile bootstrap of a mean (Efron and Tibshirani 1993), for tables and gate alike."""

from __future__ import annotations

import numpy as np


def mean_interval(values: np.ndarray, rng: np.random.Generator, num_resamples: int) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [N]."""
    picks = rng.integers(len(values), size=(num_resamples, len(values)))
    return _interval(values[picks].mean(1))


def crossed_mean_interval(values: np.ndarray, rng: np.random.Generator, num_resamples: int) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [S, N], where both the S runs and the N cases could have been others.

    Source: Owen, The pigeonhole bootstrap (2007): rows and columns are resampled independently.
    """
    num_runs, num_cases = values.shape
    runs = rng.integers(num_runs, size=(num_resamples, num_runs, 1))
    cases = rng.integers(num_cases, size=(num_resamples, 1, num_cases))
    return _interval(values[runs, cases].mean((1, 2)))


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
