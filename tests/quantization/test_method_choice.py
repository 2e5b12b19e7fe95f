"""Which method gives the ranges: another than the default only where samples held back are sure of it."""

import dataclasses

import numpy as np
import pytest
from ptq_graphs import FAST, RUNTIME, dataset, network, samples_of

from se_deploy import quantization
from se_deploy.quantization import QuantizeOptions, qparams


def test_an_outlier_makes_another_method_the_best(tmp_path):
    dataset(tmp_path)
    x = np.load(tmp_path / "x.npz")["x"]
    x[0, :, 3, 3] = 300  # one broken pixel, not among the samples held back
    samples = samples_of(tmp_path, x=x)
    options = QuantizeOptions(float_macs=0.0, gptq=False)
    best = quantization.quantize(network(), samples, runtime=RUNTIME, options=options)
    unclipped = dataclasses.replace(options, method="minmax")
    plain = quantization.quantize(network(), samples, runtime=RUNTIME, options=unclipped)
    assert best.method != "minmax"
    assert best.sqnr_db["y"] > plain.sqnr_db["y"] + 3


@pytest.mark.parametrize(
    ("times", "taken"),
    [
        ((30, 10, 5), "entropy"),
        ((30, 6.5, 6), "percentile"),  # promises too little beside percentile
        ((200, 5, 0.3), "percentile"),  # promises much and clips: worse than percentile, better than mse
        ((5, 5, 5), "mse"),
    ],
)
def test_each_method_is_compared_with_the_best_so_far(tmp_path, monkeypatch, times, taken):
    """Not with the first: entropy may be better than mse, and worse than percentile, which was taken."""
    coarser = dict(zip(("mse", "percentile", "entropy"), times, strict=True))
    plain = qparams.choose

    def choose(subject, methods):
        return {
            method: dataclasses.replace(
                (one := plain(subject, ["mse"])["mse"]),
                params=dataclasses.replace(one.params, scale=one.params.scale * coarser[method]),
            )
            for method in methods
        }

    monkeypatch.setattr(qparams, "choose", choose)
    options = dataclasses.replace(FAST, method=None, offset_folding=False, bias_correction=False)
    made = quantization.quantize(network(), dataset(tmp_path, 64), runtime=RUNTIME, options=options)
    assert made.method == taken


@pytest.mark.parametrize(
    ("times", "count", "taken"),  # by mse and percentile: at first, and in the other folds
    [
        (((30, 5), (30, 5)), 64, "percentile"),
        (((30, 5), (30, 5)), 16, "mse"),  # too few to speak
        (((30, 5), (5, 30)), 64, "mse"),  # the other parts of the samples say the opposite
    ],
)
def test_a_method_is_taken_where_each_sample_held_back_surely_says_so(
    tmp_path, monkeypatch, times, count, taken
):
    plain, at_home = qparams.choose, {}

    def choose(subject, methods):
        first = at_home.setdefault(subject.readers[0].node, subject.statistics)
        coarser = dict(
            zip(("mse", "percentile"), times[subject.statistics is not first], strict=True), entropy=60
        )
        one = plain(subject, ["mse"])["mse"]
        return {
            method: dataclasses.replace(
                one, params=dataclasses.replace(one.params, scale=one.params.scale * coarser[method])
            )
            for method in methods
        }

    monkeypatch.setattr(qparams, "choose", choose)
    options = dataclasses.replace(FAST, method=None, offset_folding=False, bias_correction=False)
    made = quantization.quantize(network(), dataset(tmp_path, count), runtime=RUNTIME, options=options)
    assert made.method == taken


def test_nothing_is_chosen_by_the_samples_that_it_was_made_on(tmp_path, monkeypatch):
    """A block of eight samples cannot be parted: six that agree were enough to take another way."""
    plain = qparams.choose

    def choose(subject, methods):
        assert methods == ("mse",)
        return plain(subject, methods)

    monkeypatch.setattr(qparams, "choose", choose)
    options = dataclasses.replace(FAST, method=None)
    made = quantization.quantize(network(batch=8), dataset(tmp_path, 8), runtime=RUNTIME, options=options)
    assert "too few to hold any back" in made.warnings[0]
