"""Small graphs on which deployment tools go wrong or stay silent, each for a kind; random weights, seeded."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

CHANNELS, REDUCED, CLASSES = 8, 4, 5

GATE = """
    q = Conv(p, s1)
    q1 = Relu(q)
    q2 = Conv(q1, s2)
    g = Sigmoid(q2)
    m = Mul(r, g)
"""
HEAD = """
    pp = GlobalAveragePool({y})
    fl = Flatten(pp)
    y = Gemm<transB = 1>(fl, fw, fb)
"""
STEM = "c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) "
SHAPES = {
    "w": (CHANNELS, 3, 3, 3),
    "w2": (CHANNELS, CHANNELS, 3, 3),
    "s1": (REDUCED, CHANNELS, 1, 1),
    "s2": (CHANNELS, REDUCED, 1, 1),
    "fw": (CLASSES, CHANNELS),
    "fb": (CLASSES,),
    "ga": (CHANNELS,),
    "be": (CHANNELS,),
    "mu": (CHANNELS,),
}


def graph(body, *, x="float[N,3,16,16] x", out=f"float[N,{CLASSES}] y", opset=17, constants=None):
    """Write a graph; every name of SHAPES in it is a seeded weight, `constants` are further ones."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({out}) {{ {body} }}'
    )
    arrays = {name: (rng.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in SHAPES.items()}
    arrays |= {name: np.asarray(array) for name, array in (constants or {}).items()}
    read = {name for node in model.graph.node for name in node.input}
    for name in sorted(read & arrays.keys()):
        model.graph.initializer.append(numpy_helper.from_array(arrays[name], name))
    return model


def sum_by_ten(x="float[N,3,h,w] x"):
    """A sum over height and width that is divided by ten: no mean, whatever the size."""
    body = STEM + "su = ReduceSum<keepdims = 1>(r, ax) p = Div(su, d)" + GATE + HEAD.format(y="m")
    return graph(body, x=x, constants={"ax": np.array([2, 3]), "d": np.float32(10)})


def large_sum():
    """A squeeze as a sum that is divided by its inverse count: 112 x 112 numbers of 6 leave FP16's range."""
    body = (
        "c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w, b6) r = Clip(c, low, high) "
        "su = ReduceSum<keepdims = 1>(r, ax) p = Mul(su, inverse)" + GATE + HEAD.format(y="m")
    )
    bias = np.full(CHANNELS, 6, np.float32)
    return graph(
        body,
        x="float[N,3,224,224] x",
        constants={
            "b6": bias, "low": np.float32(0), "high": np.float32(60), "ax": np.array([2, 3]),
            "inverse": np.float32(1 / 112 / 112),
        },
    )  # fmt: skip


def tiny_eps():
    """An eps that FP16 rounds to 0, beside a variance of 0."""
    norm = (
        "mu0 = ReduceMean<axes = [1], keepdims = 1>(m) d = Sub(m, mu0) d2 = Mul(d, d) "
        "v = ReduceMean<axes = [1], keepdims = 1>(d2) ve = Add(v, eps) sd = Sqrt(ve) ln = Div(d, sd)"
    )
    body = STEM + "p = GlobalAveragePool(r)" + GATE + norm + HEAD.format(y="ln")
    zeros = {"w": np.zeros(SHAPES["w"], np.float32), "s2": np.zeros(SHAPES["s2"], np.float32)}
    return graph(body, constants={"eps": np.float32(1e-12), **zeros})


def dead_branch():
    """A branch that no calibration image wakes: its bias keeps its ReLU at 0."""
    body = STEM.replace("r = Relu(c)", "r0 = Relu(c)")
    body += "e = Conv<pads = [1, 1, 1, 1]>(r0, w2, kb) d = Relu(e) z = Conv<pads = [1, 1, 1, 1]>(d, w2) "
    body += "r = Add(z, r0) p = GlobalAveragePool(r)" + GATE + HEAD.format(y="m")
    return graph(body, constants={"kb": np.full(CHANNELS, -100, np.float32)})


def taken_names():
    """Tensors that are called as a quantizer would call its own."""
    body = "w_int8 = Conv<pads = [1, 1, 1, 1]>(x, w) w_scale = Relu(w_int8) p = GlobalAveragePool(w_scale)"
    body += GATE.replace("(r, g)", "(w_scale, g)").replace("m =", "int8_zero =")
    body += "w2_scale = Conv<pads = [1, 1, 1, 1]>(int8_zero, w2) x_scale = GlobalAveragePool(w2_scale)"
    return graph(body, out=f"float[N,{CHANNELS},1,1] x_scale")


def training_batch_norm():
    """A BatchNormalization in training mode: it normalizes by the batch's own statistics."""
    body = (
        "c = Conv<pads = [1, 1, 1, 1]>(x, w) bn, m1, v1, sm, sv = BatchNormalization(c, ga, be, mu, va) "
        "r = Relu(bn) p = GlobalAveragePool(r)" + GATE + HEAD.format(y="m")
    )
    return graph(body, opset=12, constants={"va": np.linspace(0.5, 1, CHANNELS, dtype=np.float32)})


def auto_pad():
    """Convolutions that pad as the size asks for, with height and width free."""
    body = (
        'c = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w) r0 = Relu(c) '
        'c2 = Conv<auto_pad = "SAME_UPPER">(r0, w2) r = Relu(c2) p = GlobalAveragePool(r)'
        + GATE
        + HEAD.format(y="m")
    )
    return graph(body, x="float[N,3,h,w] x")


def scalar_factor():
    """A gate beside a learned factor of rank 0, which is an input."""
    body = (
        STEM
        + "p = GlobalAveragePool(r)"
        + GATE
        + "sa = Sigmoid(alpha) ra = Mul(r, sa) z = Add(m, ra)"
        + HEAD.format(y="z")
    )
    return graph(body, x="float[N,3,16,16] x, float alpha")


def huge_range():
    """Some hundred bytes that ask for gigabytes."""
    body = "k = Range(a, b, c) km = ReduceMax<keepdims = 0>(k) y = Add(x, km)"
    numbers = {"a": np.float32(0), "b": np.float32(2**31), "c": np.float32(1)}
    return graph(body, x="float[N,3] x", out="float[N,3] y", constants=numbers)


def escape_in_a_name():
    """A tensor whose name would colour a terminal red."""
    model = frozen_batch("N")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["m\x1b[31mred" if name == "m" else name for name in names]
    return model


def frozen_batch(batch=8):
    """One SE block and a classifier, for exactly eight images."""
    body = STEM + "p = GlobalAveragePool(r)" + GATE + HEAD.format(y="m")
    return graph(body, x=f"float[{batch},3,16,16] x", out=f"float[{batch},{CLASSES}] y")


MEAN, STD = np.float32((123.675, 116.28, 103.53)), np.float32((58.395, 57.12, 57.375))
"""Of bytes, as a graph that takes frames applies them itself."""


def frames(x="uint8[N,32,32,3] img"):
    """Camera frames, cast, turned and normalized inside; out come the best class and the probabilities."""
    body = (
        "xf = Cast<to = 1>(img) xt = Transpose<perm = [0, 3, 1, 2]>(xf) x0 = Sub(xt, mean) x1 = Div(x0, std) "
        "c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x1, w) r = HardSwish(c) p = GlobalAveragePool(r)"
        + GATE
        + HEAD.format(y="m").replace("y =", "logits =")
        + "class = ArgMax<axis = 1, keepdims = 0>(logits) prob = Softmax<axis = 1>(logits)"
    )
    constants = {"mean": MEAN.reshape(1, 3, 1, 1), "std": STD.reshape(1, 3, 1, 1)}
    return graph(body, x=x, out=f"int64[N] class, float[N,{CLASSES}] prob", constants=constants)


def save(model, path):
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
