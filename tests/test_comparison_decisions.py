"""What decides between two outputs, one decision at a time: a guess, a match, a sum, a tolerance."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from test_output_kinds import compared

from se_deploy import comparison, graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.comparison import boxes, detections, sums
from se_deploy.comparison.disagreements import Disagreements
from se_deploy.comparison.kinds import kinds_of
from se_deploy.errors import BadInput

IMAGE = {"x": np.zeros((2, 3, 12, 12), np.float32)}
CORNERS = np.float32([[1, 2, 3, 4]] * 5)


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("values", {"score": np.zeros(3, np.float32), "boxes": CORNERS}),  # not one for each box
        ("scores", {"score": np.zeros(5, np.float32), "boxes": CORNERS}),
        ("logits", {"y": np.float32([[-0.5, 0.2, 0.1], [0.0, -0.3, 0.4]])}),  # shorter than 1
        ("logits", {"y": np.float32([[-1.5, 0.2, 0.1], [0.0, -1.3, 0.4]])}),
    ],
)
def test_what_an_output_is_taken_for(kind, outputs):
    assert kinds_of(outputs, IMAGE)[next(iter(outputs))] == kind


@pytest.mark.parametrize(
    ("kind", "shape", "fits"),
    [
        ("logits", (1, 10), True),  # one sample of ten classes
        ("logits", (10, 1), False),
        ("logits", (4, 2), True),
        ("logits", (4, 7, 2), True),
        ("mask", (1, 1, 5, 5), True),
        ("mask", (1, 5, 5), False),
        ("boxes", (5, 4), True),
        ("boxes", (2, 5, 4), True),
        ("boxes", (2, 2, 5, 4), False),
        ("boxes", (4,), False),
        ("embedding", (1, 8), True),
        ("embedding", (8,), False),
        ("scores", (5,), True),
        ("labels", (5,), True),
        ("values", (), True),
    ],
)
def test_which_floats_may_be_of_a_kind(kind, shape, fits):
    array = np.zeros(shape, np.float32)
    if fits:
        assert kinds_of({"y": array}, IMAGE, {"y": kind}) == {"y": kind}
    else:
        with pytest.raises(BadInput, match=f"cannot be compared as {kind}"):
            kinds_of({"y": array}, IMAGE, {"y": kind})


def test_a_mask_of_integers_needs_no_axis_of_classes():
    assert kinds_of({"y": np.zeros((1, 5, 5), np.int64)}, IMAGE, {"y": "mask"}) == {"y": "mask"}
    with pytest.raises(BadInput, match="cannot be compared as mask"):
        kinds_of({"y": np.zeros((5, 5), np.int64)}, IMAGE, {"y": "mask"})


def test_scores_of_many_classes_break_ties_between_equal_boxes():
    box = np.array([[0, 0, 10, 10]] * 2, np.float64)
    scores = np.array([[0.1, 0.9, 0.0], [0.7, 0.2, 0.1]])
    found = boxes.match(box, box, scores=(scores, scores[::-1]))
    assert dict(zip(found.reference.tolist(), found.candidate.tolist(), strict=True)) == {0: 1, 1: 0}


def test_an_image_without_a_box_has_no_scores_of_classes_either():
    """The largest of no rows was asked for as a reshape of nothing, which numpy refuses."""
    empty = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros((0, 80), np.float32)}
    one = {"boxes": CORNERS[:1], "scores": np.full((1, 80), 0.5, np.float32)}
    found = compared(empty, one)
    assert found["scores"].kind == "scores"
    assert found["boxes"].agreement == 0
    assert compared(empty, empty)["boxes"].agreement is None


def test_boxes_without_a_partner_leave_no_numbers():
    far = {"boxes": CORNERS[:2] + np.float32(100)}
    found = compared({"boxes": CORNERS[:2]}, far)["boxes"]
    assert (found.max_rel, found.cosine, found.sqnr_db) == (None, None, None)
    assert math.isnan(found.max_abs)


def test_the_form_of_boxes_is_that_of_their_finite_rows():
    lost = np.float32([[np.nan] * 4, [1, 2, 3, 4], [np.inf, 0, 0, 0]])
    assert boxes.form_of(lost) == "corners"
    assert boxes.form_of(np.float32([[np.nan] * 4, [50, 50, 20, 20]])) == "centre"
    assert boxes.form_of(np.array([[5, 5, -1, 7]])) is None


def test_areas_and_overlaps_of_boxes_without_an_extent():
    turned, line, unit = np.array([3.0, 3, 1, 1]), np.array([1.0, 1, 1, 3]), np.array([0.0, 0, 1, 1])
    np.testing.assert_array_equal(boxes.areas(np.stack([turned, line, unit])), [0, 0, 1])
    assert boxes.iou(line, line) == 1  # equal boxes
    assert boxes.iou(line, unit) == 0
    assert boxes.iou(unit, unit + np.array([0.5, 0, 0.5, 0])) == pytest.approx(0.5 / 1.5)
    assert boxes.iou(np.full(4, np.nan), unit) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sample_of_zeros_is_like_zeros_alone(sign):
    zeros, others = np.zeros((1, 4)), np.full((1, 4), float(sign))
    for pair, cosine in (((zeros, zeros), 1), ((zeros, others), 0), ((others, zeros), 0)):
        errors = sums.Errors()
        errors.add_rows(*pair)
        assert errors.worst_cosine == cosine


def test_a_reference_of_zeros_has_an_error_of_nothing_or_without_end():
    same, other = sums.Errors(), sums.Errors()
    same.add(np.zeros(4), np.zeros(4))
    other.add(np.zeros(4), np.ones(4))
    assert (same.max_rel, same.cosine, same.sqnr_db) == (0.0, 1.0, sums.IDENTICAL_DB)
    assert (other.max_rel, other.cosine, other.sqnr_db) == (math.inf, 0.0, -sums.IDENTICAL_DB)


def test_labels_written_as_floats_have_their_largest_difference():
    want = np.float32([5, 2, 9, 0])
    assert (
        compared({"y": want}, {"y": want + np.float32([0, 3, 1, 0])}, 4, kinds={"y": "labels"})["y"].max_abs
        == 3
    )
    none = np.zeros(0, np.float32)
    assert compared({"y": none}, {"y": none}, kinds={"y": "labels"})["y"].max_abs == 0


@pytest.mark.parametrize(
    ("want", "there"),
    [
        ([0.4, 0.6], [False, True]),  # probabilities
        ([0.4, 1.0], [False, True]),
        ([0.4, 1.5], [True, True]),  # scores that are never negative
        ([-0.4, 0.6], [False, True]),
    ],
)
def test_one_class_is_there_from_a_half_of_a_probability_or_from_0_of_a_score(want, there):
    pixels = np.float32(want).reshape(1, 1, 1, 2)
    for found in sums.answers(pixels, pixels):
        assert found.ravel().tolist() == there


def test_two_classes_are_told_by_the_larger_score():
    scores = np.float32([[3, -1], [1, 2]]).reshape(1, 2, 1, 2)
    for found in sums.answers(scores, scores):
        assert found.ravel().tolist() == [0, 1]


def test_the_iou_of_masks_counts_each_class_in_either():
    want, got = np.array([1, 1, 1, 2, 2, 0, 0]), np.array([1, 2, 2, 2, 2, 1, 0])
    overlap = sums.Overlap()
    overlap.add(want, got)
    assert overlap.mean_iou == pytest.approx(np.mean([1 / 2, 1 / 4, 2 / 4]))
    assert sums.Overlap().mean_iou is None


def test_rows_that_only_one_has_are_counted_by_their_values():
    want, got = np.array([[1, 2], [1, 2], [3, 4]]), np.array([[1, 2], [3, 4], [5, 6], [7, 8], [9, 9]])
    found = detections.as_multisets(want, got)
    assert sorted(map(tuple, found.reference)) == [(1, 2), (3, 4)]
    assert found.unmatched == (1 + 3) * 2


def test_of_labels_that_differ_the_first_are_kept_first():
    kept = Disagreements()
    kept.add(np.arange(20), np.arange(20) + 1)
    assert [one.sample for one in kept.kept] == list(range(12))


FLOORS = ("min_cosine", "min_top1", "min_top5", "min_iou", "min_box_iou")


@pytest.mark.parametrize("name", comparison.PRESETS)
def test_no_preset_lets_other_answers_pass(name):
    """Each floor is a share near 1, no floor is above FP32's, and only INT8 has no limit on single errors."""
    preset, strict = comparison.PRESETS[name], comparison.PRESETS["fp32"]
    for floor in FLOORS:
        least = 0.7 if floor == "min_box_iou" else 0.9
        assert least < getattr(preset, floor) < 1
        assert getattr(preset, floor) <= getattr(strict, floor)
    assert preset.min_top5 >= preset.min_top1
    assert 0 < preset.divergence < 0.5
    assert preset.atol < 0.01 or name == "int8"
    assert preset.rtol < 0.5


def text(body):
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x) => (float[2,3] y)'
    return graph.tidy(ir.from_onnx_text(f"{head} {{ {body} }}"))


def test_a_tensor_of_zeros_parts_from_what_is_not_zero():
    """The error is over 1 where the reference has no size of its own."""
    runtime = OrtRuntime(threads=1, optimize=False)
    one = text("z = Sub(x, x) a = Relu(z) y = Neg(a)")
    other = text("k = Constant<value = float {0.5}>() z = Sub(x, x) a = Add(z, k) y = Neg(a)")
    feeds = {"x": np.ones((2, 3), np.float32)}
    found = comparison.first_divergence(one, other, feeds, runtime=runtime, limit=1e-3)
    assert (found.tensor, found.relative_rms) == ("a", pytest.approx(0.5))
    assert comparison.first_divergence(one, one, feeds, runtime=runtime, limit=0.0) is None


def test_the_error_of_an_inner_tensor_is_over_its_own_size():
    runtime = OrtRuntime(threads=1, optimize=False)
    one = text("a = Relu(x) y = Neg(a)")
    other = text("k = Constant<value = float {1.25}>() r = Relu(x) a = Mul(r, k) y = Neg(a)")
    feeds = {"x": np.float32([[1, 2, 3], [4, 0, 1]])}
    found = comparison.first_divergence(one, other, feeds, runtime=runtime, limit=0.2)
    assert (found.tensor, found.relative_rms) == ("a", pytest.approx(0.25))
    assert comparison.first_divergence(one, other, feeds, runtime=runtime, limit=0.3) is None
