import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from se_deploy.quantization import gptq, rounding
from se_deploy.quantization.im2col import ConvWindow


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


@given(st.floats(1e-12, 1e6))
@hypothesis_settings(deadline=None, max_examples=60)
def test_scales_are_fp16_where_it_has_its_bits(scale):
    made = rounding.fp16_exact(np.array([scale]))[0]
    assert abs(made - scale) <= scale * 2**-11
    if 2**-14 <= scale <= 65504:
        assert np.float64(np.float16(made)) == made


def test_windows_are_what_a_convolution_sees():
    x = np.arange(2 * 3 * 5 * 6, dtype=np.float32).reshape(2, 3, 5, 6)
    window = ConvWindow((2, 3), (2, 1), (1, 2), (1, 0, 0, 1))
    at = np.arange(window.count(x.shape))
    rows = window.rows(x, at)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 0), (0, 1)])
    wanted = [
        padded[n, :, r * 2 : r * 2 + 2, c : c + 5 : 2].reshape(3, -1)
        for n in range(2)
        for r in range(3)
        for c in range(3)
    ]
    np.testing.assert_array_equal(rows, np.stack(wanted))


def test_a_fully_connected_layer_sees_rows():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    window = ConvWindow((), (), (), (), axis=2)
    np.testing.assert_array_equal(window.rows(x, np.array([0, 4]))[:, :, 0], [x[0, 0], x[1, 1]])
