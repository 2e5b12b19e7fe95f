"""Runs the operators of a network in PyTorch, so that what is inside of it can be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from se_deploy import graph
from se_deploy.errors import UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

Tensor = torch.Tensor
Values = dict[str, Tensor]

_IMAGE = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


def run(
    target: ir.Value,
    known: Values,
    layer: Callable[[ir.Node, Tensor], Tensor | None],
    read: Callable[[ir.Node, int, Tensor], Tensor],
) -> Tensor:
    """Return `target` computed from the tensors in `known`, which it fills.

    `layer(node, x)` computes a layer its own way, or None for the plain one; `read(node, slot, x)` is what a
    node sees of an activation. Raises: UnsupportedGraph for an operator that is not known here.
    """
    order = _order(target, known)
    for node in order:
        given = [
            None if v is None else read(node, slot, _value(v, known)) for slot, v in enumerate(node.inputs)
        ]
        made = layer(node, given[0]) if given and given[0] is not None else None
        known[str(node.outputs[0].name)] = _compute(node, given) if made is None else made
    return known[str(target.name)]


def _order(target: ir.Value, known: Mapping[str, Tensor]) -> list[ir.Node]:
    found: dict[ir.Node, None] = {}
    waiting: list[tuple[ir.Node, bool]] = []

    def ask(value: ir.Value | None) -> None:
        if value is None or value.name in known or graph.constant(value) is not None:
            return
        node = value.producer()
        if node is None:
            raise UnsupportedGraph(f"'{value.name}' comes from before the block", hint="leave this block out")
        if node not in found:
            waiting.append((node, False))

    ask(target)
    while waiting:
        node, ready = waiting.pop()
        if node in found:
            continue
        if ready:
            found[node] = None
            continue
        waiting.append((node, True))
        for value in node.inputs:
            ask(value)
    return list(found)


def _value(value: ir.Value, known: Mapping[str, Tensor]) -> Tensor:
    if value.name in known:
        return known[str(value.name)]
    constant = graph.constant(value)
    if constant is None:
        raise UnsupportedGraph(f"'{value.name}' is not known", hint="leave this block out")
    return torch.from_numpy(constant.copy())


def _compute(node: ir.Node, given: list[Tensor | None]) -> Tensor:
    known = _OPERATORS.get(node.op_type) if not node.domain else None
    if known is None or len(node.outputs) != 1:
        raise UnsupportedGraph(
            f"{node.op_type} '{node.name}' cannot be trained through", hint="leave this block out"
        )
    return known(node, given)


def convolve(
    node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None, *, padded: bool = False
) -> Tensor:
    """Return a Conv, Gemm or MatMul of `x`, padded already or not, with weights as the node has them."""
    if node.op_type == "MatMul":
        made = x @ weight
        return made if bias is None else made + bias
    if node.op_type == "Gemm":
        weight = weight if graph.attribute(node, "transB", 0) else weight.T
        return functional.linear(x, weight, bias)
    spatial = x.ndim - 2
    x = x if padded else _padded(node, x)
    return _IMAGE[x.ndim](
        x,
        weight,
        bias,
        stride=graph.ints(node, "strides", (1,) * spatial),
        dilation=graph.ints(node, "dilations", (1,) * spatial),
        groups=int(graph.attribute(node, "group", 1)),  # type: ignore[call-overload]  # ONNX makes it an int
    )


def padded(node: ir.Node, x: Tensor) -> Tensor:
    """Return a layer's input with the zeros around it that the layer asks for."""
    return _padded(node, x) if node.op_type == "Conv" else x


def _padded(node: ir.Node, x: Tensor) -> Tensor:
    auto = graph.attribute(node, "auto_pad", "NOTSET")
    pads = graph.ints(node, "pads", (0,) * 2 * (x.ndim - 2))
    if node.op_type != "Conv" or auto not in {"NOTSET", "VALID"} or x.ndim not in _IMAGE:
        raise UnsupportedGraph(f"{node.op_type} '{node.name}' cannot be trained", hint="leave this block out")
    return functional.pad(x, _torch_pads(pads)) if any(pads) and auto == "NOTSET" else x


def _torch_pads(pads: tuple[int, ...]) -> list[int]:
    half = len(pads) // 2
    return [p for axis in reversed(range(half)) for p in (pads[axis], pads[axis + half])]


def _pool(node: ir.Node, given: list[Tensor | None]) -> Tensor:
    x = _first(given)
    kernel = graph.ints(node, "kernel_shape")
    pads = graph.ints(node, "pads", (0,) * 2 * len(kernel))
    half = len(pads) // 2
    odd = graph.attribute(node, "auto_pad", "NOTSET") != "NOTSET" or graph.attribute(node, "ceil_mode", 0)
    if len(kernel) != 2 or pads[:half] != pads[half:] or odd:  # noqa: PLR2004 - images
        raise UnsupportedGraph(f"the padding of '{node.name}' is not known here", hint="leave this block out")
    options: dict[str, Any] = {"stride": graph.ints(node, "strides", (1, 1)), "padding": pads[:half]}
    if node.op_type == "MaxPool":
        made: Tensor = functional.max_pool2d(
            x, kernel, dilation=graph.ints(node, "dilations", (1, 1)), **options
        )
        return made
    counted = bool(graph.attribute(node, "count_include_pad", 0))
    return functional.avg_pool2d(x, kernel, count_include_pad=counted, **options)


def _first(given: list[Tensor | None]) -> Tensor:
    if given[0] is None:
        raise ValueError("an operator lacks its first input")
    return given[0]


def _axes(node: ir.Node, given: list[Tensor | None]) -> tuple[int, ...]:
    second = given[1] if len(given) > 1 else None
    return tuple(int(a) for a in second.tolist()) if second is not None else graph.ints(node, "axes")


def _mean(node: ir.Node, given: list[Tensor | None]) -> Tensor:
    return _first(given).mean(_axes(node, given), keepdim=bool(graph.attribute(node, "keepdims", 1)))


def _clip(node: ir.Node, given: list[Tensor | None]) -> Tensor:  # noqa: ARG001 - all have this form
    low, high = (*given[1:], None, None)[:2]
    x = _first(given)
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _reshape(node: ir.Node, given: list[Tensor | None]) -> Tensor:  # noqa: ARG001 - as above
    x, shape = _first(given), given[1]
    if shape is None:
        raise ValueError("Reshape lacks its shape")
    sizes = [x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape.tolist())]
    return x.reshape(-1, *sizes[1:]) if sizes[0] in {1, x.shape[0]} else x.reshape(sizes)


def _hard_sigmoid(node: ir.Node, given: list[Tensor | None]) -> Tensor:
    alpha, beta = (float(str(graph.attribute(node, n, d))) for n, d in (("alpha", 0.2), ("beta", 0.5)))
    return (_first(given) * alpha + beta).clamp(0, 1)


def _pointwise(function: Callable[..., Tensor]) -> Callable[[ir.Node, list[Tensor | None]], Tensor]:
    return lambda _, given: function(*given)


_OPERATORS: dict[str, Callable[[ir.Node, list[Tensor | None]], Tensor]] = {
    "Add": _pointwise(torch.add),
    "AveragePool": _pool,
    "Clip": _clip,
    "Concat": lambda node, given: torch.cat(
        [g for g in given if g is not None], int(str(graph.attribute(node, "axis")))
    ),
    "Conv": lambda node, given: convolve(node, *_weighted(given)),
    "Div": _pointwise(torch.div),
    "Flatten": lambda node, given: _first(given).flatten(int(str(graph.attribute(node, "axis", 1)))),
    "Gemm": lambda node, given: convolve(node, *_weighted(given)),
    "GlobalAveragePool": lambda _, given: (
        _first(given).flatten(2).mean(2).reshape(*_first(given).shape[:2], *(1,) * (_first(given).ndim - 2))
    ),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _pointwise(functional.hardswish),
    "Identity": lambda _, given: _first(given),
    "LeakyRelu": lambda node, given: functional.leaky_relu(
        _first(given), float(str(graph.attribute(node, "alpha", 0.01)))
    ),
    "MatMul": lambda node, given: convolve(node, *_weighted(given)),
    "Max": _pointwise(torch.maximum),
    "MaxPool": _pool,
    "Min": _pointwise(torch.minimum),
    "Mul": _pointwise(torch.mul),
    "ReduceMean": _mean,
    "Relu": _pointwise(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _pointwise(torch.sigmoid),
    "Sub": _pointwise(torch.sub),
    "Tanh": _pointwise(torch.tanh),
}


def _weighted(given: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight = given[0], given[1]
    if x is None or weight is None:
        raise ValueError("a layer lacks its input or weights")
    return x, weight, given[2] if len(given) > 2 else None  # noqa: PLR2004 - x, W, B
