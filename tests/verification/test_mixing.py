"""A network that does not answer sample by sample is pointed out, and one that does is not."""

from __future__ import annotations

import numpy as np
import pytest
from layer_graphs import RUNTIME, model_of

from se_deploy import verification

CONSTANTS = [
    ("first", np.array([0])), ("second", np.array([1])), ("two", np.array([2, -1])),
    ("pairs", np.array([-1, 2])),
    ("prior", np.ones((5, 4), np.float32)),
]  # fmt: skip


def told(body, *, inputs="float[N,4] x", output="float y"):
    """The warnings of a file whose steps changed nothing."""
    used = [(name, array) for name, array in CONSTANTS if f" {name}" in body or f"({name}" in body]
    model = model_of(body, used, inputs=inputs, output=output)
    with RUNTIME.open(model) as session:
        probes = verification.choose(model, session)
    expected = verification.expect(lambda: RUNTIME.open(model), probes, found=verification.found_by(model))
    with RUNTIME.open(model) as session:
        found = verification.verify(expected, session, step="export")
    assert found.passed, found.failures
    return found.warnings


OF_THEIR_OWN = {
    "element by element": "y = Relu(x)",
    "over its classes": "y = Softmax<axis = 1>(x)",
    "two rows for each": "y = Reshape(x, pairs)",
    "one number for each": "y = ReduceMean<keepdims = 0>(x, second)",
    "labels": "y = ArgMax<axis = 1, keepdims = 0>(x)",
    "priors of a detector": "y = Identity(prior)",
    "what an operator finds": "y = NonZero(x)",
}
MIXED = {
    "a mean over the batch": ("m = ReduceMean(x, first) y = Sub(x, m)", "otherwise"),
    "a softmax over the batch": ("y = Softmax<axis = 0>(x)", "otherwise"),
    "the largest of a batch": (
        "m = ArgMax<axis = 0, keepdims = 1>(x) k = Shape(x) y = Expand(m, k)",
        "otherwise",
    ),
    "a running sum from behind": ("z = Squeeze(first) y = CumSum<reverse = 1>(x, z)", "otherwise"),
    "a running sum": ("z = Squeeze(first) y = CumSum(x, z)", "otherwise"),
    "a fixed first axis": ("y = Reshape(x, two)", "2 for 3 samples"),
    "the batch last": ("y = Transpose<perm = [1, 0]>(x)", "4 for 3 samples"),
    "one number": ("y = ReduceMean<keepdims = 0>(x)", "it is one number"),
}


@pytest.mark.parametrize("body", OF_THEIR_OWN.values(), ids=OF_THEIR_OWN)
@pytest.mark.parametrize("batch", ["N", "3"])
def test_answers_of_their_own_are_no_matter(body, batch):
    kind = "int64" if "ArgMax" in body or "NonZero" in body else "float"
    beside = "r = Relu(x) " if "prior" in body else ""
    output = f"{kind} y" + (", float r" if beside else "")
    assert told(beside + body, inputs=f"float[{batch},4] x", output=output) == ()


@pytest.mark.parametrize(("body", "what"), MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("batch", ["N", "3"])
def test_answers_that_hang_together_are_pointed_out_with_what_to_do(body, what, batch):
    """Calibration, parity and predict feed batches of other sizes, in slices, padded: nothing said so."""
    kind = "int64" if "ArgMax" in body else "float"
    (warning,) = told(body, inputs=f"float[{batch},4] x", output=f"{kind} y")
    assert "output 'y'" in warning
    assert what in warning
    assert "export with" in warning


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("batch", [2, 5])
def test_a_sequence_is_no_batch_whichever_way_it_is_read(reverse, batch):
    """Read from its beginning it answers its first row by that alone, and only that row was looked at."""
    (warning,) = told(
        f"z = Squeeze(first) y = CumSum<reverse = {reverse}>(x, z)", inputs=f"float[{batch},4] x"
    )
    assert "otherwise" in warning


@pytest.mark.parametrize("width", [6, 12])
def test_a_first_axis_that_is_a_multiple_by_chance_is_none(width):
    """6 is two rows for each of 3 samples, and three for each of 2."""
    (warning,) = told("y = Transpose<perm = [1, 0]>(x)", inputs=f"float[N,{width}] x")
    assert f"{width} for 3 samples and {width} for 2 samples" in warning


def test_data_that_is_fed_to_a_frozen_graph_in_slices_says_nothing_of_a_batch():
    model = model_of("y = Relu(x) z = Reshape(x, two)", CONSTANTS[2:3], inputs="float[4,4] x",
                     output="float y, float z")  # fmt: skip
    data = {"x": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)}
    with RUNTIME.open(model) as session:
        probes = verification.choose(model, session, data=data)
    (warning,) = verification.expect(lambda: RUNTIME.open(model), probes).mixing
    assert "'z' has no row for each sample: 2 for 4 samples." in warning


@pytest.mark.parametrize("inputs", ["float[1,4] x", "float[N,4] x, float[2,4] z"])
def test_one_sample_depends_on_no_other_and_what_counts_none_is_left_alone(inputs):
    body = "y = Softmax<axis = 0>(x)"
    if "z" in inputs:
        body = "y = Softmax<axis = 0>(x) r = Relu(z)"
    assert told(body, inputs=inputs, output="float y, float r" if "z" in inputs else "float y") == ()
