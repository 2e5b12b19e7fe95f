"""Small SE networks as ir.Model, for tests of plans: one convolution, one block, what follows."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir

from se_deploy import graph
from se_deploy.se_blocks.types import SEBlock

C, R, SIDE = 32, 8, 14

POOLS = {
    "gap": "p = GlobalAveragePool(m)",
    "mean": "p = ReduceMean<keepdims=1>(m, axes)",
    "avgpool": f"p = AveragePool<kernel_shape=[{SIDE},{SIDE}]>(m)",
    "nhwc": "t = Transpose<perm=[0,2,3,1]>(m) q = ReduceMean<keepdims=1>(t, axes12) "
    "p = Transpose<perm=[0,3,1,2]>(q)",
    "twice": "q = ReduceMean<keepdims=1>(m, axis3) p = ReduceMean<keepdims=1>(q, axis2)",
}
LAYERS = {
    "conv": "f1 = Conv(p, v1, b1) a = ACT(f1) f2 = Conv(a, v2, b2) g = Sigmoid(f2)",
    "view": "sh = Shape(m) i0 = Gather<axis=0>(sh, zero) u = Unsqueeze(i0, zero1) "
    "s2 = Concat<axis=0>(u, minus1) pl = Reshape(p, s2) "
    "f1 = Gemm<transB=1>(pl, w1, b1) a = ACT(f1) f2 = Gemm<transB=1>(a, w2, b2) "
    "gl = Sigmoid(f2) s4 = Concat<axis=0>(u, c11) g = Reshape(gl, s4)",
}
TAILS = {
    "none": "y = Mul(m, g)",
    "residual": "s = Mul(m, g) e = Add(s, x) y = Relu(e)",
    "conv": "s = Mul(m, g) y = Conv(s, w, b)",
}
OUTPUTS = {"none": "y", "residual": "s", "conv": "s"}


def se_net(pool="gap", layers="conv", tail="residual", *, act="Relu", dtype="float", batch="N"):
    """x -> Conv1x1 -> [block] -> tail; every node named after what it writes."""
    return _model("m = Conv(x, w, b)", pool, layers, tail, act=act, dtype=dtype, batch=batch)


def quantized_net(*, per_channel, dtype="float"):
    """Like `se_net`, its convolution behind Q/DQ with scales per tensor or per output channel."""
    text = (
        "xq = QuantizeLinear(x, sx, zx) xd = DequantizeLinear(xq, sx, zx) "
        "wd = DequantizeLinear<axis=0>(wq, sw, zw) m = Conv(xd, wd, b)"
    )
    shape = (C,) if per_channel else ()
    half = np.float16 if dtype == "float16" else np.float32
    extra = {
        "sx": np.array(0.05, half),
        "zx": np.array(0, np.int8),
        "wq": _rng().integers(-127, 127, (C, C, 1, 1)).astype(np.int8),
        "sw": np.full(shape, 0.001, half),
        "zw": np.zeros(shape, np.int8),
    }
    return _model(text, "gap", "conv", "residual", act="Relu", dtype=dtype, batch="N", extra=extra)


def block(model, tail="residual", layers="conv"):
    """The block of `se_net`, as the census would give it."""
    names = [n.name for n in model.graph]
    inside = names[names.index("n_m") + 1 : names.index(_scale(tail)) + 1]
    return SEBlock(
        output=OUTPUTS[tail],
        kind="se",
        channels=C,
        reduced=R,
        activation="relu",
        gate="sigmoid",
        form="conv" if layers == "conv" else "linear",
        spelling=(),
        squeeze_input="m",
        squeeze_output="p",
        gate_output="g",
        scale_node=_scale(tail),
        nodes=tuple(inside),
        layers=("n_f1", "n_f2"),
        params=2 * C * R + C + R,
        placement="linear-conv",
        followed_by="other",
    )


def unknown(block):
    """The same block as if a rewrite had renamed all its nodes: only its output is left."""
    return dataclasses.replace(block, nodes=("gone",), layers=("gone",), scale_node="gone")


def _model(head, pool, layers, tail, *, act, dtype, batch, extra=None):
    half = np.float16 if dtype == "float16" else np.float32
    rng = _rng()

    def weights(*shape):
        return (rng.standard_normal(shape) / 8).astype(half)

    arrays = {
        "w": weights(C, C, 1, 1), "b": weights(C), "v1": weights(R, C, 1, 1), "b1": weights(R),
        "v2": weights(C, R, 1, 1), "b2": weights(C), "w1": weights(R, C), "w2": weights(C, R),
        "axes": np.array([2, 3]), "axes12": np.array([1, 2]), "axis2": np.array([2]), "axis3": np.array([3]),
        "zero": np.array(0), "zero1": np.array([0]), "minus1": np.array([-1]), "c11": np.array([C, 1, 1]),
    } | (extra or {})  # fmt: skip
    body = f"{head} {POOLS[pool]} {LAYERS[layers].replace('ACT', act)} {TAILS[tail]}"
    used = {word.strip(",()") for word in body.replace("(", " ").replace(")", " ").split()}
    text = (
        f'<ir_version: 10, opset_import: ["":20]> g ({dtype}[{batch},{C},{SIDE},{SIDE}] x) => '
        f"({dtype}[{batch},{C},{SIDE},{SIDE}] y) {{ {body} }}"
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in used)
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    return graph.tidy(ir.from_proto(proto))


def _scale(tail):
    return f"n_{OUTPUTS[tail]}"


def _rng():
    return np.random.default_rng(0)
