"""A graph without its quantizers computes what it did, up to the rounding that they made."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from se_deploy import graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.quantization.without_qdq import without_qdq

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[N,4,6,6] x, float s, int8 z, int8[8,4,3,3] wq, float[8] ws, int8[8] wz) => (float[N,8,6,6] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    w = DequantizeLinear<axis = 0>(wq, ws, wz)
    y = Conv<pads = [1, 1, 1, 1]>(d, w)
}"""


def quantized(scale):
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(TEXT)
    for name, array in {
        "s": np.array(scale, np.float32), "z": np.zeros((), np.int8),
        "wq": rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.01, 8).astype(np.float32), "wz": np.zeros(8, np.int8),
    }.items():  # fmt: skip
        value = next(v for v in model.graph.inputs if v.name == name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return graph.tidy(model)


def answer(model, x):
    with OrtRuntime(optimize=False).open(model) as session:
        return session.run({"x": x})["y"]


@pytest.mark.parametrize("scale", [1e-2, 1e-4])
def test_what_is_left_is_the_float_graph(scale):
    given = quantized(scale)
    x = (np.random.default_rng(1).integers(-127, 128, (2, 4, 6, 6)) * scale).astype(np.float32)  # on the grid
    made = without_qdq(given)
    assert [node.op_type for node in made.graph] == ["Conv"]
    np.testing.assert_allclose(answer(made, x), answer(given, x), rtol=1e-5, atol=1e-4 * scale)
    assert [node.op_type for node in given.graph].count("DequantizeLinear") == 2, "the given graph is kept"


def test_a_computed_scale_stays():
    given = quantized(1e-2)
    dequantize = next(n for n in given.graph if n.outputs[0].name == "w")
    computed = ir.node("Abs", [dequantize.inputs[1]])
    given.graph.insert_before(dequantize, computed)
    computed.outputs[0].name = "computed"
    dequantize.replace_input_with(1, computed.outputs[0])
    made = without_qdq(given)
    assert [n.op_type for n in made.graph if n.op_type.startswith(("Quant", "Dequant"))] == [
        "DequantizeLinear"
    ]
