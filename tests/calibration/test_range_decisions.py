"""Where each method clips: which end moves, and how far."""

import numpy as np
import pytest
from test_calibration import interval, summed

from se_deploy.calibration import ranges


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


def divergence(x, shares, low, high):
    """By Kullback and Leibler: of values clipped to a range, from the same in 128 equal bins."""
    inside = [low <= value <= high for value in x]
    if sum(share for share, kept in zip(shares, inside, strict=True) if not kept) > 0.05:
        return np.inf
    kept = [i for i in range(len(x)) if inside[i]]
    clipped = {i: shares[i] for i in kept}
    clipped[kept[0]] += sum(shares[: kept[0]])
    clipped[kept[-1]] += sum(shares[kept[-1] + 1 :])
    coarse = {}
    for i in kept:
        if shares[i] > 0:  # what is empty stays empty
            coarse.setdefault(min(int((x[i] - low) / (high - low) * 128), 127), []).append(i)
    even = {i: sum(shares[j] for j in bin_) / len(bin_) for bin_ in coarse.values() for i in bin_}
    total = sum(even.values())
    return sum(
        share * np.log(share / max(even.get(i, 0) / total, 1e-12))
        for i, share in clipped.items()
        if share > 0
    )


def random(seed=0):
    return np.random.default_rng(seed)


def pile(seed, count, side):
    """As many zeros as numbers below and above; those on one side of 0 are all small."""
    numbers = random(seed)
    wide, narrow = numbers.exponential(size=count), numbers.exponential(0.04, count)
    return np.concatenate([wide, np.zeros(count), -narrow]) * side


@pytest.mark.parametrize(
    "values",
    [
        random().standard_normal(60_000),
        random().standard_t(3, 60_000),
        np.maximum(random().laplace(size=60_000), 0),
        random().lognormal(size=60_000),
        pile(2, 30_000, 1),
        pile(3, 20_000, -1),
    ],
    ids=["normal", "t", "relu", "lognormal", "small below", "small above"],
)
def test_entropy_takes_the_cut_of_least_divergence(values):
    found = summed(values)
    whole = found.per_tensor()
    x, shares = whole.centres()[0], whole.histogram[0].copy()
    zero = int(np.abs(x).argmin())
    beside = shares[max(zero - 1, 0) : zero + 2].sum() - shares[zero]
    shares[zero] = min(shares[zero], beside / (1 if zero == 0 else 2))
    shares = list(shares / shares.sum())
    (low,), (high,) = found.low, found.high
    middle, half = (low + high) / 2, (high - low) / 2
    parts = ranges._CLIPS[1::2]
    cuts = [(middle - part * half, middle + part * half) for part in parts]
    cuts += [(low, low + 2 * part * half) for part in parts]
    cuts += [(high - 2 * part * half, high) for part in parts]
    wanted = min(cuts, key=lambda cut: divergence(x, shares, *cut))
    np.testing.assert_allclose(np.ravel(interval(found, "entropy")), wanted)
