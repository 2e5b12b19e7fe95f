import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from se_deploy.quantization import gptq


def moments(seed, groups, columns, rows=400):
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((groups, rows, columns)) @ random.standard_normal(
        (groups, columns, columns)
    )
    return mixed.transpose(0, 2, 1) @ mixed / rows


@given(st.integers(0, 99), st.sampled_from([(1, 6, 70), (4, 1, 9), (2, 3, 8)]))
@hypothesis_settings(deadline=None, max_examples=15)
def test_rounding_by_second_moments_beats_rounding_to_nearest(seed, shape):
    groups, _, columns = shape
    weight = np.random.default_rng(seed).standard_normal(shape)
    scale = np.abs(weight).max(axis=2) / 15  # coarse, so that rounding matters
    second = moments(seed, groups, columns) + 0.01 * np.eye(columns)
    smart = gptq.round_columns(weight, scale, second) * scale[:, :, None]
    plain = np.round(weight / scale[:, :, None]) * scale[:, :, None]

    def error(rounded):
        apart = weight - rounded
        return ((apart @ second) * apart).sum()

    assert error(smart) < error(plain)


def test_without_correlation_it_is_rounding_to_nearest():
    weight = np.random.default_rng(0).standard_normal((1, 4, 20))
    scale = np.full((1, 4), 0.1)
    smart = gptq.round_columns(weight, scale, np.eye(20)[None])
    np.testing.assert_array_equal(smart, np.round(weight / 0.1))
