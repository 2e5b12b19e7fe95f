"""`assert_parity` on what people hand it: several inputs, scalars, lists, modules."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from se_deploy.errors import BadInput
from se_deploy.pytest_plugin import assert_parity as compared

RELU = "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
SCALED = "(float[N,3] x, float gain) => (float[N,3] y) { y = Mul(x, gain) }"
TWO = "(float[N,3] x, float[M,3] state) => (float[N,3] y, float[M,3] z) { y = Relu(x) z = Relu(state) }"


@pytest.fixture
def file(tmp_path):
    """What makes an ONNX file of a graph."""

    def made(name, text):
        path = tmp_path / f"{name}.onnx"
        onnx.save(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}'), path)
        return path

    return made


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3), np.float32)


def test_a_scalar_is_fed_to_every_batch(file):
    same, other = file("a", SCALED), file("b", SCALED)
    compared(same, other, data={"x": rows(40), "gain": np.float32(2)})
    compared(same, other, data={"x": rows(40), "gain": 2.0 * np.ones((), np.float32)})


def test_every_row_is_compared_where_arrays_have_several_lengths(file):
    other = TWO.replace("y = Relu(x)", "h = Relu(x) big = Constant<value_float=50.0>() y = Min(h, big)")
    x = rows(40)
    x[30] = 90
    with pytest.raises(pytest.fail.Exception, match="'y': largest error"):
        compared(file("a", TWO), file("b", other), data={"x": x, "state": rows(3)})
    compared(file("a", TWO), file("c", TWO), data={"x": x, "state": rows(3)})


def test_lists_and_tensors_are_arrays(file):
    torch = pytest.importorskip("torch")
    one, other = file("a", RELU), file("b", RELU)
    compared(one, other, data=np.ones((4, 3), np.float32).tolist())
    compared(one, other, data=torch.ones(4, 3))


def test_a_module_takes_arrays_by_the_file_s_names(file):
    torch = pytest.importorskip("torch")
    compared(torch.nn.ReLU(), file("a", RELU), data={"x": rows(40)})
    compared(file("a", RELU), torch.nn.ReLU(), data={"x": rows(40)})
    with pytest.raises(pytest.fail.Exception, match="no parity"):
        compared(torch.nn.Sigmoid(), file("a", RELU), data={"x": rows(40)})


def test_names_of_neither_are_refused(file):
    with pytest.raises(BadInput, match="was fed 'q'"):
        compared(file("a", RELU), file("b", RELU), data={"q": rows(4)})


def test_no_samples_are_no_parity(file):
    with pytest.raises(BadInput, match="no sample"):
        compared(file("a", RELU), file("b", RELU), data=rows(0))
