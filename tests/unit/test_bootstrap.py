"""Intervals of a mean."""

import numpy as np
import pytest

from imis_net.evaluation.bootstrap import crossed_mean_interval, mean_interval


def test_an_interval_of_a_mean_covers_what_normal_theory_says() -> None:
    """Breaks if the percentiles are not those of 95 %, or the values are not drawn with replacement."""
    values = np.random.default_rng(0).normal(size=400)
    low, high = mean_interval(values, np.random.default_rng(1), 4000)
    reach = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.01)


def test_runs_that_differ_widen_the_interval_however_many_cases_there_are() -> None:
    """Breaks if runs are taken as given, or every case of every run as an independent one."""
    values = np.array([[0.0], [1.0]]).repeat(1000, 1)
    assert crossed_mean_interval(values, np.random.default_rng(0), 500) == (0.0, 1.0)


def test_cases_that_differ_widen_the_interval_however_many_runs_there_are() -> None:
    """Breaks if only the runs are drawn again: the same few cases in each are no evidence about others."""
    values = np.array([[0.0, 1.0]]).repeat(1000, 0)
    assert crossed_mean_interval(values, np.random.default_rng(0), 500) == (0.0, 1.0)
