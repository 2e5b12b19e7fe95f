"""Small Q/DQ graphs as text: a chain of INT8 convolutions, and one fault at a time."""

import numpy as np
import onnx_ir as ir

from se_deploy import graph

CHANNELS, SIDE = 8, 14
HEAD = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[{n},8,14,14] x) => (float[{n},8,14,14] y)
<float nothing = {{0.0}}, float s = {{0.05}}, float s2 = {{0.07}},
 int8 z = {{0}}, int8 z3 = {{3}}, uint8 u0 = {{0}},
 float[8] channel_scales, int8[8] channel_zeros>
{{ {body} }}
"""


def pair(value, name, scale="s", zero="z"):
    """`name` = value, quantized and dequantized."""
    return (
        f" {name}_q = QuantizeLinear({value}, {scale}, {zero})"
        f" {name} = DequantizeLinear({name}_q, {scale}, {zero}) "
    )


def conv(value, name, attributes="pads = [1, 1, 1, 1]"):
    """`name` = an INT8 convolution of `value`, with weights that are stored as INT8."""
    weights = f" {name}_w = DequantizeLinear(int8_{name}, s, z) "
    return f"{weights} {name} = Conv<{attributes}>({value}, {name}_w, b_{name}) "


def float_conv(value, name):
    return f" {name} = Conv<pads = [1, 1, 1, 1]>({value}, w_{name}, b_{name}) "


def model(body, batch="N"):
    """The graph of `body` with constants for what it reads and nobody makes."""
    found = ir.from_onnx_text(HEAD.format(n=batch, body=body))
    random = np.random.default_rng(0)
    known = {v.name for n in found.graph for v in n.outputs} | {v.name for v in found.graph.inputs}
    missing = {v.name for n in found.graph for v in n.inputs if v is not None and v.name not in known}
    for name in sorted(missing):
        value = next(v for n in found.graph for v in n.inputs if v is not None and v.name == name)
        if value.const_value is None:
            array = _constant(name, random)
            for node in found.graph:
                for slot, read in enumerate(node.inputs):
                    if read is not None and read.name == name and read.const_value is None:
                        node.replace_input_with(slot, graph.initializer(found, f"{name}_c", array))
    return graph.tidy(graph.inline(found))


def _constant(name, random):
    c = CHANNELS
    if name == "channel_scales":
        return np.linspace(0.05, 0.1, c, dtype=np.float32)
    if name == "channel_zeros":
        return np.zeros(c, np.int8)
    if name == "integers":
        return np.arange(c, dtype=np.int32)
    if name == "integer_zeros":
        return np.zeros(c, np.int32)
    if name == "block_scales":
        return random.uniform(0.5, 2, (c, c // 4, 3, 3)).astype(np.float32)
    if name.startswith("int8_"):
        return random.integers(-127, 128, (c, c, 3, 3)).astype(np.int8)
    if name.startswith("w_"):
        return random.standard_normal((c, c, 3, 3)).astype(np.float32)
    if name.startswith("fc_"):
        return random.standard_normal((c, c, 1, 1)).astype(np.float32)
    if name.startswith("b_"):
        return random.standard_normal(c).astype(np.float32)
    if name.startswith("c_"):
        return random.uniform(0.5, 2, (1, c, 1, 1)).astype(np.float32)
    if name == "edges":
        return np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    raise KeyError(name)


FIRST = pair("x", "xq") + conv("xq", "a")
"""x, quantized, and the first convolution: `a`."""


def last(value, scale="s2"):
    """`value`, quantized, and the last convolution: `y`."""
    return pair(value, "last", scale) + conv("last", "y")
