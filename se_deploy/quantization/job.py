"""What every step of one quantization works on: the float network, its layers, the samples, an evaluator."""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import calibration, data, graph, opsets, se_blocks
from se_deploy.errors import BadInput, UnsupportedGraph, counted
from se_deploy.passes.canonical.fold import fold_affine
from se_deploy.quantization import equalization, layer_cost, layers
from se_deploy.quantization.evaluator import Evaluation, Evaluator
from se_deploy.quantization.layers import FloatLayer, Layer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.data import Samples
    from se_deploy.protocols import FloatArray, Runtime
    from se_deploy.quantization.equalization import Group
    from se_deploy.quantization.options import QuantizeOptions
    from se_deploy.quantization.policies import Policy
    from se_deploy.quantization.qdq import QuantizedLayer


@dataclass(frozen=True, slots=True)
class Effort:
    """How many samples a step runs: as many as `macs` pay for, within bounds."""

    least: int
    most: int
    macs: float

    def samples(self, macs: int) -> int:
        """Return how many samples may be run through `macs` each: large networks make do with fewer."""
        return int(np.clip(self.macs / max(1, macs), self.least, self.most))


# Bounds and budgets keep each step within some seconds of one core.
EVALUATION = Effort(10, 48, 5e8)  # every choice is evaluated on these
SENSITIVITY = Effort(4, 16, 6e9)  # one layer alone in INT8; the budget is shared by all layers
GPTQ = Effort(16, 64, 1.2e9)  # second moments that round the weights
BIASES = Effort(8, 64, 5e8)  # mean errors of layers, by their biases

LEAST_INT8_MACS = 0.95
"""Of all layers with constant weights, SE gates included: the promise of a form that leaves some in float."""

_NAMED = 4  # nodes or tensors that a message names: more make it no clearer


@dataclass(frozen=True, slots=True)
class Plan:
    """Layers in INT8, and the evaluation of the graph with them."""

    layers: list[QuantizedLayer]
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Job:
    """What every step of one run works on."""

    model: ir.Model  # the float network, BatchNorm folded
    layers: tuple[Layer, ...]
    float_layers: tuple[FloatLayer, ...]
    policy: Policy
    options: QuantizeOptions
    fast: Runtime
    samples: Samples  # all of them
    chosen: Samples  # those that choices are made on
    held_back: bool  # whether others are held back to evaluate them
    block: int  # samples that the graph takes at once; 1 where it is free
    evaluator: Evaluator
    warnings: tuple[str, ...]

    @property
    def macs(self) -> int:
        """The MACs of all layers with constant weights, SE gates included."""
        return sum(layer.macs for layer in self.layers) + self.float_macs

    @property
    def float_macs(self) -> int:
        """The MACs of those of them that cannot be quantized, or are not to be."""
        return sum(layer.macs for layer in self.float_layers if layer.has_weights)

    def without_tensors(self, reasons: Mapping[str, str]) -> Job:
        """Return the job with the layers that read these tensors left in float, each for its reason.

        Raises: UnsupportedGraph where none is left to quantize.
        """
        out = tuple(
            FloatLayer(layer.node, f"its input '{layer.tensor}' {reasons[layer.tensor]}", layer.macs)
            for layer in self.layers
            if layer.tensor in reasons
        )
        inside = tuple(layer for layer in self.layers if layer.tensor not in reasons)
        if not inside:
            raise _nothing_to_quantize(out)
        return dataclasses.replace(self, layers=inside, float_layers=(*self.float_layers, *out))

    def equalized(self, factors: Mapping[Group, FloatArray]) -> Job:
        """Return the job on the float network with these factors in its weights."""
        model = equalization.fold(self.model, factors).model
        held = self.evaluator
        divided = {name for group in factors for name in group.tensors}
        if divided.isdisjoint(held.tensors):
            evaluator = held.of_equal(model)
        else:
            last = tuple(name for name in held.tensors if name not in held.outputs)
            evaluator = Evaluator.of(model, last, held.held, held.runtime, self.fast)
        return dataclasses.replace(
            self, model=model, layers=layers.reread(model, self.layers), evaluator=evaluator
        )

    def float_budget(self) -> float:
        """Return the MACs that may yet stay in float."""
        share = self.policy.float_macs if self.options.float_macs is None else self.options.float_macs
        return share * self.macs - self.float_macs

    def missed_share(self, fraction: float) -> tuple[str, ...]:
        """Return what to warn of where less is in INT8 than the form promises, and nobody asked for that."""
        asked = self.options.float_macs is not None or self.options.goal.asked or self.options.exclude_nodes
        if not self.policy.float_macs or asked or fraction >= LEAST_INT8_MACS:
            return ()
        largest = sorted((one for one in self.float_layers if one.has_weights), key=lambda one: -one.macs)
        reasons = "; ".join(f"'{one.node}': {one.reason}" for one in largest[:_NAMED])
        found = f"{fraction:.1%} of the multiply-accumulates are in INT8"
        return (f"{found}, less than {LEAST_INT8_MACS:.0%} ({reasons})",)

    def added_ms(self, layer: Layer) -> float:
        """Return about what leaving a layer in float costs on the device that was named."""
        return layer_cost.fp16_overhead_ms(layer, self.options.device)

    @property
    def parts(self) -> int:
        """How many parts of the samples can be held back in turn."""
        return self.samples.parts(self.options.hold_back, self.block)

    def at_turn(self, turn: int) -> Job:
        """Return the job with another part of the samples held back, as many of it to evaluate as here."""
        chosen, held = self.samples.split(self.options.hold_back, self.block, turn=turn)
        few = evenly(held, self.evaluator.held.count, self.block)
        return dataclasses.replace(self, chosen=chosen, evaluator=self.evaluator.on(few, self.fast))

    def evaluated(self, planned: list[QuantizedLayer]) -> Plan:
        """Return the plan with the evaluation of the graph with these layers in INT8."""
        return Plan(planned, self.evaluator.layers(planned))

    def sensitivity_evaluator(self) -> Evaluator:
        """Return an evaluator on few samples: every layer is tried alone."""
        most = SENSITIVITY.samples(self.macs * len(self.layers))
        few = evenly(self.evaluator.held, most, self.block)
        if few is self.evaluator.held:
            return self.evaluator
        return Evaluator.of(self.model, self.evaluator.tensors, few, self.evaluator.runtime, self.fast)


def prepare(
    model: ir.Model, samples: Samples, runtimes: tuple[Runtime, Runtime], options: QuantizeOptions
) -> Job:
    """Return what the steps work on: candidates to quantize, samples to choose on and an evaluator of others.

    `runtimes`: one that runs graphs as they stand, and a faster one for the float network.
    Raises: UnsupportedGraph where no layer can be quantized; BadInput for a pattern that is none.
    """
    runtime, fast = runtimes
    needed = opsets.FP16_SCALES if options.base_precision == "fp16" else opsets.PER_CHANNEL
    model = graph.rewrite(opsets.at_least(model, needed), fold_affine).model
    collected = layers.collect(model, se_blocks.detect(model), options.policy)
    candidates, float_layers = collected.quantizable, collected.in_float
    if options.exclude_nodes:
        excluded = _pattern(options.exclude_nodes)
        out = [layer for layer in candidates if excluded.search(layer.node)]
        float_layers = (
            *float_layers,
            *(FloatLayer(layer.node, "excluded by --exclude-nodes", layer.macs) for layer in out),
        )
        candidates = tuple(layer for layer in candidates if layer not in out)
    if not candidates:
        raise _nothing_to_quantize(float_layers)
    work = _work(model, samples)
    gates = [g for g in collected.gates if not (options.exclude_nodes and excluded.search(g.node))]
    candidates, float_layers = _with_gates(gates, candidates, float_layers, work, options)
    block = calibration.frozen_batch(model) or 1
    chosen, held = samples.split(options.hold_back, block)
    warnings = []
    free = [layer.node for layer in candidates if layer.window and layer.window.auto_pad != "NOTSET"]
    if free:
        warnings.append(
            f"{counted(len(free), 'convolution', ('pads', 'pad'))} by auto_pad and the input size is free: "
            f"quantized without an offset; `export --input-size` settles the size ({named(free)})"
        )
    held_back = bool(held.count)
    if not held_back:
        held = chosen
        warnings.append(
            f"{counted(samples.count, 'sample', ('is', 'are'))} too few to hold any back: choices were "
            "evaluated on the samples that they were made on"
        )
    else:
        warnings += data.held_doubts(chosen, held)
    total = sum(work[node].macs for node in [*(c.node for c in candidates), *(f.node for f in float_layers)])
    held = evenly(held, EVALUATION.samples(total), block)
    return Job(
        model=model,
        layers=tuple(
            dataclasses.replace(layer, macs=work[layer.node].macs, elements=work[layer.node].elements)
            for layer in candidates
        ),
        float_layers=tuple(dataclasses.replace(layer, macs=work[layer.node].macs) for layer in float_layers),
        policy=options.policy,
        options=options,
        fast=fast,
        samples=samples,
        chosen=chosen,
        held_back=held_back,
        block=block,
        evaluator=Evaluator.of(model, _last_outputs(model, candidates), held, runtime, fast),
        warnings=tuple(warnings),
    )


def _with_gates(
    gates: Sequence[Layer],
    candidates: tuple[Layer, ...],
    float_layers: tuple[FloatLayer, ...],
    work: Mapping[str, _Work],
    options: QuantizeOptions,
) -> tuple[tuple[Layer, ...], tuple[FloatLayer, ...]]:
    """Return layers to quantize and layers in float, with gates quantized where too much would be in float.

    SE gates cost accuracy and save little, so they stay in float as long as the form's share allows; then the
    largest go first. A form that promises no share leaves them alone.
    """
    if not options.policy.float_macs:
        return candidates, float_layers
    share = max(options.policy.float_macs, options.float_macs or 0.0)
    left = sum(work[one.node].macs for one in float_layers if one.has_weights)
    allowed = share * (left + sum(work[layer.node].macs for layer in candidates))
    taken: dict[str, Layer] = {}
    for gate in sorted(gates, key=lambda layer: -work[layer.node].macs):
        if left <= allowed:
            break
        taken[gate.node] = gate
        left -= work[gate.node].macs
    order = {name: i for i, name in enumerate(work)}
    inside = sorted((*candidates, *taken.values()), key=lambda layer: order[layer.node])
    return tuple(inside), tuple(one for one in float_layers if one.node not in taken)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as e:
        raise BadInput(f"--exclude-nodes '{text}' is no regular expression: {e}", hint="as in '^stem'") from e


def _nothing_to_quantize(float_layers: Sequence[FloatLayer]) -> UnsupportedGraph:
    if not float_layers:
        return UnsupportedGraph(
            "the graph has no convolution or fully connected layer to quantize",
            hint="give the FP32 graph that `se-deploy export` wrote",
        )
    reasons = told([f"'{layer.node}': {layer.reason}" for layer in float_layers])
    return UnsupportedGraph(
        f"no layer of the graph can be quantized: {reasons}", hint="leave the network in FP16 or FP32"
    )


def told(texts: Sequence[str]) -> str:
    """Return the first few texts and how many there are beside them."""
    listed = "; ".join(texts[:_NAMED])
    return listed if len(texts) <= _NAMED else f"{listed}; and {len(texts) - _NAMED} more"


def named(names: Sequence[str]) -> str:
    """Return the first few names and how many there are beside them."""
    listed = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return listed if len(names) <= _NAMED else f"{listed} and {len(names) - _NAMED} more"


def evenly(samples: Samples, most: int, block: int) -> Samples:
    """Return at most `most` samples, evenly spread, in whole blocks."""
    blocks = samples.count // block
    wanted = max(1, most // block)
    if blocks <= wanted:
        return samples
    starts = [n * blocks // wanted * block for n in range(wanted)]
    return samples.take([start + i for start in starts for i in range(block)])


@dataclass(frozen=True, slots=True)
class _Work:
    """What a node computes and moves per sample."""

    macs: int
    elements: int


def _work(model: ir.Model, samples: Samples) -> dict[str, _Work]:
    """Return each node's work at the samples' own size, by name."""
    settled = calibration.frozen_batch(model) is not None and not any(
        None in (graph.dims(value) or ()) for value in model.graph.inputs
    )
    sized = model if settled or _only_batch_is_free(model) else _sized(model, samples)
    return {
        node.name or "": _Work(graph.macs(node), graph.elements(node)) for node in sized.graph.all_nodes()
    }


def _only_batch_is_free(model: ir.Model) -> bool:
    """Whether every size is known but that of the batch, always the first one, which counts as 1."""
    batch = {value.shape[0] for value in model.graph.inputs if value.shape}
    return all(
        value.shape is not None
        and all(isinstance(d, int) for d in value.shape[1:])
        and (not value.shape or isinstance(value.shape[0], int) or value.shape[0] in batch)
        for value in itertools.chain(
            model.graph.inputs, (value for node in model.graph.all_nodes() for value in node.outputs)
        )
    )


def _sized(model: ir.Model, samples: Samples) -> ir.Model:
    """Return a copy with the sizes of one sample."""
    copy = model.clone()
    first = next(samples.batches(1))
    frozen = calibration.frozen_batch(model) is not None
    for value in copy.graph.inputs:
        if value.name in first:
            shape = first[value.name].shape
            own = (graph.dims(value) or shape) if frozen else shape  # a frozen batch may be in a Reshape
            value.shape = ir.Shape([n if d is None else d for d, n in zip(own, shape, strict=True)])
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    return graph.tidy(copy)


def _last_outputs(model: ir.Model, candidates: Sequence[Layer]) -> tuple[str, ...]:
    """Return the outputs of layers behind which there is no other layer."""
    names = {layer.node for layer in candidates}
    before: set[ir.Value] = set()  # values with a layer behind them
    last = []
    for node in reversed(list(model.graph)):
        behind = any(value in before for value in node.outputs)
        if node.name in names and not behind:
            last.append(node.outputs[0].name or "")
        if behind or node.name in names:
            before.update(value for value in node.inputs if value is not None)
    return tuple(reversed(last))
