"""Boxes and edges laid out in layers, top to bottom, as model viewers draw graphs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BOX_HEIGHT_PX = 36.0
_LAYER_PX, _GAP_PX, _LANE_PX, _MARGIN_PX = 62.0, 22.0, 10.0, 6.0
_SWEEPS = 6


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is, in pixels from the upper left."""

    width: float
    height: float
    centres: Mapping[str, tuple[float, float]]  # of each box, by its key
    arrows: tuple[tuple[str, str, str, str], ...]  # of each edge: source, target, SVG path, path of its head


def layered(widths: Mapping[str, float], edges: Sequence[tuple[str, str]], above: set[str]) -> Layout:
    """Return the layout of boxes with these widths in pixels, each below what leads to it.

    A box of `above` that nothing leads to stands right above its first reader, others in the first layer.
    """
    layers = _layers(list(widths), edges, above)
    rows, links = _with_lanes(layers, edges)
    rows = _ordered(rows, links)
    at = _coordinates(rows, links, widths)
    left = min(at[key] - widths.get(key, 0.0) / 2 for row in rows for key in row) - _MARGIN_PX
    right = max(at[key] + widths.get(key, 0.0) / 2 for row in rows for key in row) + _MARGIN_PX
    y = {key: _MARGIN_PX + BOX_HEIGHT_PX / 2 + i * _LAYER_PX for i, row in enumerate(rows) for key in row}
    return Layout(
        width=right - left,
        height=2 * _MARGIN_PX + BOX_HEIGHT_PX + (len(rows) - 1) * _LAYER_PX,
        centres={key: (at[key] - left, y[key]) for key in widths},
        arrows=tuple((path[0], path[-1], *_arrow(path, at, y, left)) for path in _paths(edges, layers)),
    )


def _layers(keys: Sequence[str], edges: Sequence[tuple[str, str]], above: set[str]) -> dict[str, int]:
    """Return each box's layer: one below its deepest source; what feeds others alone, right above them."""
    sources, targets = _neighbours(edges)
    layer: dict[str, int] = {}
    for key in TopologicalSorter({key: sources[key] for key in keys}).static_order():
        layer[key] = max((layer[source] + 1 for source in sources[key]), default=0)
    lift = {
        key: min(layer[target] for target in targets[key]) - 1
        for key in keys
        if key in above and not sources[key] and targets[key]
    }
    return {key: lift.get(key, layer[key]) for key in keys}


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
    rows: list[list[str]], links: Sequence[tuple[str, str]], widths: Mapping[str, float]
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
    x, top = points[0][0], points[0][1] + BOX_HEIGHT_PX / 2
    text = f"M{x:.1f} {top:.1f}"
    for i, (to_x, centre) in enumerate(points[1:], start=2):
        last = i == len(points)
        to_y = centre - BOX_HEIGHT_PX / 2 - (5 if last else 0)
        bend = (to_y - top) / 2
        text += f" C{x:.1f} {top + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"
        if not last:
            to_y = centre + BOX_HEIGHT_PX / 2
            text += f" V{to_y:.1f}"
        x, top = to_x, to_y
    return text, f"M{x - 3.5:.1f} {top:.1f} h7 l-3.5 5 z"
