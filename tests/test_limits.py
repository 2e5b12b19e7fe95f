"""What passes, at the very edge of each limit: a comparison that is one step off would decide otherwise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from se_deploy.comparison import sums
from se_deploy.comparison.parity import OutputParity
from se_deploy.comparison.tolerance import PRESETS, Tolerance, tolerance
from se_deploy.verification import distances

HELD = Tolerance(
    "held", atol=0.5, rtol=0.25, min_cosine=0.75, min_top1=0.5, min_top5=0.625, min_iou=0.375,
    min_box_iou=0.875, divergence=0.1,
)  # fmt: skip
"""Numbers that binary floats hold exactly, so that an edge is one."""


def parity(**fields):
    fine = OutputParity("y", 0.0, 0.0, 1.0, None, None)
    return dataclasses.replace(fine, **fields)


def missed(**fields):
    return [miss.measure for miss in HELD.misses(parity(**fields))]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"max_abs": 1.0, "max_rel": 0.5}, []),  # the reference reaches 2: 0.5 + 0.25 * 2
        ({"max_abs": 1.0625, "max_rel": 0.53125}, ["largest error"]),
        ({"max_abs": 0.5, "max_rel": None}, []),  # a reference of zeros: atol alone
        ({"max_abs": 0.5625, "max_rel": None}, ["largest error"]),
        ({"max_abs": math.inf}, ["largest error"]),
        ({"max_abs": math.nan}, ["largest error"]),
        ({"cosine": 0.75}, []),
        ({"cosine": 0.6875}, ["1 - cosine"]),
        ({"cosine": math.nan}, ["1 - cosine"]),
        ({"cosine": 0.9, "worst_cosine": 0.6875}, ["1 - cosine"]),
        ({"cosine": 0.6, "worst_cosine": 0.75}, []),  # of an embedding each sample is held to it
        ({"max_abs": 9.0, "max_rel": 1.0, "cosine": None}, []),  # labels have no errors
        ({"kind": "boxes", "max_abs": 9.0, "max_rel": 1.0, "cosine": 0.1}, []),
        ({"kind": "boxes", "max_abs": math.inf}, ["largest error"]),
        ({"kind": "mask", "max_abs": 9.0, "max_rel": 1.0}, []),  # a pixel at an edge turns over
        ({"kind": "mask", "cosine": 0.6}, ["1 - cosine"]),
        ({"top1_agreement": 0.5, "top5_agreement": 0.625}, []),
        ({"top1_agreement": 0.4375}, ["share of other answers"]),
        ({"top5_agreement": 0.5625}, ["share of answers outside the top 5"]),
        ({"kind": "mask", "iou": 0.375}, []),
        ({"kind": "mask", "iou": 0.3125}, ["1 - IoU"]),
        ({"kind": "boxes", "iou": 0.875}, []),
        ({"kind": "boxes", "iou": 0.8125}, ["1 - IoU"]),
        ({"kind": "scores", "agreement": 0.875}, []),
        ({"kind": "scores", "agreement": 0.8125}, ["share without a partner"]),
        ({"kind": "labels", "agreement": 0.1}, []),  # its top-1 agreement says it
    ],
    ids=str,
)
def test_a_limit_is_kept_at_its_edge_and_missed_beyond(fields, wanted):
    assert missed(**fields) == wanted


def test_a_mask_may_be_held_to_every_score():
    strict = dataclasses.replace(HELD, by_pixel=True)
    off = parity(kind="mask", max_abs=9.0, max_rel=1.0)
    assert [miss.measure for miss in strict.misses(off)] == ["largest error"]
    assert PRESETS["fp32"].by_pixel
    assert not any(PRESETS[name].by_pixel for name in ("fp16", "bf16", "int8"))


def test_a_miss_says_how_far_and_the_limit():
    (miss,) = HELD.misses(parity(max_abs=2.0, max_rel=1.0))
    assert (miss.value, miss.limit) == (2.0, 1.0)
    (miss,) = HELD.misses(parity(top1_agreement=0.25))
    assert (miss.value, miss.limit) == (0.75, 0.5)
    (text,) = HELD.failures(parity(top1_agreement=0.25))
    assert text == "'y': top-1 agreement 25.00% < 50.00%"
    (text,) = HELD.failures(parity(cosine=0.5))
    assert text == "'y': cosine 0.500000 is below 0.75"
    (text,) = HELD.failures(parity(max_abs=2.0, max_rel=1.0))
    assert text == "'y': largest error 2 is above 1"


def test_presets_loosen_with_the_precision():
    fp32, fp16, bf16 = (PRESETS[name] for name in ("fp32", "fp16", "bf16"))
    for strict, loose in ((fp32, fp16), (fp16, bf16)):
        assert (strict.atol, strict.rtol, strict.divergence) < (loose.atol, loose.rtol, loose.divergence)
        assert strict.min_cosine > loose.min_cosine
        assert strict.min_box_iou > loose.min_box_iou
    assert fp32.min_iou == pytest.approx(0.995 / 1.005)
    assert (fp16.rtol, bf16.rtol) == (3e-2, 8 * 3e-2)
    assert math.isinf(PRESETS["int8"].atol)


def test_a_lower_top1_lowers_the_top5_with_it_and_iou_is_of_masks_and_boxes():
    lower = tolerance("fp16", min_top1=0.5, min_iou=0.25)
    assert (lower.min_top1, lower.min_top5) == (0.5, 0.5)
    assert (lower.min_iou, lower.min_box_iou) == (0.25, 0.25)
    assert tolerance("fp16", min_top1=1.0).min_top5 == PRESETS["fp16"].min_top5
    assert tolerance("fp16", atol=0.0, rtol=0.0).atol == 0.0
    assert tolerance("fp16") == PRESETS["fp16"]


@pytest.mark.parametrize(
    ("reach", "wanted"),
    [(0.0, 1e-6), (1.0, 1e-4), (20.0, 2e-3), (1e-2, 1e-6), (1e-3, 1e-6), (1e-5, 1e-7), (1e-8, 1e-10)],
)
def test_rounding_is_a_share_of_the_output_or_of_one(reach, wanted):
    assert distances.rounding(reach) == pytest.approx(wanted)


def test_distances_leave_out_what_the_source_has_no_number_for():
    want = np.array([1.0, np.nan, 3.0, np.inf], np.float32)
    got = np.array([1.5, 7.0, 2.0, 9.0], np.float32)
    assert distances.distance(want, got) == 1.0
    assert distances.largest(want) == 3.0
    assert distances.largest(np.array([np.nan])) == 0.0
    assert distances.distance(np.array([np.nan]), np.array([1.0])) == 0.0
    assert distances.distance(want[:0], got[:0]) == 0.0
    assert distances.distance(np.array([1, 2, 3, 4]), np.array([1, 9, 3, 4])) == 0.25
    hidden = distances.masked(want, got)
    np.testing.assert_array_equal(hidden, ([1, 0, 3, 0], [1.5, 0, 2, 0]))
    whole = np.array([1.0, 2.0])
    assert distances.masked(whole, got[:2]) == (pytest.approx(whole), pytest.approx(got[:2], nan_ok=True))


def test_a_change_in_the_last_bits_is_as_large_as_the_largest_number_says():
    x = np.array([[4.0, 0.0, -1.0]], np.float32)
    feeds = {"x": x, "n": np.array([1, 2]), "e": np.zeros(0, np.float32)}
    moved = distances.perturbed(feeds, 0)
    step = np.abs(moved["x"].astype(np.float64) - feeds["x"]).max()
    assert 0 < step <= 4.0 * 2.0**-21
    np.testing.assert_array_equal(moved["n"], feeds["n"])
    assert moved["x"].dtype == np.float32
    zeros = distances.perturbed({"x": np.zeros(50, np.float32)}, 0)["x"]
    assert 2.0**-23 < np.abs(zeros).max() <= 2.0**-21


def test_an_error_sum_counts_every_number():
    errors = sums.Errors()
    errors.add(np.array([[1.0, 2.0]]), np.array([[1.0, 2.5]]))
    errors.add(np.array([[0.0, -4.0]]), np.array([[0.0, -4.0]]))
    assert errors.max_abs == 0.5
    assert errors.max_rel == 0.125
    assert errors.sqnr_db == pytest.approx(10 * math.log10(21 / 0.25))
