import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from se_deploy import calibration, data, graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.calibration import statistics as stats
from se_deploy.errors import BadData
from se_deploy.protocols import TensorSpec

RUNTIME = OrtRuntime(threads=1, optimize=False)
SUMMED = {"rtol": 1e-5, "atol": 1e-5}  # float32 values summed in another order
CHAIN = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[{batch},2,4,4] x) => (float[{batch},2,4,4] y) {{
  a = Neg(x)
  y = {op}(a)
}}
"""


def chain(op="Relu", batch="N"):
    return graph.tidy(ir.from_onnx_text(CHAIN.format(op=op, batch=batch)))


def samples_of(array, tmp_path):
    np.save(tmp_path / "x.npy", array.astype(np.float32))
    spec = TensorSpec("x", np.dtype(np.float32), (None, *array.shape[1:]))
    return data.read(tmp_path / "x.npy", [spec])


def summed(values, cuts=1):
    """Statistics of (C, n) values that came in `cuts` parts."""
    wide = np.atleast_2d(np.asarray(values, np.float32))
    found = stats._Channels(len(wide))
    for part in np.array_split(wide, cuts, axis=1):
        found.add(part.min(axis=1)[None], part.max(axis=1)[None], part[None])
    return found.statistics()


def interval(found, method):
    return calibration.choose_ranges(calibration.ClipError(found), [method])[method]


def test_statistics_are_those_of_all_samples(tmp_path):
    x = np.random.default_rng(0).standard_normal((37, 2, 4, 4)) * np.array([1, 10])[:, None, None]
    found = calibration.measure(chain(), {"x": 1, "a": 1}, samples_of(x, tmp_path), RUNTIME)
    for name, sign in (("x", 1), ("a", -1)):
        flat = (sign * x).astype(np.float32).transpose(1, 0, 2, 3).reshape(2, -1)
        np.testing.assert_allclose(found[name].low, flat.min(axis=1))
        np.testing.assert_allclose(found[name].high, flat.max(axis=1))
        np.testing.assert_allclose(found[name].mean, flat.mean(axis=1), **SUMMED)
        np.testing.assert_allclose(found[name].variance, flat.var(axis=1), rtol=1e-4)
        np.testing.assert_allclose(found[name].histogram.sum(axis=1), 1)


def test_the_values_that_are_counted_come_from_everywhere(tmp_path):
    """The same few pixels of every image would not stand for the others, such as a background."""
    pixels = 16 * 16
    step = pixels // calibration.statistics._LEAST_POSITIONS // 2 * 2 + 1
    one = (np.arange(pixels) % step < step // 3).astype(np.float32).reshape(1, 1, 16, 16)
    model = graph.tidy(ir.from_onnx_text(CHAIN.format(op="Relu", batch="N").replace("2,4,4", "1,16,16")))
    samples = samples_of(np.repeat(one, 200, axis=0), tmp_path)
    found = calibration.measure(model, {"x": 1}, samples, RUNTIME, positions=1)
    np.testing.assert_allclose(found["x"].mean, one.mean(), rtol=0.2)


@given(st.integers(0, 99), st.integers(1, 12))
@hypothesis_settings(deadline=None, max_examples=15)
def test_statistics_do_not_depend_on_how_they_were_batched(seed, cuts):
    random = np.random.default_rng(seed)
    values = random.standard_normal((3, 24)) * np.geomspace(0.01, 100, 24) + random.uniform(-50, 50, (3, 1))
    one, two = summed(values), summed(values, cuts)
    np.testing.assert_allclose(one.low, two.low)
    np.testing.assert_allclose(one.high, two.high)
    np.testing.assert_allclose(one.mean, two.mean, **SUMMED)
    np.testing.assert_allclose(one.variance, two.variance, rtol=1e-4)
    bins = (two.histogram_high - two.histogram_low) / calibration.BINS
    assert (np.abs((two.histogram * two.centres()).sum(axis=1) - two.mean) <= bins).all()


def test_a_channel_is_counted_alike_beside_any_others():
    """Channels are worked on some at a time: neither their number nor their place changes what is seen."""
    random = np.random.default_rng(0)
    channels = 2 * stats._COUNTED_ROWS + 3
    values = random.standard_normal((channels, 5000)) * np.geomspace(1, 1000, 5000) * random.uniform(0.1, 9)
    together = summed(values, 6)
    for channel in (0, stats._COUNTED_ROWS - 1, stats._COUNTED_ROWS, channels - 1):
        alone = summed(values[channel], 6)
        for name in ("low", "high", "mean", "variance", "histogram", "histogram_low", "histogram_high"):
            np.testing.assert_array_equal(getattr(together, name)[channel], getattr(alone, name)[0])
    np.testing.assert_allclose(together.histogram.sum(axis=1), 1)


@pytest.mark.parametrize("method", calibration.METHODS)
@given(
    arrays.arrays(
        np.float32, st.integers(2, 60), elements=st.floats(-100, 100, width=32, allow_subnormal=False)
    )
)
@hypothesis_settings(deadline=None, max_examples=25)
def test_an_interval_lies_within_the_extent(method, values):
    found = summed(values)
    low, high = interval(found, method)
    slack = 1e-4 + 1e-4 * np.abs(values).max()
    assert found.low - slack <= low <= high <= found.high + slack


def test_minmax_clips_nothing_and_others_leave_an_outlier_out():
    values = np.concatenate([np.random.default_rng(0).standard_normal(20000), [300.0]])
    found = summed(values)
    assert interval(found, "minmax")[1] == pytest.approx(300)
    for method in ("percentile", "entropy"):
        assert interval(found, method)[1] < 200


def test_merged_statistics_are_those_of_the_tensor():
    values = np.random.default_rng(0).standard_normal((4, 5000)) * np.array([[1], [2], [3], [4]])
    merged = summed(values).per_tensor()
    assert merged.low[0] == np.float32(values.min())
    assert merged.variance[0] == pytest.approx(values.var(), rel=1e-4)
    assert merged.histogram.sum() == pytest.approx(1)


@given(st.integers(0, 50), st.floats(0.1, 1), st.floats(0.1, 1))
@hypothesis_settings(deadline=None, max_examples=25)
def test_the_clip_error_is_the_mean_squared_distance_to_the_range(seed, left, right):
    values = np.random.default_rng(seed).standard_normal(4000)
    found = summed(values)
    low, high = found.low * left, found.high * right
    outside = np.maximum(low - values, 0) + np.maximum(values - high, 0)
    bin_width = (found.histogram_high - found.histogram_low)[0] / calibration.BINS
    error = calibration.ClipError(found)(low, high)[0]
    assert np.sqrt(error) == pytest.approx(np.sqrt((outside**2).mean()), abs=bin_width)


@pytest.mark.parametrize("count", [2, 7])
def test_the_last_frozen_batch_is_padded_and_the_padding_is_not_seen(tmp_path, count):
    x = np.random.default_rng(0).standard_normal((count, 2, 4, 4), np.float32)
    seen = list(calibration.observe(chain(batch=3), ["a", "y"], samples_of(x, tmp_path), RUNTIME))
    free = list(calibration.observe(chain(), ["a", "y"], samples_of(x, tmp_path), RUNTIME))
    for name in ("a", "y"):
        rows = [np.concatenate([arrays[name] for arrays in batches]) for batches in (seen, free)]
        assert len(rows[0]) == count
        np.testing.assert_array_equal(*rows)


def test_a_tensor_that_overflows_is_named(tmp_path):
    with pytest.raises(BadData, match="tensor 'y' holds NaN"):
        list(calibration.observe(chain("Log"), ["y"], samples_of(np.ones((2, 2, 4, 4)), tmp_path), RUNTIME))


def test_the_given_model_keeps_its_outputs():
    model = chain()
    assert [v.name for v in calibration.with_outputs(model, ["a"]).graph.outputs] == ["a"]
    assert [v.name for v in model.graph.outputs] == ["y"]


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("axis", [1, 2])
def test_the_graph_reduces_itself_for_every_operator_set_and_axis(tmp_path, opset, axis):
    text = f"""
    <ir_version: 10, opset_import: ["" : {opset}]>
    g (float[N,3,5] x) => (float[N,3,5] y) {{ a = Relu(x)  y = Neg(a) }}
    """
    x = np.random.default_rng(0).standard_normal((9, 3, 5))
    model = graph.tidy(ir.from_onnx_text(text))
    found = calibration.measure(model, {"a": axis}, samples_of(x, tmp_path), RUNTIME)["a"]
    flat = np.moveaxis(np.maximum(x, 0).astype(np.float32), axis, 0).reshape(x.shape[axis], -1)
    np.testing.assert_array_equal(found.low, flat.min(axis=1))
    np.testing.assert_array_equal(found.high, flat.max(axis=1))
    np.testing.assert_allclose(found.mean, flat.mean(axis=1), **SUMMED)


def test_what_overflows_while_it_is_measured_is_named(tmp_path):
    with pytest.raises(BadData, match="tensor 'y' holds NaN"):
        calibration.measure(chain("Log"), {"y": 1}, samples_of(np.ones((2, 2, 4, 4)), tmp_path), RUNTIME)


def test_the_pile_that_a_relu_leaves_at_zero_does_not_make_entropy_cut():
    values = np.maximum(np.random.default_rng(0).standard_normal(50000), 0)
    assert interval(summed(values), "entropy")[1] > 0.7 * values.max()


def test_batches_come_in_order_however_many_threads_run_them(tmp_path):
    x = np.arange(37, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 4, 4), np.float32)
    seen = [
        arrays["a"][:, 0, 0, 0]
        for arrays in calibration.observe(chain(), ["a"], samples_of(x, tmp_path), RUNTIME)
    ]
    np.testing.assert_array_equal(np.concatenate(seen), -np.arange(37))


def of_samples(samples):
    """Statistics of (N, C, n) values: N samples of n values in each of C channels."""
    found = stats._Channels(samples.shape[1])
    for sample in samples.astype(np.float32):
        found.add(sample.min(axis=1)[None], sample.max(axis=1)[None], sample[None])
    return found.statistics()


def drawn(count, seed=0):
    """Samples whose sizes differ, as images' contrasts do; the second channel is ten times the first."""
    random = np.random.default_rng(seed)
    contrast = random.lognormal(0, 0.5, (count, 1, 1))
    return contrast * np.abs(random.standard_normal((count, 2, 64))) * np.array([1, 10])[:, None]


def test_extremes_that_never_change_are_expected_to_stay_however_they_come():
    extremes = stats._Extremes(2)
    for rows in (3, 1, 4):
        extremes.add(np.repeat(np.array([[5.0, -2.0]], np.float32), rows, axis=0))
    np.testing.assert_allclose(extremes.expected(1), [5.0, -2.0])
    np.testing.assert_allclose(extremes.expected(-1), [5.0, -2.0])


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_doubted_does_not_vanish_with_the_number_of_samples(seed):
    samples = drawn(136, seed)
    again = np.concatenate([samples * (1 - 1e-4 * i) for i in range(4)])  # no extreme comes twice
    few, many = of_samples(samples), of_samples(again)
    assert many.tails.samples == few.tails.samples
    # Where hardly any of a channel's own values are left, clipping still costs something.
    edges = np.array([0.6, 0.8, 0.95])[:, None] * few.high
    clipped = [calibration.ClipError(one.expected())(-edges, edges) for one in (few, many)]
    assert (clipped[1] > 0.9 * clipped[0]).all()


def test_samples_differ_where_other_channels_are_loud_not_where_all_are():
    brighter = np.geomspace(0.1, 10, 16)[:, None, None]
    assert of_samples(np.repeat(drawn(1), 16, axis=0) * brighter).tails.dispersion == pytest.approx(
        0, abs=1e-6
    )
    classes = np.where(np.arange(16)[:, None] % 4 == np.arange(4), 1.0, 0.01)[:, :, None]
    apart = of_samples(classes * np.abs(np.random.default_rng(0).standard_normal((16, 4, 64))))
    assert apart.tails.dispersion > 1


def test_what_is_expected_of_few_samples_is_near_what_many_show():
    many = drawn(2000, seed=1)
    few = [of_samples(drawn(16, seed)) for seed in range(2, 12)]
    reached = np.array([one.high / many.max(axis=(0, 2)) for one in few])
    expected = np.array([one.expected().high / many.max(axis=(0, 2)) for one in few])
    assert np.abs(np.log(expected)).mean() < 0.6 * np.abs(np.log(reached)).mean()


def test_tails_that_few_samples_did_not_show_are_taken_from_the_other_channels():
    samples = drawn(16)
    samples[:, 0] = np.minimum(samples[:, 0], 1.5)  # by chance no large value in the first
    found = of_samples(samples).expected()
    beyond = np.where(found.centres()[0] > 1.5, found.histogram[0], 0).sum()
    assert 0 < beyond < 0.05
    np.testing.assert_allclose(found.histogram.sum(axis=1), 1)


def test_many_samples_speak_for_themselves():
    samples = drawn(16).repeat(40, axis=0)
    found = of_samples(samples)
    assert np.abs(found.expected().mean - found.mean).max() == 0
    own, expected = calibration.ClipError(found), calibration.ClipError(found.expected())
    edge = np.array([1.0, 10.0])
    np.testing.assert_allclose(expected(-edge, edge), own(-edge, edge), rtol=0.05)


def test_what_never_moves_is_expected_to_stay():
    found = of_samples(np.full((8, 2, 16), 3.0))
    assert found.expected() is found
    relu = of_samples(np.maximum(drawn(8) - 1, 0)).expected()
    assert (relu.low == 0).all()


@given(factor=arrays.arrays(np.float64, 2, elements=st.floats(0.01, 100)))
@hypothesis_settings(max_examples=25, deadline=None)
def test_statistics_of_a_divided_tensor_are_those_that_it_would_have(factor):
    samples = drawn(8)
    found = of_samples(samples).divided(factor).expected()
    again = of_samples(samples / factor[:, None]).expected()
    for name in ("low", "high", "mean"):
        np.testing.assert_allclose(getattr(found, name), getattr(again, name), rtol=1e-4)
    np.testing.assert_allclose(found.variance, again.variance, rtol=1e-4)
