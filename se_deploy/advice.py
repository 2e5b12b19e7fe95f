"""What a trained network's SE blocks make of their width: hidden units and gates looked at on real data.

Each block is read in its canonical form. Its excitation is z = W h + b with h the hidden units behind their
activation; a narrower block keeps some of the units and has W and b fitted again by least squares, on half of
the data; the other half says what that costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import canonical, graph, se_blocks
from se_deploy.calibration import observe
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import FloatArray, Progress, Runtime
    from se_deploy.se_blocks import SEBlock

    _Function = Callable[[FloatArray], FloatArray]

SHUT = 0.05  # a gate below this share of its gain is about 0, one above the rest of it about 1
CONSTANT = 0.01  # a gate that moves by less than this share of its gain is constant
TOLERANCE = 0.02  # of a gate: the largest mean change that a suggested width may make, in shares of the gain
_SAME = 1e-6  # a unit that moves by less than this share of the block's largest is constant
_LEARNED_LAYERS = 2


@dataclass(frozen=True, slots=True)
class Width:
    """A block with fewer hidden units, refitted, and what that does to its gates on data not fitted to."""

    hidden: int
    ratio: float  # channels / hidden
    mean_gate_error: float
    max_gate_error: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What the data says of one block. Unit and channel numbers count from 0."""

    output: str  # the block's identity, as in the census
    channels: int
    hidden: int
    effective_rank: float  # exp of the entropy of the excitation's singular values; at most `hidden`
    dead: tuple[int, ...]  # hidden units that were 0 on every sample
    constant: tuple[int, ...]  # units that were another constant: a bias does the same
    gates_shut: int  # channels whose gate was about 0 on every sample
    gates_open: int  # about its most
    gates_constant: int  # moved by next to nothing
    widths: tuple[Width, ...]  # widest first; () where the gate's function is not known
    suggested: int | None  # the smallest of `widths` within the tolerance; None where that is none
    samples: int

    @property
    def exact(self) -> int:
        """Hidden units that are left when those go that do nothing on this data."""
        return max(1, self.hidden - len(self.dead) - len(self.constant))


@dataclass(frozen=True, slots=True)
class Unadvised:
    """A block that could not be looked at, and why in a user's words."""

    output: str
    reason: str


@dataclass(frozen=True, slots=True)
class Advised:
    """The advice on every block of a graph, in graph order, and the blocks without any."""

    blocks: tuple[Advice, ...]
    skipped: tuple[Unadvised, ...]


@dataclass(frozen=True, slots=True)
class _Excitation:
    """Where a block's last layer stands: z = weight h + bias, gate = function(z)."""

    block: SEBlock
    hidden: str
    weight: FloatArray  # (C, R)
    bias: FloatArray  # (C,)
    function: _Function | None  # None where it is none of those that are known


def advise(
    model: ir.Model,
    samples: Samples,
    runtime: Runtime,
    *,
    tolerance: float = TOLERANCE,
    progress: Progress = silent,
) -> Advised:
    """Look at every two-layer SE block of an FP32 graph on `samples`, at least two of them.

    `tolerance` is on the mean change of a gate, in shares of its gain.
    Raises: BadData where the samples do not fit the graph or a tensor is not finite.
    """
    made = canonical.canonicalize(model).model
    found = [_excitation(made, block) for block in se_blocks.find(made).se]
    known = [place for place in found if isinstance(place, _Excitation)]
    skipped = tuple(place for place in found if isinstance(place, Unadvised))
    if not known:
        return Advised((), skipped)
    units: dict[str, list[FloatArray]] = {place.hidden: [] for place in known}
    gates: dict[str, list[FloatArray]] = {place.block.gate_output: [] for place in known}
    names = [*units, *gates]
    for arrays in observe(made, names, samples, runtime, progress=progress, step="advise"):
        for kept in (units, gates):
            for name, rows in kept.items():
                rows.append(arrays[name].reshape(len(arrays[name]), -1).astype(np.float64))
    return Advised(
        tuple(
            _advice(
                place,
                np.concatenate(units[place.hidden]),
                np.concatenate(gates[place.block.gate_output]),
                tolerance,
            )
            for place in known
        ),
        skipped,
    )


def effective_rank(singular_values: FloatArray) -> float:
    """Give exp(entropy) of the singular values' shares (Roy and Vetterli, EUSIPCO 2007); 0 for zeros."""
    total = singular_values.sum()
    if total <= 0:
        return 0.0
    shares = singular_values / total
    shares = shares[shares > 0]  # a share may vanish where its value does not
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _advice(place: _Excitation, hidden: FloatArray, gates: FloatArray, tolerance: float) -> Advice:
    block = place.block
    count = hidden.shape[1]
    largest = np.abs(hidden).max()
    still = np.ptp(hidden, axis=0) <= _SAME * largest
    dead = still & (np.abs(hidden).max(axis=0) <= _SAME * largest)
    low, high = gates.min(axis=0) / block.gain, gates.max(axis=0) / block.gain
    top = 2.0 if block.gate == "tanh1" else 1.0
    centred = hidden - hidden.mean(axis=0)
    spectrum = np.linalg.svd(np.linalg.qr(centred, mode="r") @ place.weight.T, compute_uv=False)
    widths = () if place.function is None else _widths(place, hidden, count - int(still.sum()))
    good = [width.hidden for width in widths if width.mean_gate_error <= tolerance * top * block.gain]
    return Advice(
        output=block.output,
        channels=block.channels,
        hidden=count,
        effective_rank=effective_rank(spectrum),
        dead=tuple(np.flatnonzero(dead).tolist()),
        constant=tuple(np.flatnonzero(still & ~dead).tolist()),
        gates_shut=int((high < SHUT * top).sum()),
        gates_open=int((low > (1 - SHUT) * top).sum()),
        gates_constant=int((high - low < CONSTANT * top).sum()),
        widths=widths,
        suggested=min(good, default=None),
        samples=len(hidden),
    )


def _widths(place: _Excitation, hidden: FloatArray, moving: int) -> tuple[Width, ...]:
    """Halve the width from what moves down to 1; fit on every other sample, measure on the rest."""
    function = place.function
    if function is None or len(hidden) < 2:  # noqa: PLR2004 - one to fit on, one to measure on
        return ()
    fit, test = hidden[::2], hidden[1::2]
    truth = function(test @ place.weight.T + place.bias)
    target = fit @ place.weight.T + place.bias
    order = _by_worth(fit - fit.mean(axis=0), place.weight)
    found = []
    for width in _halvings(max(1, moving)):
        kept = order[:width]
        layer, *_ = np.linalg.lstsq(_with_one(fit[:, kept]), target, rcond=None)
        error = np.abs(function(_with_one(test[:, kept]) @ layer) - truth)
        found.append(Width(width, place.block.channels / width, float(error.mean()), float(error.max())))
    return tuple(found)


def _by_worth(centred: FloatArray, weight: FloatArray) -> list[int]:
    """Order the units by what each adds to those before it: a pivoted Cholesky of their weighed covariance.

    Shapes: centred (n, R), weight (C, R).
    """
    scaled = centred * np.linalg.norm(weight, axis=0)
    rest = scaled.T @ scaled
    order: list[int] = []
    for _ in range(len(rest)):
        worth = np.diag(rest).copy()
        worth[order] = -np.inf
        best = int(worth.argmax())
        order.append(best)
        if worth[best] > 0:
            rest -= np.outer(rest[:, best], rest[best]) / worth[best]
    return order


def _halvings(width: int) -> list[int]:
    steps = [width]
    while steps[-1] > 1:
        steps.append(steps[-1] // 2)
    return steps


def _with_one(columns: FloatArray) -> FloatArray:
    return np.concatenate([columns, np.ones((len(columns), 1))], axis=1)


def _excitation(model: ir.Model, block: SEBlock) -> _Excitation | Unadvised:
    """Find a block's last layer in a canonical graph, or say why it is not read."""
    if len(block.layers) < _LEARNED_LAYERS or block.reduced is None:
        return Unadvised(block.output, "it has one learned layer: no hidden units")
    nodes = {node.name: node for node in model.graph}
    last = nodes[block.layers[-1]]
    weight = graph.constant(last.inputs[1])
    if last.op_type != "Conv" or weight is None or weight.shape[:2] != (block.channels, block.reduced):
        return Unadvised(block.output, "its last layer is no 1x1 convolution over all hidden units")
    bias = graph.constant(last.inputs[2]) if len(last.inputs) > 2 else None  # noqa: PLR2004 - x, W, B
    hidden = last.inputs[0]
    if hidden is None or hidden.name is None:
        return Unadvised(block.output, "its hidden units have no name")
    chain = [nodes[name] for name in block.nodes]
    return _Excitation(
        block=block,
        hidden=hidden.name,
        weight=weight.reshape(block.channels, -1).astype(np.float64),
        bias=np.zeros(block.channels) if bias is None else bias.astype(np.float64),
        function=_function(chain[chain.index(last) + 1 :], block.gate_output),
    )


def _function(nodes: Sequence[ir.Node], gate: str) -> _Function | None:
    """Compose what stands between the last layer and the gate, one operator after the other."""
    steps: list[_Function] = []
    for node in nodes:
        step = _step(node)
        if step is None:
            return None
        steps.append(step)
        if node.outputs[0].name == gate:
            return lambda z: _apply(steps, z)
    return None


def _apply(steps: Sequence[_Function], values: FloatArray) -> FloatArray:
    for step in steps:
        values = step(values)
    return values


def _step(node: ir.Node) -> _Function | None:
    if node.op_type == "Sigmoid":
        return lambda z: 0.5 * (1 + np.tanh(z / 2))
    if node.op_type == "Tanh":
        return np.tanh
    if node.op_type == "HardSigmoid":
        alpha, beta = (_attribute(node, name, value) for name, value in (("alpha", 0.2), ("beta", 0.5)))
        return lambda z: np.clip(alpha * z + beta, 0, 1)
    if node.op_type in {"Add", "Mul"}:
        factors = [value for tensor in node.inputs if (value := graph.scalar(tensor)) is not None]
        if len(factors) == 1:
            factor = factors[0]
            return (lambda z: z + factor) if node.op_type == "Add" else (lambda z: z * factor)
    return None


def _attribute(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else found.as_float()
