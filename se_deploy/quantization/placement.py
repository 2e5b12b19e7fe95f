"""Which tensors are quantized beside the layers' inputs, and which share a scale, so that no chain breaks.

The linter is asked what breaks: a summand or a pooling's input in float gets a pair of Q/DQ of its own, and
tensors whose quantizers must be equal share a scale. What it then still calls a break is the network's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration, graph
from se_deploy.quantization import chain, qdq, qparams
from se_deploy.quantization.scales import UNSEEN_SCALE, representable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.calibration import Method, Statistics
    from se_deploy.protocols import FloatArray
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import QuantParams

_SHARES = np.geomspace(1 / 64, 1, 97)  # of the full range, tried as the range of a whole tensor
_MOST_ROUNDS = 8  # a pair may ask for one scale with others, and that for another pair; networks took 3
_APART = 2.0**-10  # relative steps between trial scales: no two that are meant to differ are equal


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor that operators other than layers read quantized."""

    tensor: str
    readers: tuple[str, ...]  # names of nodes
    used_by: tuple[str, ...]  # layers in INT8 that read what comes of it; without them it is for nothing


@dataclass(frozen=True, slots=True)
class Placement:
    """What is quantized beside the inputs of layers."""

    pairs: tuple[Pair, ...] = ()
    groups: tuple[frozenset[str], ...] = ()  # tensors of one scale, at least two each
    left: tuple[chain.Break, ...] = field(default=(), repr=False)  # breaks that no pair and no scale mends

    def without(self, tensors: Collection[str]) -> Placement:
        """Return the placement without the pairs on these tensors, which no scale serves."""
        return dataclasses.replace(self, pairs=tuple(p for p in self.pairs if p.tensor not in tensors))

    @property
    def tied(self) -> frozenset[str]:
        """The tensors that are quantized as they are, without an offset or factors in front."""
        return frozenset({pair.tensor for pair in self.pairs}.union(*self.groups))

    def scales(self, own: Mapping[str, float]) -> dict[str, float]:
        """Return the scale of every tensor of `own`: the largest of its group, so that nothing is clipped."""
        found = dict(own)
        for group in self.groups:
            known = [own[name] for name in group if name in own]
            found.update({name: max(known) for name in group if name in own})
        return found


def place(model: ir.Model, layers: Sequence[Layer]) -> Placement:
    """Return what must be quantized beside the inputs of `layers`, and with one scale, for a whole chain."""
    pairs: dict[str, dict[str, None]] = {}
    groups = _Groups()
    left: tuple[chain.Break, ...] = ()
    for _ in range(_MOST_ROUNDS):
        written = _trial(model, layers, pairs, groups)
        left = chain.lint_breaks(written)
        if not _mend(left, pairs, groups):
            break
    used = _used_by(model, layers, pairs)
    return Placement(
        tuple(Pair(name, tuple(readers), used[name]) for name, readers in pairs.items()),
        groups.several(),
        left,
    )


def with_pairs(
    params: Mapping[str, QuantParams],
    placed: Placement,
    layers: Sequence[Layer],
    statistics: Mapping[str, Statistics],
    method: Method,
) -> dict[str, QuantParams]:
    """Return the parameters of the layers' inputs with the pairs beside them and one scale per group."""
    weights = _weights(placed.pairs, layers, statistics)
    own = {name: one.scale for name, one in params.items()}
    bare = {
        p.tensor: _scale(statistics[p.tensor], method, weights.get(p.tensor))
        for p in placed.pairs
        if p.tensor not in own
    }
    scales = placed.scales({**own, **bare})
    read_by = {layer.node: layer.tensor for layer in layers}
    beside: dict[str, dict[qdq.Beside, None]] = {name: {} for name in params}
    for pair in placed.pairs:
        one = qdq.Beside(pair.tensor, scales[pair.tensor], pair.readers)
        for tensor in {read_by[node] for node in pair.used_by if node in read_by}:
            beside[tensor][one] = None
    return {
        name: dataclasses.replace(one, scale=scales[name], beside=tuple(beside[name]))
        for name, one in params.items()
    }


def _weights(
    pairs: Sequence[Pair], layers: Sequence[Layer], statistics: Mapping[str, Statistics]
) -> dict[str, FloatArray]:
    """Return what an error of power 1 in each channel of a pair's tensor does, (C,), at the layers behind.

    Those that read the sum or the pooling in it: their input has the tensor's channels, and its error.
    """
    found = {}
    for pair in pairs:
        channels = len(statistics[pair.tensor].low)
        behind = [
            qparams.importance(statistics[layer.tensor], [layer])
            for layer in layers
            if layer.node in pair.used_by and len(statistics[layer.tensor].low) == channels
        ]
        if behind:
            found[pair.tensor] = np.sum(behind, axis=0)
    return found


def _scale(statistics: Statistics, method: Method, weight: FloatArray | None = None) -> float:
    """Return the scale of a tensor as a whole, zero point 0, by one method.

    Least error is that of the outputs where an error in each channel does what `weight`, (C,), says; it is
    the tensor's own where nothing is known of that.
    """
    if method == "mse" and weight is not None and weight.any():
        return _least_error(statistics.expected(), weight)
    whole = statistics.per_tensor()
    low, high = calibration.choose_ranges(calibration.ClipError(whole), (method,))[method]
    reach = max(-float(low[0]) / -qdq.LOWEST_LEVEL, float(high[0]) / qdq.HIGHEST_LEVEL)
    return float(representable(np.array([reach]))[0]) if reach > 0 else UNSEEN_SCALE


def _least_error(seen: Statistics, weight: FloatArray) -> float:
    reach = max(float(-seen.low.min()) / -qdq.LOWEST_LEVEL, float(seen.high.max()) / qdq.HIGHEST_LEVEL)
    if reach <= 0:
        return UNSEEN_SCALE
    steps = representable(reach * _SHARES)[:, None] * np.ones_like(weight)
    clipped = calibration.ClipError(seen)(qdq.LOWEST_LEVEL * steps, qdq.HIGHEST_LEVEL * steps)
    error = (weight * (steps**2 / 12 + clipped)).sum(axis=1)
    return float(steps[int(error.argmin()), 0])


def _mend(breaks: Iterable[chain.Break], pairs: dict[str, dict[str, None]], groups: _Groups) -> bool:
    """Add pairs and join groups for what breaks; return whether there was anything to do."""
    changed = False
    for one in breaks:
        if one.reader is not None:
            for tensor in one.tensors:
                changed |= one.reader not in pairs.setdefault(tensor, {})
                pairs[tensor][one.reader] = None
        elif len(one.tensors) > 1:
            changed |= groups.join(one.tensors)
    return changed


def _trial(
    model: ir.Model, layers: Sequence[Layer], pairs: Mapping[str, Iterable[str]], groups: _Groups
) -> ir.Model:
    """Return the graph with Q/DQ where they would go, every group of tensors with a scale of its own."""
    scales: dict[str, float] = {}

    def scale(tensor: str) -> float:
        return scales.setdefault(groups.of(tensor), 1 + _APART * len(scales))

    beside = tuple(qdq.Beside(name, scale(name), tuple(readers)) for name, readers in pairs.items())
    planned = [
        qdq.QuantizedLayer(
            layer.node,
            qdq.QuantParams(scale(layer.tensor), beside=beside),
            np.zeros(layer.shape, np.int8),
            np.ones((), np.float32),
            layer.output_axis,
            None,
        )
        for layer in layers
    ]
    return qdq.trial(model, planned)


def _used_by(
    model: ir.Model, layers: Sequence[Layer], pairs: Mapping[str, Iterable[str]]
) -> dict[str, tuple[str, ...]]:
    """Return for each tensor with a pair the layers that read it, parts of it, or what its readers make."""
    readers = {layer.node: layer for layer in layers}
    nodes = {str(node.name): node for node in model.graph}
    values = graph.values(model)
    found = {}
    for tensor, names in pairs.items():
        waiting = [values[tensor], *(output for name in names for output in nodes[name].outputs)]
        seen = set(waiting)
        used = dict.fromkeys(
            str(use.node.name)
            for part in _parts(values[tensor])
            for use in chain.uses(part)
            if use.node is not None and _is_read_by(use.read, use.node, readers)
        )
        while waiting:
            value = waiting.pop()
            for node in dict.fromkeys(use.node for use in value.uses()):
                if _is_read_by(value, node, readers):
                    used[str(node.name)] = None
                    continue
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                waiting += fresh
        found[tensor] = tuple(used)
    return found


def _is_read_by(value: ir.Value, node: ir.Node, layers: Collection[str]) -> bool:
    """Whether `node` is one of the layers that are quantized, and `value` its input."""
    return node.name in layers and value is node.inputs[0]


def _parts(value: ir.Value) -> list[ir.Value]:
    """Return what `value` is moved or joined together from, by operators that commute with quantizers."""
    found: dict[ir.Value, None] = {}
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        fresh = [v for v in chain.moved(node) if v not in found] if node is not None else []
        found.update(dict.fromkeys(fresh))
        waiting += fresh
    return list(found)


class _Groups:
    """Tensors that share a scale: a forest of which each root names a group."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, tensor: str) -> str:
        """Return the group's name."""
        while tensor in self._parent:
            tensor = self._parent[tensor]
        return tensor

    def join(self, tensors: Sequence[str]) -> bool:
        """Make one group of these tensors'; return whether it was not."""
        root = self.of(tensors[0])
        others = {self.of(tensor) for tensor in tensors[1:]} - {root}
        self._parent.update(dict.fromkeys(others, root))
        return bool(others)

    def several(self) -> tuple[frozenset[str], ...]:
        """Return the groups of more than one tensor."""
        groups: dict[str, set[str]] = {}
        for tensor in self._parent:
            groups.setdefault(self.of(tensor), {self.of(tensor)}).add(tensor)
        return tuple(frozenset(group) for group in groups.values())
