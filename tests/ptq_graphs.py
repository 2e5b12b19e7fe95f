"""A small SE network with uneven channels, and samples for it."""

import numpy as np
import onnx_ir as ir

from se_deploy import data, graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.protocols import TensorSpec
from se_deploy.quantization import QuantizeOptions

RUNTIME = OrtRuntime(threads=1, optimize=False)
FAST = QuantizeOptions(method="mse", gptq=False, float_macs=0.0)

NETWORK = """
<ir_version: 10, opset_import: ["" : 20]>
network (float[{batch},3,16,16] x) => (float[{batch},10] y) {{
  a = Conv<pads = [1,1,1,1]>(x, w0, b0)
  b = Relu(a)
  c = Conv<pads = [1,1,1,1], group = 8>(b, w1, b1)
  d = HardSwish(c)
  p = GlobalAveragePool(d)
  f = Conv(p, w2, b2)
  g = Relu(f)
  h = Conv(g, w3, b3)
  s = Sigmoid(h)
  e = Mul(d, s)
  i = Conv<strides = [2,2], pads = [1,1,1,1]>(e, w4)
  j = Relu(i)
  k = GlobalAveragePool(j)
  l = Flatten(k)
  y = Gemm<transB = 1>(l, w5, b5)
}}
"""
SHAPES = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "b1": (8,), "w2": (4, 8, 1, 1), "b2": (4,),
    "w3": (8, 4, 1, 1), "b3": (8,), "w4": (16, 8, 3, 3), "w5": (10, 16), "b5": (10,),
}  # fmt: skip


def network(batch="N"):
    """A small SE network with uneven channels, as trained ones have."""
    model = ir.from_onnx_text(NETWORK.format(batch=batch))
    random = np.random.default_rng(0)
    values = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, shape in SHAPES.items():
        array = random.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
        array *= np.geomspace(0.3, 3, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
        values[name].replace_all_uses_with(graph.initializer(model, f"{name}_c", array.astype(np.float32)))
    return graph.tidy(graph.inline(model))


def dataset(tmp_path, count=24, labels=False):
    random = np.random.default_rng(1)
    x = random.standard_normal((count, 3, 16, 16)).astype(np.float32).cumsum(axis=3) / 4
    y = {"labels": random.integers(0, 10, count)} if labels else {}
    np.savez(tmp_path / "x.npz", x=x, **y)
    return data.read(tmp_path / "x.npz", [TensorSpec("x", np.dtype(np.float32), (None, 3, 16, 16))])


def samples_of(tmp_path, **arrays):
    """Samples of one input: its name and array (N, ...)."""
    (name, array), *_ = arrays.items()
    np.savez(tmp_path / "given.npz", **{name: array.astype(np.float32)})
    return data.read(
        tmp_path / "given.npz", [TensorSpec(name, np.dtype(np.float32), (None, *array.shape[1:]))]
    )


def layers_of(model):
    return [node for node in model.graph if node.op_type in {"Conv", "Gemm", "MatMul"}]


def is_int8(node):
    return all(
        v.producer() is not None and v.producer().op_type == "DequantizeLinear" for v in node.inputs[:2]
    )


def zero_points(model):
    points = [
        graph.constant(node.inputs[2])
        for node in model.graph
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    return {int(v) for array in points for v in np.unique(array)}
