"""Where each method clips: which end moves, and how far."""

import numpy as np
import pytest
from test_calibration import interval, summed


def test_even_values_are_not_clipped_by_their_squared_error():
    values = np.random.default_rng(0).uniform(-3, 5, 60_000)
    low, high = interval(summed(values), "mse")
    np.testing.assert_allclose([low[0], high[0]], [-3, 5], rtol=0.02)


def test_one_far_value_is_cut_at_its_own_end():
    values = np.random.default_rng(0).uniform(0, 1, 1_000_000)
    values[0] = -3
    low, high = interval(summed(values), "mse")
    assert high == pytest.approx(1, rel=0.02)
    assert -2 < low < 0.01


def test_entropy_keeps_both_ends_of_what_is_even_and_cuts_a_far_one():
    values = np.random.default_rng(0).standard_normal(60_000)
    low, high = interval(summed(values), "entropy")
    assert -low == pytest.approx(high, rel=0.3)
    assert high > 2
    values[:3] = 60
    low, high = interval(summed(values), "entropy")
    assert high < 30
    assert low < -2


def test_a_percentile_leaves_as_much_out_at_each_end():
    values = np.random.default_rng(0).standard_normal(1_000_000)
    low, high = interval(summed(values), "percentile")
    wanted = np.quantile(values, [0.5e-4, 1 - 0.5e-4])
    np.testing.assert_allclose([low[0], high[0]], wanted, rtol=0.03)
