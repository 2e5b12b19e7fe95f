"""Small graphs of layers with constant weights, and the layers of them in INT8."""

import numpy as np
import onnx_ir as ir

from se_deploy import graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.quantization import QuantizedLayer

RUNTIME = OrtRuntime(threads=1, optimize=False)


def text(body, opset=20, inputs="float[N,4,8,8] x", output="float y"):
    return f'<ir_version: 10, opset_import: ["" : {opset}]>\ng ({inputs}) => ({output}) {{ {body} }}'


def model_of(body, constants=(), **kw):
    model = ir.from_onnx_text(text(body, **kw))
    values = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, array in constants:
        made = graph.initializer(model, f"{name}_c", np.asarray(array))
        values[name].replace_all_uses_with(made)
    return graph.tidy(graph.inline(model))


def run(model, **feeds):
    with RUNTIME.open(model) as session:
        return session.run(feeds)["y"]


def image(seed=0, channels=4, size=8):
    return np.random.default_rng(seed).standard_normal((2, channels, size, size)).astype(np.float32)


def weights(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 3


def conv(opset=20, attributes="pads = [1,1,1,1]"):
    """y = conv(relu(conv(x)))."""
    return model_of(
        f"a = Conv<pads = [1,1,1,1]>(x, w1) b = Relu(a) y = Conv<{attributes}>(b, w2)",
        [("w1", weights(4, 4, 3, 3)), ("w2", weights(6, 4, 3, 3, seed=2))],
        opset=opset,
        output="float[N,6,h,w] y",
    )


def layer_for(node, params):
    """Quantize a Conv's weights so finely that they are exact: 127 levels of integers."""
    w = graph.constant(node.inputs[1])
    equalization = 1.0 if params.equalization is None else params.equalization[:, None, None]
    offset = 0.0 if params.offset is None else params.offset[:, None, None]
    bias = (w * offset).sum(axis=(1, 2, 3)) if params.offset is not None else np.zeros(len(w))
    folded = w * equalization
    scale = np.maximum(np.abs(folded).max(axis=(1, 2, 3)) / 127, 1e-9)
    q = np.round(folded / scale[:, None, None, None])
    return QuantizedLayer(
        node.name, params, q.astype(np.int8), scale.astype(np.float32), 0, bias.astype(np.float32)
    )
