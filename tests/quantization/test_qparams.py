import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from layer_graphs import model_of, weights

from se_deploy import calibration, quantization, se_blocks
from se_deploy.calibration import ranges, statistics
from se_deploy.quantization import layers, qparams, scales

METHODS = calibration.METHODS
SAMPLES = 16
EVERYTHING = qparams.Allowed(offset_folding=True, channel_equalization=True, per_channel_weights=True)
NOTHING = qparams.Allowed(offset_folding=False, channel_equalization=False, per_channel_weights=True)


def reader(channels=4, attributes="", array=None):
    shape = (5, channels, 3, 3)
    model = model_of(
        f"y = Conv{attributes}(x, w)",
        [("w", weights(*shape) if array is None else array)],
        inputs=f"float[N,{channels},8,8] x",
        output="float[N,5,h,w] y",
    )
    return layers.collect(model, se_blocks.detect(model), quantization.PORTABLE).quantizable[0]


def observed(values):
    """Statistics of (C, n) values."""
    channels = statistics._Channels(len(values))
    values = values.astype(np.float32)
    samples = values.reshape(len(values), SAMPLES, -1)
    channels.add(samples.min(axis=2).T, samples.max(axis=2).T, samples.transpose(1, 0, 2))
    return channels.statistics()


def believed(seen, samples=1_000_000):
    """The same statistics of so many samples, which differ."""
    return dataclasses.replace(seen, tails=dataclasses.replace(seen.tails, samples=samples, dispersion=1.0))


def choose(seen, readers, methods, allowed):
    """Choices for a tensor that no residual Add reads."""
    return qparams.choose(subject(seen, readers, allowed), methods)


def subject(seen, readers, allowed=NOTHING):
    """A tensor whose error no residual Add passes on."""
    return qparams.Subject(seen, seen.expected(), readers, allowed, np.zeros(len(seen.low)))


def positive(channels=4, sizes=None):
    x = np.abs(np.random.default_rng(0).standard_normal((channels, 4096)))
    return x * (np.ones(channels) if sizes is None else np.array(sizes))[:, None]


def dequantized(values, params):
    offset = 0 if params.offset is None else params.offset[:, None]
    factor = 1 if params.equalization is None else params.equalization[:, None]
    q = np.clip(np.round((values - offset) / factor / params.scale), -128, 127)
    return q * params.scale * factor + offset


def error(values, params):
    return float(((dequantized(values, params) - values) ** 2).mean() / (values**2).mean())


def test_minmax_clips_nothing():
    x = positive()
    for allowed in (EVERYTHING, NOTHING):
        params = choose(observed(x), [reader()], ["minmax"], allowed)["minmax"].params
        steps = params.scale * (1 if params.equalization is None else params.equalization.max())
        assert np.abs(dequantized(x, params) - x).max() <= 0.51 * steps


def test_an_offset_halves_the_step_of_a_tensor_that_is_never_negative():
    x = positive()
    folded = qparams.Allowed(offset_folding=True, channel_equalization=False, per_channel_weights=True)
    with_offset = choose(observed(x), [reader()], ["minmax"], folded)["minmax"].params
    without = choose(observed(x), [reader()], ["minmax"], NOTHING)["minmax"].params
    assert without.offset is None
    assert with_offset.scale == pytest.approx(without.scale * 127 / 255, rel=1e-3)


@pytest.mark.parametrize("low", [0.0, 2.0])
def test_the_low_end_of_a_one_sided_channel_is_exact(low):
    x = positive() + low
    params = choose(observed(x), [reader()], ["minmax"], EVERYTHING)["minmax"].params
    ends = x.min(axis=1, keepdims=True)
    np.testing.assert_allclose(dequantized(ends, params), ends, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize(
    "usual", [0.0, -0.6, 3.0], ids=["0, as behind HardSwish", "the low end", "the high end"]
)
def test_a_value_that_comes_again_and_again_is_exact(usual, method):
    """Its rounding error would be the same everywhere and add up."""
    x = np.random.default_rng(0).uniform(-0.6, 3, (4, 4096))
    x[:, ::5] = usual
    x[:, 1], x[:, 2] = -0.6, 3.0
    params = choose(observed(x), [reader()], [method], EVERYTHING)[method].params
    assert params.offset is not None
    value = np.float32(usual) * np.ones((4, 1))
    np.testing.assert_allclose(dequantized(value, params), value, atol=1e-6)


@given(st.floats(-5, 5), st.floats(0.01, 5), st.sampled_from(["low", "zero", "high"]), st.floats(0.02, 0.5))
@hypothesis_settings(deadline=None, max_examples=40)
def test_the_usual_value_is_an_end_or_0_and_0_only_within(low, span, kind, share):
    x = np.random.default_rng(0).uniform(low, low + span, (1, 4096))
    x[0, 1], x[0, 2] = low, low + span
    inside = low <= 0 <= low + span
    wanted = {"low": low, "zero": 0.0, "high": low + span}[kind]
    if kind != "zero" or inside:
        x[0, 16 : 16 + int(4000 * share)] = wanted
    (usual,) = observed(x).usual()
    candidates = [low, low + span, *([0.0] if inside else [])]
    assert min(abs(usual - one) for one in candidates) <= 1e-5
    if kind != "zero" or inside:
        assert abs(usual - wanted) <= span / calibration.BINS * 1.1


def test_channels_of_unequal_size_are_equalized_and_gain_by_it():
    x = positive(sizes=[0.01, 0.1, 1, 10])
    seen = observed(x)
    equalized = choose(seen, [reader()], ["minmax"], EVERYTHING)["minmax"]
    assert equalized.params.equalization is not None
    offset_only = qparams.Allowed(offset_folding=True, channel_equalization=False, per_channel_weights=True)
    plain = choose(seen, [reader()], ["minmax"], offset_only)["minmax"]
    assert plain.params.equalization is None
    assert equalized.noise <= plain.noise
    assert error(x[:1], _channel(equalized.params, 0)) < error(x[:1], _channel(plain.params, 0)) / 10


def _channel(params, c):
    return quantization.QuantParams(
        params.scale,
        params.offset[c : c + 1],
        None if params.equalization is None else params.equalization[c : c + 1],
    )


def test_a_channels_size_is_doubted_the_more_the_fewer_samples_tell_of_it():
    def sizes(samples):
        seen = believed(observed(positive(sizes=[1, 1, 1, 0.02])), samples)
        return qparams._doubted(np.array([1.0, 1.0, 1.0, 0.02]), qparams._doubt([seen.tails]))

    few, some, many = sizes(8), sizes(64), sizes(1_000_000)
    assert few[3] > some[3] > many[3]
    assert few[3] > 0.5, "a class that eight samples lack may make it as loud as the others"
    assert many[3] == pytest.approx(0.02, rel=0.2)
    assert few[0] == some[0] == many[0] == 1


@pytest.mark.parametrize(
    ("own", "quiet", "samples", "dispersion", "doubted"),
    [
        (True, 3, 48, 0.2, True),
        (False, 3, 48, 0.2, True),
        (True, 15, 48, 0.2, False),
        (False, 15, 48, 0.2, False),
        (True, 15, 48, 10.0, True),
        (False, 15, 48, 10.0, True),
        (True, 15, 16, 2.0, True),
        (True, 15, 128, 2.0, False),
        (True, 15, 12, 0.2, True),
        (False, 15, 12, 0.2, False),
    ],
)
def test_sizes_are_doubted_only_where_that_costs_little(own, quiet, samples, dispersion, doubted):
    """What is little: more where samples differ, and by a Mul where they are few."""
    seen = observed(positive(1 + quiet, sizes=[1.0] + [0.02] * quiet))
    tails = dataclasses.replace(seen.tails, samples=samples, dispersion=dispersion)
    one = subject(dataclasses.replace(seen, tails=tails), [reader(1 + quiet)], EVERYTHING)
    chosen = qparams.choose(one, ["mse"])["mse"].params.equalization if own else qparams.group_factor([one])
    found = np.ones(1 + quiet) if chosen is None else chosen
    assert (found.min() / found.max() > 0.3) == doubted


def test_equal_channels_are_not_equalized():
    x = np.tile(positive(1), (4, 1))
    assert choose(observed(x), [reader()], ["minmax"], EVERYTHING)["minmax"].params.equalization is None


@pytest.mark.parametrize("method", METHODS)
def test_padding_keeps_0_in_the_range(method):
    x = positive() + 5
    padded = reader(attributes="<pads = [1,1,1,1]>")
    params = choose(observed(x), [reader(), padded], [method], EVERYTHING)[method].params
    zero = np.zeros((4, 1))
    np.testing.assert_allclose(dequantized(zero, params), zero, atol=0.51 * params.scale)
    without = choose(observed(x), [reader()], [method], EVERYTHING)[method].params
    assert without.low > 4


@pytest.mark.parametrize("allowed", [EVERYTHING, NOTHING], ids=["everything", "nothing"])
def test_a_tensor_that_is_hardly_ever_not_0_has_a_scale_by_every_method(allowed):
    x = np.zeros((4, 1 << 16))
    x[:, 7] = 3.0
    for method, choice in choose(observed(x), [reader()], METHODS, allowed).items():
        assert np.isfinite(choice.noise), method
        assert choice.params.scale >= scales.SMALLEST_SCALE
        assert choice.params.reason is None
        np.testing.assert_allclose(dequantized(np.zeros((4, 1)), choice.params), 0, atol=1e-6)


def test_a_tensor_that_is_all_0_has_a_guessed_scale_that_represents_0():
    choices = choose(observed(np.zeros((4, 64))), [reader()], METHODS, EVERYTHING)
    for choice in choices.values():
        assert choice.params.scale == scales.UNSEEN_SCALE
        assert choice.params.reason is not None
        assert (choice.params.offset, choice.params.equalization) == (None, None)


def test_a_clipping_method_pays_for_outliers_only():
    x = np.abs(np.random.default_rng(0).standard_normal((1, 1 << 18)))
    x[0, 0] = 30.0
    choices = choose(observed(x), [reader(1)], ["minmax", "mse"], NOTHING)
    assert choices["mse"].noise < choices["minmax"].noise
    assert choices["mse"].params.scale < choices["minmax"].params.scale


def test_predicted_noise_grows_with_the_scale_and_shrinks_with_the_signal():
    x = observed(positive())
    noise = [
        qparams.predicted_noise(reader(), quantization.QuantParams(scale), x, per_channel=True)
        for scale in (0.001, 0.1, 1.0)
    ]
    assert noise == sorted(noise)
    louder = qparams.predicted_noise(
        reader(), quantization.QuantParams(0.1), observed(10 * positive()), per_channel=True
    )
    assert louder < noise[1]


@pytest.mark.parametrize("allowed", [EVERYTHING, NOTHING], ids=["everything", "nothing"])
def test_a_method_that_clips_all_away_falls_back_to_the_extent(monkeypatch, allowed):
    """Of 10 channels one is ever in use: a percentile below its share leaves nothing of it."""
    monkeypatch.setattr(ranges, "PERCENTILE", 60)
    x = np.zeros((10, 4096))
    x[3] = np.random.default_rng(0).uniform(2, 5, 4096)
    params = choose(observed(x), [reader(10)], ["percentile"], allowed)["percentile"].params
    assert params.high > 2


def test_what_a_group_is_divided_by_does_not_depend_on_the_order_of_its_tensors():
    sizes = ([1.0, 0.3, 0.01, 2.0], [0.5, 0.5, 0.02, 1.0], [3.0, 0.1, 0.5, 2.0])
    given = []
    for i, dispersion in enumerate((0.6, 0.9, 0.3)):
        seen = observed(positive(sizes=sizes[i]))
        tails = dataclasses.replace(seen.tails, samples=64, dispersion=dispersion)
        given.append(subject(dataclasses.replace(seen, tails=tails), [reader()]))
    found = [qparams.group_factor(order) for order in itertools.permutations(given)]
    assert found[0] is not None
    assert found[0].min() < 1, "else there is nothing to doubt"
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_a_groups_sizes_are_doubted_as_far_as_in_the_tensor_whose_samples_agree_most():
    seen = observed(positive()).tails
    sure, half, unsure = (dataclasses.replace(seen, samples=16, dispersion=d) for d in (0.0, 0.125, 0.5))
    assert qparams._doubt([unsure]) == 0.8
    assert qparams._doubt([half, unsure]) == qparams._doubt([unsure, half]) == qparams._doubt([half]) == 0.5
    assert qparams._doubt([unsure, sure]) == 0
    assert qparams._doubt([]) == 0, "nothing is known beyond what was seen"
