"""Block-wise reconstruction: roundings of weights and scales of inputs, trained to keep a block's output.

A block ends where one tensor alone carries the network on. In order, each block is trained on the inputs that
the network quantized so far gives it, mixed with the float ones (QDrop; Wei et al., 2022), to give the float
network's output (BRECQ; Li et al., 2021), with the rounding's gradient taken as 1 (the straight-through
estimator; scales as in LSQ, Esser et al., 2020). No labels. A block is kept where two-fold cross-validation
finds its output better by more than twice the standard error of the difference; it is then trained on all.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from se_deploy import graph
from se_deploy.backends.pytorch import graph_runner
from se_deploy.errors import UnsupportedGraph, counted
from se_deploy.quantization import rounding
from se_deploy.quantization.qdq import HIGHEST_LEVEL, LOWEST_LEVEL
from se_deploy.quantization.reconstruction import Block, Trained
from se_deploy.quantization.scales import WEIGHT_LEVELS, representable

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

    from se_deploy.protocols import Progress
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import QuantizedLayer
    from se_deploy.quantization.reconstruction import Task

Tensor = torch.Tensor

_MOST_SAMPLES = 256  # more change a block's rounding little, and are held in memory
_MOST_BYTES = 512 << 20  # of a block's inputs and outputs
_FEWEST = 8  # samples, without which nothing can be said of noise
_BATCH = 16
_STEP_RATE, _SCALE_RATE, _BIAS_RATE = 1e-3, 1e-3, 1e-3
"""Learning rates: of weights in steps, of the logarithm of scales, and of biases over their outputs' size."""
_MIXED = 0.5  # share of input elements taken from the float network, as in QDrop
_STANDARD_ERRORS = 2.0  # that a block must be better by
_TRAININGS = 3  # two folds, and all samples
_NEAREST = 0.49  # steps from a level: a weight begins where it rounds to the level it has
_LEAST_POWER = 1e-30


@dataclass(frozen=True, slots=True)
class _Part:
    """A block of the float network."""

    starts: tuple[str, ...]
    end: ir.Value
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Data:
    """What a block is trained on, (N, ...) each."""

    given: dict[str, Tensor]  # its inputs as the network quantized so far makes them
    exact: dict[str, Tensor]  # its inputs in the float network
    target: Tensor  # its output in the float network


def train(task: Task, *, seconds: float, progress: Progress) -> Trained:
    """Train the roundings of a network (reconstruction.Trainer) for about `seconds`."""
    threads = torch.get_num_threads()
    torch.manual_seed(task.seed)
    try:
        return _Trainer(task).train(time.monotonic() + seconds, progress)
    finally:
        torch.set_num_threads(threads)


class _Trainer:
    def __init__(self, task: Task) -> None:
        self.model = task.model
        self.order = {str(layer.node): layer for layer in task.layers}
        self.planned = {layer.node: layer for layer in task.planned}
        self.parts = _parts(task.model, frozenset(self.planned))
        self.batch = task.batch if task.batch > 1 else _BATCH
        self.samples = _first_samples(task)
        self.macs = {name: self.order[name].macs for name in self.planned}

    def train(self, deadline: float, progress: Progress) -> Trained:
        exact = dict(self.samples)
        given = dict(self.samples)
        blocks = []
        left = sum(self._work(part) for part in self.parts)
        for i, part in enumerate(self.parts):
            progress("reconstruct", i, len(self.parts))
            now = time.monotonic()
            share = self._work(part) / max(1, left)
            left -= self._work(part)
            try:
                target = self._forward(part, exact, None)
                left_s = max(0.0, deadline - now) * share
                block, state = self._block(part, _Data(given, exact, target), left_s)
                given = {str(part.end.name): self._forward(part, given, state)}
                exact = {str(part.end.name): target}
            except UnsupportedGraph as e:
                blocks += [
                    Block(
                        str(rest.end.name),
                        rest.layers,
                        kept=False,
                        reason=e.message if rest is part else "it is behind one that cannot be run",
                    )
                    for rest in self.parts[i:]
                    if rest.layers
                ]
                break
            if part.layers:
                blocks.append(block)
        progress("reconstruct", len(self.parts), len(self.parts))
        return Trained(tuple(self.planned.values()), tuple(blocks))

    def _work(self, part: _Part) -> int:
        return sum(self.macs[name] for name in part.layers)

    def _block(self, part: _Part, data: _Data, seconds: float) -> tuple[Block, _State]:
        """Train one block and keep it where that is better; return what came of it."""
        plain = _State([(self.order[name], self.planned[name]) for name in part.layers], self._tied())
        name, count = str(part.end.name), len(data.target)
        if count < _FEWEST or not seconds:
            reason = (
                "no time was left"
                if count >= _FEWEST
                else f"{counted(count, 'sample', ('is', 'are'))} too few"
            )
            return Block(name, part.layers, kept=False, reason=reason), plain
        before = _errors(self._forward(part, data.given, plain), data.target)
        after = torch.zeros_like(before)
        folds = torch.arange(count) % 2
        for fold in (0, 1):
            state, apart = plain.copy(), torch.nonzero(folds == fold)[:, 0]
            self._fit(part, state, data, torch.nonzero(folds != fold)[:, 0], seconds / _TRAININGS)
            got = self._forward(part, {k: v[apart] for k, v in data.given.items()}, state.rounded())
            after[apart] = _errors(got, data.target[apart], power=data.target)
        kept = is_better(before.numpy(), after.numpy())
        if kept:
            self._fit(part, plain, data, torch.arange(count), seconds / _TRAININGS)
            plain = plain.rounded()
            self.planned.update({layer.node: layer for layer in plain.layers()})
            self._rescale(plain.scales())
        decibels = [-10 * math.log10(max(float(one.mean()), _LEAST_POWER)) for one in (before, after)]
        return Block(name, part.layers, kept=kept, before_db=decibels[0], after_db=decibels[1]), plain

    def _tied(self) -> frozenset[str]:
        """Return the tensors whose scale must stay: others share it, or more than layers reads it."""
        scales: dict[float, set[str]] = {}
        tied = set()
        for name, layer in self.planned.items():
            tensor = self.order[name].tensor
            scales.setdefault(layer.params.scale, set()).add(tensor)
            tied |= {one.tensor for one in layer.params.beside} | (
                {tensor} if layer.params.residual else set()
            )
        return frozenset(tied.union(*(names for names in scales.values() if len(names) > 1)))

    def _rescale(self, scales: dict[str, float]) -> None:
        """Give every layer that reads a tensor its new scale."""
        for name, layer in self.planned.items():
            tensor = self.order[name].tensor
            if tensor in scales:
                params = dataclasses.replace(layer.params, scale=scales[tensor])
                self.planned[name] = dataclasses.replace(layer, params=params)

    def _fit(self, part: _Part, state: _State, data: _Data, chosen: Tensor, seconds: float) -> None:
        """Train `state` on the samples `chosen` until the time is over, at least one pass over them."""
        optimizer = torch.optim.Adam(state.groups())
        rates = [group["lr"] for group in optimizer.param_groups]
        power = data.target.square().mean().clamp_min(_LEAST_POWER)
        begin, steps, least = time.monotonic(), 0, math.ceil(len(chosen) / self.batch)
        while steps < least or time.monotonic() - begin < seconds:
            gone = min(1.0, (time.monotonic() - begin) / max(seconds, 1e-9))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * gone))
            few = chosen[torch.randperm(len(chosen))[: self.batch]]
            mixed = {
                name: torch.where(torch.rand_like(x[few]) < _MIXED, data.exact[name][few], x[few])
                for name, x in data.given.items()
            }
            optimizer.zero_grad()
            loss = (self._run(part, mixed, state) - data.target[few]).square().mean() / power
            loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's own
            optimizer.step()
            steps += 1

    def _forward(self, part: _Part, given: dict[str, Tensor], state: _State | None) -> Tensor:
        """Return a block's output for all samples, quantized by `state`, in float where that is None."""
        count = len(next(iter(given.values())))
        with torch.no_grad():
            made = [
                self._run(part, {k: v[i : i + self.batch] for k, v in given.items()}, state)
                for i in range(0, count, self.batch)
            ]
        return torch.cat(made)

    def _run(self, part: _Part, given: dict[str, Tensor], state: _State | None) -> Tensor:
        def layer(node: ir.Node, x: Tensor) -> Tensor | None:
            return None if state is None else state.compute(node, x)

        def read(node: ir.Node, slot: int, x: Tensor) -> Tensor:
            return x if state is None else self._beside(node, slot, x)

        return graph_runner.run(part.end, dict(given), layer, read)

    def _beside(self, node: ir.Node, slot: int, x: Tensor) -> Tensor:
        """Return what an operator that is no layer reads: quantized where a pair stands in front of it."""
        if node.name in self.order:
            return x
        value = node.inputs[slot]
        name = None if value is None else value.name
        for planned in self.planned.values():
            params = planned.params
            if params.residual and node.op_type == "Add" and self.order[planned.node].tensor == name:
                return _quantized(x, torch.tensor(params.scale))
            for one in params.beside:
                if one.tensor == name and node.name in one.readers:
                    return _quantized(x, torch.tensor(one.scale))
        return x


class _State:
    """What is trained in one block: weights in steps, biases, and the logarithms of the inputs' scales."""

    def __init__(self, layers: Iterable[tuple[Layer, QuantizedLayer]], tied: frozenset[str]) -> None:
        self._layers = {planned.node: (layer, planned) for layer, planned in layers}
        self._tied = tied
        self._steps: dict[str, Tensor] = {}
        self._bias: dict[str, Tensor] = {}
        self._log_scale: dict[str, Tensor] = {}
        for name, (layer, planned) in self._layers.items():
            matrix, bias = rounding.fold_into_weights(layer, planned.params)
            step = layer.as_stored(matrix) / _along(planned)
            level = planned.weight.astype(np.float64)
            start = level + np.clip(step - level, -_NEAREST, _NEAREST)
            self._steps[name] = torch.tensor(start, dtype=torch.float32)
            own = bias if planned.bias is None else planned.bias
            self._bias[name] = torch.tensor(own, dtype=torch.float32)
            self._log_scale.setdefault(layer.tensor, torch.tensor(math.log(planned.params.scale)))

    def copy(self) -> _State:
        """Return a state that is trained apart from this one."""
        other = _State(self._layers.values(), self._tied)
        for mine, its in zip(self._all(), other._all(), strict=True):
            its.update({name: tensor.detach().clone() for name, tensor in mine.items()})
        return other

    def _all(self) -> tuple[dict[str, Tensor], ...]:
        return self._steps, self._bias, self._log_scale

    def groups(self) -> list[dict[str, object]]:
        """Return what an optimizer trains, each kind with its rate."""
        free = [t for name, t in self._log_scale.items() if name not in self._tied]
        wanted = (
            (list(self._steps.values()), _STEP_RATE),
            (list(self._bias.values()), _BIAS_RATE),
            (free, _SCALE_RATE),
        )
        for tensors, _ in wanted:
            for tensor in tensors:
                tensor.requires_grad_()
        return [{"params": tensors, "lr": rate} for tensors, rate in wanted if tensors]

    def compute(self, node: ir.Node, x: Tensor) -> Tensor | None:
        """Return a layer of the block in INT8; None for one that is in float."""
        name = str(node.name)
        if name not in self._layers:
            return None
        layer, planned = self._layers[name]
        params = planned.params
        scale = self._log_scale[layer.tensor].exp()
        padded = False
        if params.offset is not None:
            x, padded = graph_runner.padded(node, x), True  # the zeros around it are quantized too
            x = x - _channels(params.offset, layer.channel_axis, x)
        if params.equalization is not None:
            x = x / _channels(params.equalization, layer.channel_axis, x)
        weight = _straight_through(self._steps[name].clamp(-WEIGHT_LEVELS, WEIGHT_LEVELS))
        weight = weight * torch.tensor(_along(planned), dtype=torch.float32)
        return graph_runner.convolve(node, _quantized(x, scale), weight, self._bias[name], padded=padded)

    def rounded(self) -> _State:
        """Return the state of the layers as they will be written: whole steps, scales that FP16 holds."""
        return _State(
            (
                (layer, planned)
                for (layer, _), planned in zip(self._layers.values(), self.layers(), strict=True)
            ),
            self._tied,
        )

    def scales(self) -> dict[str, float]:
        """Return the scale of each input as it is written."""
        names = list(self._log_scale)
        found = representable(np.exp([float(self._log_scale[name].detach()) for name in names]))
        return {
            name: self._own_scale(name) if name in self._tied else float(scale)
            for name, scale in zip(names, found, strict=True)
        }

    def _own_scale(self, tensor: str) -> float:
        return next(p.params.scale for layer, p in self._layers.values() if layer.tensor == tensor)

    def layers(self) -> list[QuantizedLayer]:
        """Return the layers with the trained weights, biases and scales."""
        scales = self.scales()
        made = []
        for name, (layer, planned) in self._layers.items():
            level = self._steps[name].detach().clamp(-WEIGHT_LEVELS, WEIGHT_LEVELS).round()
            made.append(
                dataclasses.replace(
                    planned,
                    params=dataclasses.replace(planned.params, scale=scales[layer.tensor]),
                    weight=level.numpy().astype(np.int8),
                    bias=self._bias[name].detach().numpy().astype(np.float32),
                )
            )
        return made


def is_better(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether errors (N,) after are smaller by more than twice the standard error of the mean difference."""
    gain = before.astype(np.float64) - after
    noise = gain.std(ddof=1) / math.sqrt(len(gain))
    return bool(gain.mean() > _STANDARD_ERRORS * noise)


def _errors(got: Tensor, target: Tensor, *, power: Tensor | None = None) -> Tensor:
    """Return each sample's squared error over the mean power of the outputs, (N,)."""
    mean = (target if power is None else power).square().mean().clamp_min(_LEAST_POWER)
    return (got - target).square().flatten(1).mean(1) / mean


def _straight_through(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def _quantized(x: Tensor, scale: Tensor) -> Tensor:
    return _straight_through((x / scale).clamp(LOWEST_LEVEL, HIGHEST_LEVEL)) * scale


def _channels(values: np.ndarray, axis: int, x: Tensor) -> Tensor:
    shape = [1] * x.ndim
    shape[axis] = -1
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def _along(planned: QuantizedLayer) -> np.ndarray:
    """Return the weight scale as it is multiplied with the stored weights."""
    scale = planned.weight_scale.astype(np.float64)
    if scale.ndim == 0:
        return scale
    shape = [1] * planned.weight.ndim
    shape[planned.axis] = -1
    return scale.reshape(shape)


def _first_samples(task: Task) -> dict[str, Tensor]:
    """Return the inputs of as many samples as memory allows, (N, ...) each."""
    held: dict[str, list[Tensor]] = {}
    largest = max((graph.count(v) or 0) for n in task.model.graph for v in n.outputs)
    most = min(_MOST_SAMPLES, max(_FEWEST, _MOST_BYTES // max(1, 4 * 4 * largest)))
    count = 0
    for feeds in task.samples.batches(task.batch):
        for name, array in feeds.items():
            held.setdefault(name, []).append(torch.from_numpy(np.array(array)))
        count += task.batch
        if count >= most:
            break
    return {name: torch.cat(arrays) for name, arrays in held.items()}


def _parts(model: ir.Model, layers: frozenset[str]) -> tuple[_Part, ...]:
    """Cut the network where one tensor alone is alive; each part has a layer of `layers`."""
    last = _last_uses(model)
    alive = {value for value in model.graph.inputs if value in last}
    starts = tuple(str(value.name) for value in alive)
    parts: list[_Part] = []
    inside: list[str] = []
    for i, node in enumerate(model.graph):
        alive |= {value for value in node.outputs if value in last}
        alive -= {value for value in alive if last[value] <= i}
        inside += [str(node.name)] if node.name in layers else []
        if len(alive) == 1 and inside:
            (end,) = alive
            if end in node.outputs:
                parts.append(_Part(starts, end, tuple(inside)))
                starts, inside = (str(end.name),), []
    if inside and len(model.graph.outputs) == 1:
        parts.append(_Part(starts, model.graph.outputs[0], tuple(inside)))
    return tuple(parts)


def _last_uses(model: ir.Model) -> dict[ir.Value, int]:
    """Return the index of the last node that reads each value; outputs are read behind all."""
    found: dict[ir.Value, int] = {}
    for i, node in enumerate(model.graph):
        found.update({v: i for v in node.inputs if v is not None and graph.constant(v) is None})
    found.update(dict.fromkeys(model.graph.outputs, len(list(model.graph))))
    return found
