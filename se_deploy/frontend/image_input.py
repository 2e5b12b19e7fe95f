"""How a graph takes its image: the order of the dimensions and the element type, read off the graph.

Cameras and video decoders give uint8 frames as (N, H, W, C), and files that take those convert them inside.
Fed as float (N, C, H, W) they would be refused, or normalized twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from se_deploy import graph
from se_deploy.errors import BadInput
from se_deploy.schema import input_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir

    from se_deploy.protocols import TensorSpec
    from se_deploy.schema.input_spec import Element, InputSpec, Layout

_COLOURS = (1, 3, 4)
"""Channels of an image: grey, red-green-blue, and with transparency."""

_RANK = 4
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_CHANNELS_FIRST_OPS = frozenset({
    "Conv", "ConvInteger", "QLinearConv", "BatchNormalization", "InstanceNormalization", "GlobalAveragePool",
    "AveragePool", "MaxPool",
})  # fmt: skip
"""ONNX knows these with channels on axis 1 only."""
_LAYOUT_KEPT_OPS = frozenset({
    "Cast", "Identity", "Add", "Sub", "Mul", "Div", "Clip", "Resize", "Pad", "Slice", "QuantizeLinear",
    "DequantizeLinear",
})  # fmt: skip
"""What preprocessing inside a graph is made of: none of these changes the order of the dimensions."""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The one image that a graph takes."""

    name: str
    layout: Layout
    dims: tuple[int | None, int | None, int | None]  # (C, H, W), None where the graph leaves it free
    element: Element
    reason: str  # why it is this layout, for messages

    @property
    def text(self) -> str:
        """The input in a user's words."""
        dims = input_spec.in_layout(self.dims, self.layout)
        shape = "x".join("?" if d is None else str(d) for d in dims)
        return f"input '{self.name}' takes {self.element} {shape}, {self.layout} since {self.reason}"


@dataclass(frozen=True, slots=True)
class NoImage:
    """Inputs that are not one image, or one whose layout nobody can tell."""

    reason: str
    unclear: bool = False  # it may be an image: whoever knows its layout may say so


def read(model: ir.Model, layout: Layout | None = None) -> ImageInput | NoImage:
    """Return how `model` takes its image; `layout` overrules what the graph says."""
    if len(model.graph.inputs) != 1:
        return NoImage(f"the graph has {len(model.graph.inputs)} inputs")
    value = model.graph.inputs[0]
    dtype = None if value.dtype is None else value.dtype.numpy()
    return _decided(str(value.name), graph.dims(value), dtype, layout, _seen(value))


def of_inputs(inputs: Sequence[TensorSpec], layout: Layout | None = None) -> ImageInput | NoImage:
    """Return the same of an engine, which has sizes and types but no graph to read."""
    if len(inputs) != 1:
        return NoImage(f"there are {len(inputs)} inputs")
    return _decided(inputs[0].name, inputs[0].dims, inputs[0].dtype, layout, None)


def described(
    own: InputSpec | None, taken: ImageInput | NoImage, size: Sequence[int] | None
) -> InputSpec | None:
    """Return the input spec of a graph that takes `taken`; None where nobody knows one.

    `own` is the spec in the file, `size` is (C, H, W) for what the graph leaves free. Of frames, size and
    type are enough: the graph normalizes them itself.
    Raises: BadInput for a size that the graph does not take, or where only `--layout` could tell.
    """
    given = None if size is None or len(size) != _RANK - 1 else (size[0], size[1], size[2])
    if isinstance(taken, NoImage):
        if taken.unclear and given is not None:
            raise BadInput(f"{taken.reason}", hint="say it with --layout NCHW or --layout NHWC")
        return own
    if taken.element == "float32":
        if own is not None or given is None:
            return own
        return replace(input_spec.resized(None, given), name=taken.name, layout=taken.layout)
    sizes = given or (own.shape if own is not None else taken.dims)
    if any(d not in {None, n} and n is not None for d, n in zip(taken.dims, sizes, strict=True)):
        named = "x".join(map(str, sizes))
        where = "--input-size" if given else "the input spec in the file"
        raise BadInput(f"{taken.text}; {where} says {named}", hint="name sizes as CxHxW, in every layout")
    if own is not None and own.is_frames:
        return own
    shape = [d if d is not None else n for d, n in zip(taken.dims, sizes, strict=True)]
    if None in shape:
        return own
    known = [d for d in shape if d is not None]
    return input_spec.frames(replace(input_spec.resized(own, known), name=taken.name), taken.layout)


def _decided(
    name: str,
    dims: tuple[int | None, ...] | None,
    dtype: np.dtype[np.generic] | None,
    layout: Layout | None,
    seen: tuple[Layout, str] | None,
) -> ImageInput | NoImage:
    """Decide by what was asked, else by what the graph does, else by which dimension can be colours."""
    if dims is None or len(dims) != _RANK:
        return NoImage(f"input '{name}' has not the four dimensions of an image")
    if dtype is None or (dtype.kind != "f" and dtype != np.uint8):
        return NoImage(f"input '{name}' takes {dtype}, an image is float or uint8")
    found = (layout, "--layout or its input spec says so") if layout is not None else seen or _by_size(dims)
    if found is None:
        return NoImage(
            f"nothing says whether input '{name}' takes its channels first or last", unclear=dtype == np.uint8
        )
    order, reason = found
    _, a, b, c = dims
    shape = (a, b, c) if order == "NCHW" else (c, a, b)
    return ImageInput(name, order, shape, "uint8" if dtype == np.uint8 else "float32", reason)


def _by_size(dims: tuple[int | None, ...]) -> tuple[Layout, str] | None:
    first, last = dims[1] in _COLOURS, dims[-1] in _COLOURS
    if first == last:
        return None
    if last:
        return "NHWC", f"its last dimension is {dims[-1]}"
    return "NCHW", f"its second dimension is {dims[1]}"


def _seen(value: ir.Value) -> tuple[Layout, str] | None:
    """Return the layout that the first nodes behind an input show; None where they show none, or both."""
    found = dict(_shown(value))
    return next(iter(found.items())) if len(found) == 1 else None


def _shown(value: ir.Value) -> Iterator[tuple[Layout, str]]:
    waiting, done = [value], set()
    while waiting:
        one = waiting.pop()
        if one in done:
            continue
        done.add(one)
        for node, index in one.uses():
            if node.domain not in {"", "ai.onnx"}:
                continue
            name = f"{node.op_type} '{node.name or node.outputs[0].name}'"
            if node.op_type in _LAYOUT_KEPT_OPS:
                waiting.append(node.outputs[0])
            elif node.op_type in _CHANNELS_FIRST_OPS and index == 0:
                yield "NCHW", f"{name} reads it"
            elif graph.ints(node, "perm") == _TO_CHANNELS_FIRST:
                yield "NHWC", f"{name} turns it into NCHW"
            elif graph.ints(node, "perm") == _TO_CHANNELS_LAST:
                yield "NCHW", f"{name} turns it into NHWC"
