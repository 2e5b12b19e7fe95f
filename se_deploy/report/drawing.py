"""Graphs as layered drawings, top to bottom: around one SE block, or a whole network with its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.errors import counted
from se_deploy.report.layered import BOX_HEIGHT_PX, Layout, layered
from se_deploy.report.templating import render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks import SEBlock

_MOST_NEIGHBOURS = 5  # of one value; a feature map of a dense network has dozens of readers
_LONGEST_TEXT = 26
_LETTER_PX, _INSET_PX, _SHORTEST_TEXT = 6.8, 18, 10
_TINTS = 6  # of kernels; neighbours get different ones
_MOST_NODES = 800  # beyond them a drawing is a megabyte, and no person reads it


@dataclass(frozen=True, slots=True)
class _Box:
    """One node, graph input or graph output, with what it shows."""

    key: str
    title: str
    shape: str
    name: str
    role: str  # CSS classes: "inside", "inside scale" or "outside", and a kernel's tint

    @property
    def width(self) -> float:
        return _LETTER_PX * max(len(self.title), len(self.shape), _SHORTEST_TEXT) + _INSET_PX


@dataclass(frozen=True, slots=True)
class _Placed:
    """A box at its centre."""

    box: _Box
    x: float
    y: float


def block_svg(model: ir.Model, block: SEBlock) -> str:
    """Draw `block` with what feeds it and what reads it, as inline SVG for `inspect_html`.

    Constants are left out; a convolution shows its kernel, every box the shape of what it gives.
    Raises: ValueError where no node of the block is in `model`.
    """
    boxes, edges = _around(model, block)
    outside = {box.key for box in boxes if box.role == "outside"}
    made = layered({box.key: box.width for box in boxes}, edges, outside)
    description = f"{block.kind} block of {block.channels} channels: {' to '.join(block.spelling)}"
    return _drawn(f"Graph around {block.output}", description, boxes, made)


def network_svg(model: ir.Model, blocks: Sequence[SEBlock], kernels: Sequence[Sequence[str]]) -> str | None:
    """Draw a whole graph, its SE blocks framed, the nodes of one kernel in one tint, as inline SVG.

    `kernels`: the node names of each kernel of a plan. What stays inside a kernel is a thick line: it never
    reaches memory. None where the graph has more than 800 nodes.
    """
    nodes = list(model.graph)
    if len(nodes) > _MOST_NODES:
        return None
    kernel = {name: i for i, names in enumerate(kernels) for name in names}
    scales = {block.scale_node for block in blocks}
    inside = {name for block in blocks for name in block.nodes}
    boxes: dict[str, _Box] = {}
    edges: dict[tuple[str, str], bool] = {}  # whether it stays inside a kernel
    for node in nodes:
        name = node.name or ""
        role = "inside scale" if name in scales else "inside" if name in inside else "outside"
        at = kernel.get(name)
        boxes[_key(node)] = _node_box(node, role if at is None else f"{role} kernel-{at % _TINTS}")
        for value in node.inputs:
            if value is None or graph.constant(value) is not None:
                continue
            producer = value.producer()
            source = _value_box(value) if producer is None else None
            if source is not None:
                boxes.setdefault(source.key, source)
            before = None if producer is None else kernel.get(producer.name or "")
            key = source.key if source is not None else _key(producer)  # type: ignore[arg-type] # one is there
            edges[key, _key(node)] = before is not None and before == at
    for value in model.graph.outputs:
        producer = value.producer()
        if producer is not None:
            box = _output_box(value)
            boxes[box.key] = box
            edges[_key(producer), box.key] = False
    entries = {box.key for box in boxes.values() if box.key.startswith("input ")}
    made = layered({box.key: box.width for box in boxes.values()}, list(edges), entries)
    count = counted(len(nodes), "node") + (f" in {counted(len(kernels), 'kernel')}" if kernels else "")
    return _drawn(
        "The whole network", f"{count}, {counted(len(blocks), 'SE block')}", list(boxes.values()), made, edges
    )


def _drawn(
    label: str,
    description: str,
    boxes: Sequence[_Box],
    made: Layout,
    thick: Mapping[tuple[str, str], bool] | None = None,
) -> str:
    thick = thick or {}
    return render(
        "graph.svg.j2",
        {
            "label": label,
            "description": description,
            "width": made.width,
            "height": made.height,
            "box_height": BOX_HEIGHT_PX,
            "boxes": [_Placed(box, *made.centres[box.key]) for box in boxes],
            "arrows": [
                (path, head, " inside-kernel" if thick.get((source, target)) else "")
                for source, target, path, head in made.arrows
            ],
        },
    )


def _around(model: ir.Model, block: SEBlock) -> tuple[list[_Box], list[tuple[str, str]]]:
    """Collect the block's nodes and their direct neighbours, and the values between them."""
    names = set(block.nodes)
    inside = [node for node in model.graph if node.name in names]
    if not inside:
        raise ValueError(f"no node of the block '{block.output}' is in the graph")
    boxes: dict[str, _Box] = {}
    edges: dict[tuple[str, str], None] = {}
    for node in inside:
        role = "inside scale" if node.name == block.scale_node else "inside"
        boxes[_key(node)] = _node_box(node, role)
    for node in inside:
        for value in node.inputs:
            if value is None or graph.constant(value) is not None:
                continue
            source = _value_box(value)
            boxes.setdefault(source.key, source)
            edges[source.key, _key(node)] = None
        for value in node.outputs:
            for reader in _readers(value, names):
                boxes.setdefault(reader.key, reader)
                edges[_key(node), reader.key] = None
    return list(boxes.values()), list(edges)


def _readers(value: ir.Value, inside: set[str]) -> list[_Box]:
    """Name what reads `value` outside the block, the first few one by one."""
    outside = dict.fromkeys(use.node for use in value.uses() if use.node.name not in inside)
    found = [_node_box(node, "outside") for node in outside]
    if value.is_graph_output():
        found.append(_output_box(value))
    if len(found) > _MOST_NEIGHBOURS:
        rest = len(found) - _MOST_NEIGHBOURS + 1
        more = _Box(f"more {value.name}", f"{rest} more", "readers", value.name or "", "outside")
        return [*found[: _MOST_NEIGHBOURS - 1], more]
    return found


def _value_box(value: ir.Value) -> _Box:
    producer = value.producer()
    if producer is not None:
        return _node_box(producer, "outside")
    return _Box(f"input {value.name}", "input", _shape(value), value.name or "", "outside")


def _output_box(value: ir.Value) -> _Box:
    return _Box(f"output {value.name}", "output", _shape(value), value.name or "", "outside")


def _node_box(node: ir.Node, role: str) -> _Box:
    title = node.op_type
    kernel = graph.dims(node.inputs[1])[2:] if _is_convolution(node) else ()  # type: ignore[index] # a rank
    if kernel:
        title += " " + "\N{MULTIPLICATION SIGN}".join("?" if side is None else str(side) for side in kernel)
    return _Box(_key(node), _cut(title), _shape(node.outputs[0]), node.name or "", role)


def _is_convolution(node: ir.Node) -> bool:
    return node.op_type in {"Conv", "ConvTranspose"} and graph.dims(node.inputs[1]) is not None


def _key(node: ir.Node) -> str:
    return f"node {node.name}"


def _shape(value: ir.Value) -> str:
    dims = graph.dims(value)
    if dims is None:
        return "shape not known"
    words = ["?" if side is None else str(side) for side in dims]
    if dims and dims[0] is None:
        words[0] = "N"
    return _cut("\N{MULTIPLICATION SIGN}".join(words) or "scalar")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
