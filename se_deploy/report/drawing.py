"""The graph around one SE block as a small layered drawing: top to bottom, as model viewers draw it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.report.templating import render

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks import SEBlock

_MOST_NEIGHBOURS = 5  # of one value; a feature map of a dense network has dozens of readers
_LONGEST_TEXT = 26
_LETTER_PX, _BOX_HEIGHT, _LAYER_PX, _GAP_PX, _LANE_PX, _MARGIN_PX = 6.8, 36.0, 62.0, 22.0, 10.0, 6.0
_SWEEPS = 6


@dataclass(frozen=True, slots=True)
class _Box:
    """One node, graph input or graph output, with what it shows."""

    key: str
    title: str
    shape: str
    name: str
    role: str  # CSS classes: "inside", "inside scale" or "outside"

    @property
    def width(self) -> float:
        return _LETTER_PX * max(len(self.title), len(self.shape), 10) + 18


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
    layers = _layers([box.key for box in boxes], edges, {b.key for b in boxes if b.role == "outside"})
    rows, links = _with_lanes(layers, edges)
    widths = {box.key: box.width for box in boxes}
    rows = _ordered(rows, links)
    at = _coordinates(rows, links, widths)
    left = min(at[key] - widths.get(key, 0.0) / 2 for row in rows for key in row) - _MARGIN_PX
    right = max(at[key] + widths.get(key, 0.0) / 2 for row in rows for key in row) + _MARGIN_PX
    y = {key: _MARGIN_PX + _BOX_HEIGHT / 2 + i * _LAYER_PX for i, row in enumerate(rows) for key in row}
    return render(
        "block.svg.j2",
        {
            "output": block.output,
            "description": f"{block.kind} block of {block.channels} channels: {' to '.join(block.spelling)}",
            "width": right - left,
            "height": 2 * _MARGIN_PX + _BOX_HEIGHT + (len(rows) - 1) * _LAYER_PX,
            "box_height": _BOX_HEIGHT,
            "boxes": [_Placed(box, at[box.key] - left, y[box.key]) for box in boxes],
            "arrows": [_arrow(path, at, y, left) for path in _paths(edges, layers)],
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
        found.append(_Box(f"output {value.name}", "output", _shape(value), value.name or "", "outside"))
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


def _layers(keys: Sequence[str], edges: Sequence[tuple[str, str]], outside: set[str]) -> dict[str, int]:
    """Return each box's layer: one below its deepest source; what feeds the block alone, right above it."""
    layer = dict.fromkeys(keys, 0)
    for _ in keys:
        for source, target in edges:
            layer[target] = max(layer[target], layer[source] + 1)
    fed = {target for _, target in edges}
    for key in keys:
        targets = [layer[target] for source, target in edges if source == key]
        if key in outside and key not in fed and targets:
            layer[key] = min(targets) - 1
    return layer


def _paths(edges: Iterable[tuple[str, str]], layers: dict[str, int]) -> list[list[str]]:
    """Write every edge as its source, a lane through each layer that it passes, and its target."""
    return [
        [source, *(f"lane {source} {target} {i}" for i in range(layers[source] + 1, layers[target])), target]
        for source, target in edges
    ]


def _with_lanes(
    layers: dict[str, int], edges: Sequence[tuple[str, str]]
) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Fill the layers with boxes and lanes, and link only neighbouring layers."""
    rows: list[list[str]] = [[] for _ in range(max(layers.values()) + 1)]
    for key, layer in layers.items():
        rows[layer].append(key)
    links = []
    for path in _paths(edges, layers):
        for layer, key in enumerate(path[1:-1], start=layers[path[0]] + 1):
            rows[layer].append(key)
        links += list(pairwise(path))
    return rows, links


def _ordered(rows: list[list[str]], links: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Reorder each layer by the mean place of its neighbours, sweeping down and up."""
    above, below = _neighbours(links)
    for sweep in range(_SWEEPS):
        place = {key: i - len(row) / 2 for row in rows for i, key in enumerate(row)}
        near = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = {key: _mean([place[k] for k in near[key]], place[key]) for key in row}
            row.sort(key=wanted.__getitem__)
            place |= {key: i - len(row) / 2 for i, key in enumerate(row)}
    return rows


def _coordinates(
    rows: list[list[str]], links: Sequence[tuple[str, str]], widths: dict[str, float]
) -> dict[str, float]:
    """Move each layer towards its neighbours without overlap; x of every centre in pixels."""
    above, below = _neighbours(links)
    at = dict.fromkeys((key for row in rows for key in row), 0.0)
    for sweep in range(2 * _SWEEPS):
        near = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = [_mean([at[k] for k in near[key]], at[key]) for key in row]
            placed: list[float] = []
            for i, key in enumerate(row):
                half = widths.get(key, _LANE_PX) / 2
                least = placed[-1] + widths.get(row[i - 1], _LANE_PX) / 2 + _GAP_PX + half if placed else None
                placed.append(wanted[i] if least is None else max(wanted[i], least))
            shift = _mean([w - p for w, p in zip(wanted, placed, strict=True)], 0.0)
            at |= {key: x + shift for key, x in zip(row, placed, strict=True)}
    return at


def _neighbours(links: Iterable[tuple[str, str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above: dict[str, list[str]] = defaultdict(list)
    below: dict[str, list[str]] = defaultdict(list)
    for upper, lower in links:
        above[lower].append(upper)
        below[upper].append(lower)
    return above, below


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _arrow(path: Sequence[str], at: dict[str, float], y: dict[str, float], left: float) -> tuple[str, str]:
    """Write an edge and its head as SVG path data: out of its source, smooth through its lanes."""
    points = [(at[key] - left, y[key]) for key in path]
    x, top = points[0][0], points[0][1] + _BOX_HEIGHT / 2
    text = f"M{x:.1f} {top:.1f}"
    for i, (to_x, centre) in enumerate(points[1:], start=2):
        last = i == len(points)
        to_y = centre - _BOX_HEIGHT / 2 - (5 if last else 0)
        bend = (to_y - top) / 2
        text += f" C{x:.1f} {top + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"
        if not last:
            to_y = centre + _BOX_HEIGHT / 2
            text += f" V{to_y:.1f}"
        x, top = to_x, to_y
    return text, f"M{x - 3.5:.1f} {top:.1f} h7 l-3.5 5 z"
