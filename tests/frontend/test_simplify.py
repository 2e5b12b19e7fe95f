"""The simplified graph calls a tensor by another name where it holds other numbers."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from se_deploy import comparison, graph
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.frontend.simplify import simplify

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,4,8,8] z) {{
    {}
    {}
}}"""
SHAPES = {"w": (4, 3, 1, 1), "t": (1, 4, 1, 1), "s": (4, 1, 1, 1), "g": (4,), "b": (4,), "m": (4,), "v": (4,)}
BATCH = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)


def model(nodes, first="y = Conv(x, w)"):
    proto = parser.parse_model(NET.format(first, nodes))
    rng = np.random.default_rng(0)
    read = {name for node in proto.graph.node for name in node.input}
    for name, shape in SHAPES.items():
        if name in read:
            array = np.abs(rng.standard_normal(shape)).astype(np.float32) + 0.1
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return graph.tidy(graph.inline(ir.from_proto(proto)))


@pytest.mark.parametrize(
    ("nodes", "holds"),
    [
        ("a = Add(y, t)  z = Relu(a)", "a"),
        ("a = BatchNormalization(y, g, b, m, v)  z = Relu(a)", "a"),
        ("a = BatchNormalization(y, g, b, m, v)  c = Add(a, t)  z = Relu(c)", "a"),  # the Add stays
        ("z = Add(y, t)", "z"),
        ("z = Relu(y)", "y"),
    ],
)
def test_a_convolution_that_took_in_what_follows_is_called_by_it(nodes, holds):
    given = model(nodes)
    made = simplify(given).model
    (convolution,) = (node for node in made.graph if node.op_type == "Conv")
    assert convolution.outputs[0].name == holds
    runtime = registry.graph_runtime(SessionOptions(exact=True))
    assert comparison.first_divergence(given, made, {"x": BATCH}, runtime=runtime, limit=1e-4) is None


@pytest.mark.parametrize(
    ("nodes", "holds"),
    [("z = Relu(y)", "y"), ("a = Mul(y, t)  z = Relu(a)", "a")],
)
def test_weights_that_the_graph_computes_are_no_reason_for_another_name(nodes, holds):
    """As of weight standardization: a name is a tensor's as long as nothing behind it was folded in."""
    given = model(nodes, first="k = Mul(w, s)  y = Conv(x, k)")
    made = simplify(given).model
    (convolution,) = (node for node in made.graph if node.op_type == "Conv")
    assert convolution.outputs[0].name == holds
    runtime = registry.graph_runtime(SessionOptions(exact=True))
    assert comparison.first_divergence(given, made, {"x": BATCH}, runtime=runtime, limit=1e-4) is None
