"""What a network finds is compared as a set: its order is free, and nothing may be missing from it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from se_deploy import comparison, graph, verification
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.errors import BadInput
from se_deploy.verification import sets
from se_deploy.verification.sets import UNMATCHED

EXACT = OrtRuntime(threads=1, optimize=False)
CELLS = 64
HEAD = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 1, 8, 8] x) => ({outputs}) {{
    flat = Reshape(x, cells)
    score = Sigmoid(flat)
    nudge = Mul(flat, small)
    turned = Reshape(nudge, column)
    box = Add(grid, turned)
    picked = NonMaxSuppression(box, score, most, overlap, {least})
    index3 = Slice(picked, two, three, one)
    index = Reshape(index3, rest)
    flatbox = Reshape(box, rows)
    flatscore = Reshape(score, rest)
    b = Gather(flatbox, index)
    s = Gather(flatscore, index)
    {tail}
}}
"""
BOTH = "float[K, 4] boxes, float[K] scores"
AS_FOUND = "boxes = Identity(b) scores = Identity(s)"
REVERSED = "boxes = Slice(b, last, first, zero, back) scores = Slice(s, last, first, zero, back)"


def detector(tail, outputs=BOTH, least="half"):
    """A detector of one score a cell; boxes of 10x10 pixels whose corners move a little with the score."""
    proto = parser.parse_model(HEAD.format(tail=tail, outputs=outputs, least=least))
    y, x = np.divmod(np.arange(CELLS, dtype=np.float32), 8)
    corners = np.stack([20 * x, 20 * y, 20 * x + 10, 20 * y + 10], 1)[None]
    constants = {
        "cells": np.array([1, 1, CELLS]), "column": np.array([1, CELLS, 1]), "small": np.float32(0.1),
        "grid": corners, "most": np.array([CELLS]), "overlap": np.array([0.5], np.float32),
        "half": np.array([0.5], np.float32), "never": np.array([2.0], np.float32), "two": np.array([0, 2]),
        "three": np.array([2**31, 3]), "one": np.array([0, 1]), "rest": np.array([-1]),
        "rows": np.array([-1, 4]), "last": np.array([-1]), "first": np.array([-(2**31)]),
        "zero": np.array([0]), "back": np.array([-1]), "start": np.array([1]), "end": np.array([2**31]),
        "more": np.float32(1.001), "quarter": np.array([16]), "nan": np.float32(np.nan),
    }  # fmt: skip
    for name, array in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return graph.tidy(ir.from_proto(proto))


def verified(before, after, **options):
    with EXACT.open(before) as session:
        probes = verification.choose(before, session)
    expected = verification.expect(
        lambda: EXACT.open(before),
        probes,
        found=verification.found_by(before),
        kinds=options.pop("kinds", None),
    )
    with EXACT.open(after) as made:
        return verification.verify(expected, made, step="simplify", **options)


def test_another_order_of_what_was_found_passes():
    found = verified(detector(AS_FOUND), detector(REVERSED))
    assert found.passed, found.failures
    assert found.max_abs_error == 0, "of what belongs together"


@pytest.mark.parametrize(
    ("tail", "output", "measure"),
    [
        ("boxes = Slice(b, start, end, zero) scores = Slice(s, start, end, zero)", "boxes", UNMATCHED),
        ("r = Mul(s, more) boxes = Identity(b) scores = Identity(r)", "scores", "largest error"),
        ("r = Mul(b, more) boxes = Identity(r) scores = Identity(s)", "boxes", "largest error"),
        ("r = Add(s, nan) boxes = Identity(b) scores = Identity(r)", "scores", "largest error"),
        ("boxes = Identity(b) scores = Slice(s, last, first, zero, back)", "scores", "largest error"),
        ("boxes = Slice(b, start, end, zero) scores = Identity(s)", "boxes", UNMATCHED),
    ],
    ids=["one less", "scores", "boxes", "NaN", "scores of other boxes", "fewer boxes than scores"],
)
def test_what_is_wrong_in_a_set_is_found(tail, output, measure):
    found = verified(detector(AS_FOUND), detector(tail))
    failures = {failure.output: failure for failure in found.failures}
    assert output in failures, found
    assert failures[output].measure.startswith(measure)
    assert failures[output].error is None or failures[output].error > failures[output].limit


def test_where_nothing_was_found_nothing_was_compared_and_it_says_so():
    found = verified(detector(AS_FOUND, least="never"), detector(REVERSED, least="never"))
    assert found.passed
    assert found.warnings == (
        "output 'boxes': nothing was found on any check input, so that no boxes were compared",
        "output 'scores': nothing was found on any check input, so that no scores were compared",
    )


@pytest.mark.parametrize(
    ("tail", "passes"),
    [
        ("y = Identity(picked)", True),
        ("y = Slice(picked, last, first, zero, back)", True),
        ("y = Slice(picked, start, end, zero)", False),
    ],
)
def test_indices_of_what_was_selected_are_a_set_too(tail, passes):
    found = verified(detector("y = Identity(picked)", "int64[K, 3] y"), detector(tail, "int64[K, 3] y"))
    assert found.passed == passes
    assert passes or found.failures[0].measure.startswith(UNMATCHED)


def test_rows_that_no_operator_found_keep_their_order():
    """A plain list of labels is no set: the same graph without the suppression."""
    fixed = "i = Cast<to = 7>(flat) y = Reshape(i, rest)"
    turned = "i = Cast<to = 7>(flat) r = Reshape(i, rest) y = Slice(r, last, first, zero, back)"
    found = verified(detector(fixed, "int64[64] y"), detector(turned, "int64[64] y"))
    assert not found.passed


def test_a_lower_precision_is_held_to_its_own_overlap():
    int8 = comparison.PRESETS["int8"]
    one_less = "boxes = Slice(b, start, end, zero) scores = Slice(s, start, end, zero)"
    assert verified(detector(AS_FOUND), detector(one_less), tolerance=int8).passed
    few = "boxes = Slice(b, quarter, end, zero) scores = Slice(s, quarter, end, zero)"
    found = verified(detector(AS_FOUND), detector(few), tolerance=int8)
    assert not found.passed
    assert {failure.preset for failure in found.failures} == {"int8"}


def test_what_the_user_says_of_an_output_overrules_the_guess():
    assert not verified(detector(AS_FOUND), detector(REVERSED), kinds={"boxes": "values"}).passed
    with pytest.raises(BadInput, match="there is no output 'other'"):
        verified(detector(AS_FOUND), detector(AS_FOUND), kinds={"other": "boxes"})


@pytest.mark.parametrize(
    ("lost", "own", "wrong", "noted"),
    [
        (1, 0, True, False),
        (1, 1, False, True),
        (0, 1, False, False),
        (12, 9, True, False),
        (12, None, True, False),
    ],
)
def test_a_source_that_is_no_steadier_is_the_limit_and_a_note_says_so(lost, own, wrong, noted):
    """`lost`: rows that the candidate does not have; `own`: those that come and go in the source itself."""
    low = np.arange(16, dtype=np.float32)[:, None] * 20
    want = {"boxes": np.concatenate([low, low, low + 10, low + 10], 1)}
    # None: the source's own answer cannot even be brought together with itself
    again = [{"boxes": np.ones((16, 5), np.float32) if own is None else want["boxes"][own:]}]
    probe = verification.Probe("noise", {})
    judged = sets.judged({"boxes": "boxes"}, [probe], [(want, {"boxes": want["boxes"][lost:]})], [again])
    assert (judged.wrong["boxes"] is not None) == wrong
    assert any("the source itself moves by up to" in note for note in judged.notes) == noted


@pytest.mark.parametrize(("kinds", "passes"), [({}, True), ({"y": "labels"}, False)])
def test_a_lower_precision_is_measured_by_the_kind_that_was_named(kinds, passes):
    """Labels written as floats are held to equality, other numbers to the preset's error."""
    near = "k = Mul(flat, more) y = Identity(k)"
    outputs = "float[1, 1, 64] y"
    tolerance = comparison.PRESETS["fp16"]
    found = verified(
        detector("y = Identity(flat)", outputs), detector(near, outputs), tolerance=tolerance, kinds=kinds
    )
    assert found.passed == passes
