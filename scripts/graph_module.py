"""An ONNX graph as a PyTorch module, for timing on a machine that has PyTorch and nothing of this project.

    python scripts/graph_module.py OUT_DIR FILE.onnx...

writes each file as OUT_DIR/NAME.json.gz without its large weights: ten networks in three forms are 140 kB,
and time does not depend on weights. `Module` reads such a file with seeded random weights; it needs the
standard library, numpy and PyTorch, and knows the operators of the networks that are timed.
"""

# ruff: noqa: N802, ANN001, ANN202 - operators have ONNX's own names, and all of them one signature
from __future__ import annotations

import base64
import gzip
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

KEPT_ELEMENTS = 64  # constants up to this size travel, and all integers: shapes and limits depend on them
TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16}
"""PyTorch's types by ONNX's numbers."""

LOWEST = -60_000.0  # below every FP16 activation: what a maximum over padding must not take


def packed(path: Path) -> dict[str, Any]:
    """Return a graph as JSON holds it: nodes, inputs, outputs, and of large weights the shape alone."""
    import onnx  # noqa: PLC0415 - the machine that times has none
    from onnx import numpy_helper  # noqa: PLC0415

    graph = onnx.load(path).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    nodes = []
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(attributes["value"])
            continue
        plain = {
            name: value.decode()
            if isinstance(value, bytes)
            else value
            if isinstance(value, (int, float))
            else list(value)
            for name, value in attributes.items()
        }
        nodes.append(
            {"op": node.op_type, "inputs": list(node.input), "outputs": list(node.output), "attrs": plain}
        )
    inits = {}
    for name, array in constants.items():
        inits[name] = {"shape": list(array.shape), "dtype": array.dtype.str}
        if array.size <= KEPT_ELEMENTS or array.dtype.kind != "f":
            inits[name]["data"] = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    taken = [
        {"name": value.name, "shape": [d.dim_value or 0 for d in value.type.tensor_type.shape.dim]}
        for value in graph.input
    ]
    return {
        "name": path.name, "inputs": taken, "outputs": [value.name for value in graph.output],
        "nodes": nodes, "inits": inits,
    }  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    """Return a packed graph."""
    with gzip.open(path, "rt") as file:
        found: dict[str, Any] = json.load(file)
    return found


class Module(torch.nn.Module):
    """A packed graph of one input."""

    def __init__(self, graph: dict[str, Any], weights: dict[str, np.ndarray] | None = None) -> None:
        """`weights`: by name, in place of random ones."""
        super().__init__()
        self.graph = graph
        self.input_name = graph["inputs"][0]["name"]
        self.buffer_names: dict[str, str] = {}
        self.integers: dict[str, list[int]] = {}
        self.scalars: dict[str, float] = {}
        rng = np.random.default_rng(0)
        for number, (name, stored) in enumerate(graph["inits"].items()):
            array = (weights or {}).get(name)
            array = _array(stored, rng) if array is None else array
            if array.dtype.kind != "f":
                self.integers[name] = [int(value) for value in np.ravel(array)]
                continue
            if array.size == 1:
                self.scalars[name] = float(array.reshape(()))
            self.buffer_names[name] = f"weight_{number}"
            self.register_buffer(f"weight_{number}", torch.from_numpy(np.array(array)), persistent=False)

    def channels_last(self) -> Module:
        """Lay the weights of convolutions out as a GPU's tensor cores read them."""
        for name, buffer in list(self.named_buffers()):
            if buffer.ndim == 4:  # noqa: PLR2004 - (O, I, H, W)
                setattr(self, name, buffer.contiguous(memory_format=torch.channels_last))
        return self

    def in_float32(self) -> Module:
        """Compute in FP32, as a CPU does well: casts to FP16 become casts to FP32."""
        for node in self.graph["nodes"]:
            if node["op"] == "Cast" and node["attrs"]["to"] == 10:  # noqa: PLR2004 - ONNX's FLOAT16
                node["attrs"]["to"] = 1
        return self.float()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the nodes in their order."""
        values = {self.input_name: x}
        values |= {name: getattr(self, buffer) for name, buffer in self.buffer_names.items()}
        for node in self.graph["nodes"]:
            given = [values.get(name) for name in node["inputs"]]
            values[node["outputs"][0]] = getattr(self, f"_{node['op']}")(given, node["attrs"], node["inputs"])
        return tuple(values[name] for name in self.graph["outputs"])

    # Each operator takes its tensors, its attributes and the names of its inputs: integers are read by name.

    def _Conv(self, given, attrs, _names):
        x, weight, bias = (*given, None)[:3]
        before, after = _pads(attrs)
        if before != after:
            x, before = F.pad(x, (before[1], after[1], before[0], after[0])), (0, 0)
        strides, dilations = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
        return F.conv2d(x, weight, bias, strides, before, dilations, attrs.get("group", 1))

    def _MaxPool(self, given, attrs, _names):
        (x,), (before, after) = given, _pads(attrs)
        if before != after:
            x = F.pad(x, (before[1], after[1], before[0], after[0]), value=LOWEST)
            before = (0, 0)
        strides, ceil = attrs.get("strides", [1, 1]), bool(attrs.get("ceil_mode", 0))
        return F.max_pool2d(x, attrs["kernel_shape"], strides, before, 1, ceil)

    def _AveragePool(self, given, attrs, _names):
        before, after = _pads(attrs)
        if list(given[0].shape[2:]) == attrs["kernel_shape"] and before == after == (0, 0):
            return given[0].mean((2, 3), keepdim=True)  # PyTorch's pool sums a window one by one
        counted = bool(attrs.get("count_include_pad", 0))
        strides, ceil = attrs.get("strides", [1, 1]), bool(attrs.get("ceil_mode", 0))
        return F.avg_pool2d(given[0], attrs["kernel_shape"], strides, before, ceil, counted)

    def _GlobalAveragePool(self, given, _attrs, _names):
        return given[0].mean((2, 3), keepdim=True)

    def _reduced(self, reduce, given, attrs, names):
        axes = attrs["axes"] if "axes" in attrs else self.integers[names[1]]
        return reduce(given[0], axes, keepdim=bool(attrs.get("keepdims", 1)))

    def _ReduceMean(self, given, attrs, names):
        return self._reduced(torch.mean, given, attrs, names)

    def _ReduceSum(self, given, attrs, names):
        return self._reduced(torch.sum, given, attrs, names)

    def _Relu(self, given, _attrs, _names):
        return torch.relu(given[0])

    def _Sigmoid(self, given, _attrs, _names):
        return torch.sigmoid(given[0])

    def _HardSigmoid(self, given, attrs, _names):
        alpha, beta = attrs.get("alpha", 0.2), attrs.get("beta", 0.5)
        if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:  # noqa: PLR2004 - PyTorch's own
            return F.hardsigmoid(given[0])
        return (given[0] * alpha + beta).clamp(0, 1)

    def _HardSwish(self, given, _attrs, _names):
        return F.hardswish(given[0])

    def _Clip(self, given, _attrs, names):
        low, high = (self.scalars.get(name) for name in [*names, "", ""][1:3])
        return given[0].clamp(low, high)

    def _Mul(self, given, _attrs, _names):
        return given[0] * given[1]

    def _Add(self, given, _attrs, _names):
        return given[0] + given[1]

    def _MatMul(self, given, _attrs, _names):
        return given[0] @ given[1]

    def _Gemm(self, given, attrs, _names):
        x, weight, bias = (*given, None)[:3]
        return F.linear(x, weight if attrs.get("transB") else weight.t(), bias)

    def _Concat(self, given, attrs, _names):
        return torch.cat(given, attrs["axis"])

    def _Reshape(self, given, _attrs, names):
        wanted = self.integers[names[1]]
        return given[0].reshape([given[0].shape[i] if size == 0 else size for i, size in enumerate(wanted)])

    def _Flatten(self, given, attrs, _names):
        return given[0].flatten(attrs.get("axis", 1))

    def _Transpose(self, given, attrs, _names):
        return given[0].permute(attrs["perm"])

    def _Cast(self, given, attrs, _names):
        return given[0].to(TYPES[attrs["to"]])

    def _Slice(self, given, _attrs, names):
        starts, ends = self.integers[names[1]], self.integers[names[2]]
        axes = self.integers[names[3]] if len(names) > 3 else range(len(starts))  # noqa: PLR2004 - its place
        steps = self.integers[names[4]] if len(names) > 4 else [1] * len(starts)  # noqa: PLR2004 - its place
        where = [slice(None)] * given[0].ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            where[axis] = slice(start, min(end, given[0].shape[axis]), step)
        return given[0][tuple(where)]

    def _Pad(self, given, _attrs, names):
        pads = self.integers[names[1]]
        half = len(pads) // 2
        axes = self.integers[names[3]] if len(names) > 3 and names[3] else range(half)  # noqa: PLR2004 - its place
        sides = [(0, 0)] * given[0].ndim
        for i, axis in enumerate(axes):
            sides[axis] = (pads[i], pads[i + half])
        return F.pad(given[0], [size for pair in reversed(sides) for size in pair])

    def _SpaceToDepth(self, given, attrs, _names):
        block, (n, c, h, w) = attrs["blocksize"], given[0].shape
        parts = given[0].reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * block * block, h // block, w // block)


def _pads(attrs: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    top, left, bottom, right = attrs.get("pads", [0, 0, 0, 0])
    return (top, left), (bottom, right)


def _array(stored: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Return a constant; weights that did not travel are drawn so that activations keep their size."""
    shape, dtype = stored["shape"], np.dtype(stored["dtype"])
    if "data" in stored:
        return np.frombuffer(base64.b64decode(stored["data"]), dtype).reshape(shape)
    if len(shape) == 1:
        return np.zeros(shape, dtype)
    fan_in = max(1, math.prod(shape[1:]))
    return (rng.standard_normal(shape) / math.sqrt(fan_in)).astype(dtype)


def main(folder: str, *files: str) -> None:
    """Pack files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file in files:
        target = Path(folder) / f"{Path(file).name.removesuffix('.onnx')}.json.gz"
        target.write_bytes(gzip.compress(json.dumps(packed(Path(file))).encode(), mtime=0))
        print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) < 3:  # noqa: PLR2004 - a folder and a file
        sys.exit(__doc__)
    main(*sys.argv[1:])
