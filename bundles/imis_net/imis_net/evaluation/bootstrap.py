"""How far chance reaches: the percentile bootstrap of a mean (Efron and Tibshirani 1993), for tables and gate alike."""

from __future__ import annotations

import numpy as np


def mean_interval(values: np.ndarray, rng: np.random.Generator, num_resamples: int) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [N]."""
    picks = rng.integers(len(values), size=(num_resamples, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)
