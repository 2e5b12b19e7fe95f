"""Post-training quantization: measure, choose parameters, round weights, write Q/DQ, evaluate."""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from se_deploy import calibration, graph, se_blocks
from se_deploy.errors import UnsupportedGraph
from se_deploy.passes.canonical.fold import fold_affine
from se_deploy.protocols import silent
from se_deploy.quantization import (
    cache,
    fp16_ranges,
    fp16_rounding,
    gptq,
    layer_cost,
    layers,
    mixed_precision,
    opsets,
    qdq,
    qparams,
    rounding,
    sensitivity,
)
from se_deploy.quantization.cache import Cache
from se_deploy.quantization.evaluator import Evaluation, Evaluator
from se_deploy.quantization.fp16 import to_fp16
from se_deploy.quantization.layers import FloatLayer, Layer
from se_deploy.quantization.options import QuantizationResult, QuantizeOptions
from se_deploy.schema import tool_version
from se_deploy.schema.files import Stamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from se_deploy.calibration import Method, Statistics
    from se_deploy.data import Samples
    from se_deploy.protocols import Arrays, Progress, Runtime
    from se_deploy.quantization.policies import Policy
    from se_deploy.quantization.qdq import QuantizedLayer, QuantParams


@dataclass(frozen=True, slots=True)
class _Effort:
    """How many samples a step runs: as many as `macs` pay for, within bounds."""

    least: int
    most: int
    macs: float

    def samples(self, macs: int) -> int:
        """Return how many samples may be run through `macs` each: large networks make do with fewer."""
        return int(np.clip(self.macs / max(1, macs), self.least, self.most))


# Bounds and budgets keep each step within some seconds of one core; more samples changed no choice on the
# networks of scripts/bench_ptq.py.
_EVALUATION = _Effort(10, 48, 5e8)  # every choice is evaluated on these
_SENSITIVITY = _Effort(4, 16, 6e9)  # one layer alone in INT8; the budget is shared by all layers
_GPTQ = _Effort(16, 64, 1.2e9)  # second moments that round the weights

_PROMISE = 1.4
"""Times less noise than minmax is predicted to make (1.5 dB): where channels are equalized clipping pays
seldom, and predictions are wrong by about that much."""


def quantize(
    model: ir.Model,
    samples: Samples,
    *,
    runtime: Runtime,
    fast: Runtime | None = None,
    options: QuantizeOptions | None = None,
    extremes: Sequence[Arrays] = (),
    calib_cache: Path | None = None,
    progress: Progress = silent,
) -> QuantizationResult:
    """Return `model` with its layers in INT8: explicit Q/DQ, symmetric, zero points 0.

    Part of `samples` is measured, and every choice is evaluated on the rest, which is held back: by
    `runtime`, node by node. `fast`, where given, runs the float network in its place, equal but for rounding.
    Over an FP16 base `extremes` are batches beside the samples that must not leave FP16's range. With
    `calib_cache`, scales and sensitivities are kept there and taken from there the next time.

    Raises: UnsupportedGraph where there is nothing to quantize; BadData; BadInput for a cache of something
    else, or a goal that needs labels.
    """
    # The products are small and are taken beside the runtime's own threads: more threads make them slower.
    with threadpool_limits(1, user_api="blas"):
        return _quantize(
            model,
            samples,
            runtimes=(runtime, fast or runtime),
            options=options or QuantizeOptions(),
            extremes=extremes,
            calib_cache=calib_cache,
            progress=progress,
        )


def _quantize(
    model: ir.Model,
    samples: Samples,
    *,
    runtimes: tuple[Runtime, Runtime],
    options: QuantizeOptions,
    extremes: Sequence[Arrays],
    calib_cache: Path | None,
    progress: Progress,
) -> QuantizationResult:
    policy = options.policy
    stamp = _stamp(model, samples, options)
    known = None if calib_cache is None else cache.read(calib_cache, stamp)
    job = _prepare(model, samples, runtimes, options)
    plan: _Plan | None = None
    if known is None:
        known, plan = _calibrated(job, stamp, progress)
        if calib_cache is not None:
            cache.write(calib_cache, known)
    noise: Mapping[str, float] = _predicted(job, known.params, known.statistics())
    measured = options.goal.asked or bool(options.float_macs)  # the policy's own share is too small to pay it
    if measured:
        if not known.noise:
            rounded = _rounded(job, known.params, known.statistics())
            alone = sensitivity.measure(rounded, job.sensitivity_evaluator(), progress=progress)
            known = dataclasses.replace(known, noise=alone)
            if calib_cache is not None:
                cache.write(calib_cache, known)
        noise = known.noise
    ranked = sensitivity.rank(job.layers, noise, job.added_ms if options.goal.asked else _macs_of)
    in_float = sensitivity.within_budget(ranked, job.float_budget())
    if plan is None or measured:
        plan = job.evaluated(
            mixed_precision.without(_rounded(job, known.params, known.statistics()), in_float)
        )
    if options.gptq:
        plan = _with_gptq(job, plan, known.params, progress)
    planned, evaluation = plan.layers, plan.evaluation
    warnings = [*samples.warnings, *job.warnings]
    rest = [layer for layer in ranked if layer not in in_float] if options.goal.asked else []
    curve = (
        mixed_precision.tradeoff_curve(planned, rest, job.evaluator, job.macs, job.added_ms) if rest else ()
    )
    if options.goal.asked:
        count = mixed_precision.fewest_float_layers(planned, rest, job.evaluator, options.goal)
        if count is None:
            warnings.append("the goal is not reached even with every layer in float")
        in_float += rest if count is None else rest[:count]
        planned = mixed_precision.without(planned, in_float)
        evaluation = job.evaluator.layers(planned)
    result = qdq.to_qdq(job.model, planned).model
    half = run = None
    if options.base_precision == "fp16":
        half = to_fp16(result, ranges=_ranges(job, result, extremes))
        result = half.model
        warnings += half.warnings
        run = fp16_rounding.evaluation(result)
        evaluation = job.evaluator(run.model)
    inside = [layer for layer in job.layers if layer not in in_float]
    return QuantizationResult(
        model=result,
        policy=policy.name,
        method=known.method,
        samples=job.chosen.count,
        quantized=tuple(dict.fromkeys(layer.tensor for layer in inside)),
        float_layers=(
            *job.float_layers,
            *(_left_in_float(layer, noise, measured=measured) for layer in in_float),
        ),
        sqnr_db=evaluation.sqnr_db(),
        macs_int8_fraction=sum(layer.macs for layer in inside) / max(1, job.macs),
        params={layer.tensor: known.params[layer.tensor] for layer in inside},
        warnings=tuple(warnings),
        curve=curve,
        kept_fp32=half.kept if half else (),
        unchecked=half.unchecked if half else (),
        rounding=run.rounding if run else None,
    )


def _ranges(job: _Job, model: ir.Model, extremes: Sequence[Arrays]) -> fp16_ranges.Ranges:
    """Return the ranges of the Q/DQ graph's tensors on the samples held back and on the extremes."""
    held = job.evaluator.held.batches(job.block)
    kinds = ["data", *(["extremes"] if extremes else [])]
    return fp16_ranges.measure(model, itertools.chain(held, extremes), job.fast, kinds=kinds)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Layers in INT8, and the evaluation of the graph with them."""

    layers: list[QuantizedLayer]
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class _Job:
    """What every step of one run works on."""

    model: ir.Model  # the float network, BatchNorm folded
    layers: tuple[Layer, ...]
    float_layers: tuple[FloatLayer, ...]
    policy: Policy
    options: QuantizeOptions
    fast: Runtime
    chosen: Samples
    block: int  # samples that the graph takes at once; 1 where it is free
    evaluator: Evaluator
    warnings: tuple[str, ...]

    @property
    def macs(self) -> int:
        """The MACs of all convolutions and fully connected layers."""
        return sum(layer.macs for layer in self.layers) + sum(layer.macs for layer in self.float_layers)

    def float_budget(self) -> float:
        """Return the MACs that may yet stay in float."""
        share = self.policy.float_macs if self.options.float_macs is None else self.options.float_macs
        return share * self.macs - sum(layer.macs for layer in self.float_layers)

    def added_ms(self, layer: Layer) -> float:
        """Return about what leaving a layer in float costs on the device that was named."""
        return layer_cost.fp16_overhead_ms(layer, self.options.device)

    def evaluated(self, planned: list[QuantizedLayer]) -> _Plan:
        """Return the plan with the evaluation of the graph with these layers in INT8."""
        return _Plan(planned, self.evaluator.layers(planned))

    def sensitivity_evaluator(self) -> Evaluator:
        """Return an evaluator on few samples: every layer is tried alone."""
        most = _SENSITIVITY.samples(self.macs * len(self.layers))
        few = _evenly(self.evaluator.held, most, self.block)
        if few is self.evaluator.held:
            return self.evaluator
        return Evaluator.of(self.model, self.evaluator.tensors, few, self.evaluator.runtime, self.fast)


def _stamp(model: ir.Model, samples: Samples, options: QuantizeOptions) -> Stamp:
    used = (options.hold_back, options.exclude_nodes, options.offset_folding, options.channel_equalization)
    return Stamp(
        onnx_sha256=cache.model_sha256(model),
        data_sha256=samples.sha256,
        samples=samples.count,
        policy=options.policy.name,
        method=options.method or "auto",
        options=repr(used),
        version=tool_version(),
    )


def _prepare(
    model: ir.Model, samples: Samples, runtimes: tuple[Runtime, Runtime], options: QuantizeOptions
) -> _Job:
    runtime, fast = runtimes
    needed = opsets.FP16_SCALES if options.base_precision == "fp16" else opsets.PER_CHANNEL
    model = graph.rewrite(opsets.at_least(model, needed), fold_affine).model
    collected = layers.collect(model, se_blocks.detect(model), options.policy)
    candidates, float_layers = collected.quantizable, collected.in_float
    if options.exclude_nodes:
        excluded = re.compile(options.exclude_nodes)
        out = [layer for layer in candidates if excluded.search(layer.node)]
        float_layers = (
            *float_layers,
            *(FloatLayer(layer.node, "excluded by --exclude-nodes", layer.macs) for layer in out),
        )
        candidates = tuple(layer for layer in candidates if layer not in out)
    if not candidates:
        raise UnsupportedGraph(
            "the graph has no convolution or fully connected layer to quantize",
            hint="give the FP32 graph that `se-deploy export` wrote",
        )
    work = _work(model, samples)
    block = calibration.frozen_batch(model) or 1
    chosen, held = samples.split(options.hold_back, block)
    warnings = []
    if not held.count:
        held = chosen
        warnings.append(
            f"{samples.count} samples are too few to hold any back: choices were judged on the samples that "
            "they were made on"
        )
    total = sum(work[node].macs for node in [*(c.node for c in candidates), *(f.node for f in float_layers)])
    held = _evenly(held, _EVALUATION.samples(total), block)
    return _Job(
        model=model,
        layers=tuple(
            dataclasses.replace(layer, macs=work[layer.node].macs, elements=work[layer.node].elements)
            for layer in candidates
        ),
        float_layers=tuple(dataclasses.replace(layer, macs=work[layer.node].macs) for layer in float_layers),
        policy=options.policy,
        options=options,
        fast=fast,
        chosen=chosen,
        block=block,
        evaluator=Evaluator.of(model, _last_outputs(model, candidates), held, runtime, fast),
        warnings=tuple(warnings),
    )


def _calibrated(job: _Job, stamp: Stamp, progress: Progress) -> tuple[Cache, _Plan]:
    """Return parameters of all tensors by the method that is evaluated best, and the plan with them."""
    axes = {layer.tensor: layer.channel_axis for layer in job.layers}
    asked = job.options.method
    # Where channels are equalized clipping pays seldom, and is looked at closely only on request.
    tails = asked != "minmax" and (asked is not None or not job.policy.channel_equalization)
    statistics = calibration.measure(
        job.model,
        axes,
        job.chosen,
        job.fast,
        positions=calibration.TAIL_POSITIONS if tails else calibration.POSITIONS,
        progress=progress,
    )
    residual = _residual_tensors(job)
    methods = (asked,) if asked else calibration.METHODS
    choices = _choices(job, statistics, methods, residual)
    best: tuple[Method, dict[str, QuantParams], _Plan] | None = None
    likely = _likely(job, choices, methods)
    for i, method in enumerate(likely):
        params = {
            tensor: dataclasses.replace(by_method[method].params, residual=tensor in residual)
            for tensor, by_method in choices.items()
        }
        ranked = sensitivity.rank(job.layers, _predicted(job, params, statistics), _macs_of)
        in_float = sensitivity.within_budget(ranked, job.float_budget())
        plan = job.evaluated(mixed_precision.without(_rounded(job, params, statistics), in_float))
        if best is None or plan.evaluation.score_db > best[2].evaluation.score_db:
            best = (method, params, plan)
        progress("method", i + 1, len(likely))
    assert best is not None  # noqa: S101 - at least one method is likely
    method, params, plan = best
    moments = {name: (s.mean.tolist(), s.variance.tolist()) for name, s in statistics.items()}
    return Cache(stamp, method, params, moments), plan


def _residual_tensors(job: _Job) -> set[str]:
    """Return the tensors that a residual Add is to read quantized, where the policy wants that."""
    if not job.policy.quantize_residual:
        return set()
    values = {v.name: v for node in job.model.graph for v in node.outputs}
    return {layer.tensor for layer in job.layers if layer.tensor in values and qdq.adds(values[layer.tensor])}


def _choices(
    job: _Job, statistics: Mapping[str, Statistics], methods: Sequence[Method], residual: set[str]
) -> dict[str, dict[Method, qparams.Choice]]:
    """Return each tensor's parameters by each method."""
    readers: dict[str, list[Layer]] = {}
    for layer in job.layers:
        readers.setdefault(layer.tensor, []).append(layer)
    return {
        tensor: qparams.choose(
            statistics[tensor],
            group,
            methods,
            qparams.Allowed(
                offset_folding=job.options.offset_folding
                and tensor not in residual
                and all(_may_fold_offset(layer, job.policy) for layer in group),
                channel_equalization=job.options.channel_equalization
                and job.policy.channel_equalization
                and tensor not in residual,
                per_channel_weights=job.policy.per_channel_weights,
            ),
        )
        for tensor, group in readers.items()
    }


def _likely(
    job: _Job, choices: Mapping[str, Mapping[Method, qparams.Choice]], methods: Sequence[Method]
) -> list[Method]:
    """Return the methods worth an evaluation, the safe one first.

    minmax clips nothing, and what a prediction misses is what clipping does: another method must promise
    enough to be tried against it.
    """
    noise = {method: sum(by_method[method].noise for by_method in choices.values()) for method in methods}
    safe: Method = "minmax" if "minmax" in methods else methods[0]
    promise = _PROMISE if job.policy.channel_equalization else 1.0
    return [safe, *(method for method in methods if noise[method] * promise < noise[safe])]


def _may_fold_offset(layer: Layer, policy: Policy) -> bool:
    folding = policy.offset_folding
    return layer.can_fold_offset and (folding == "all" or (folding == "unpadded" and not layer.padded))


def _rounded(
    job: _Job, params: Mapping[str, QuantParams], statistics: Mapping[str, Statistics]
) -> list[QuantizedLayer]:
    """Return all layers with weights rounded to nearest."""
    return [
        rounding.round_nearest(
            layer,
            params[layer.tensor],
            statistics[layer.tensor],
            per_channel=job.policy.per_channel_weights and layer.scales_per_channel,
        )
        for layer in job.layers
    ]


def _predicted(
    job: _Job, params: Mapping[str, QuantParams], statistics: Mapping[str, Statistics]
) -> dict[str, float]:
    """Return each layer's predicted noise over its own output's power, by node name."""
    return {
        layer.node: qparams.predicted_noise(
            layer,
            params[layer.tensor],
            statistics[layer.tensor],
            per_channel=job.policy.per_channel_weights,
        )
        for layer in job.layers
    }


def _with_gptq(job: _Job, plan: _Plan, params: Mapping[str, QuantParams], progress: Progress) -> _Plan:
    """Return the plan with weights rounded by GPTQ where that is evaluated better, else the plan itself."""
    names = {layer.node for layer in plan.layers}
    rounded = job.evaluated(
        gptq.round_layers(
            job.model,
            [layer for layer in job.layers if layer.node in names],
            params,
            plan.layers,
            _evenly(job.chosen, _GPTQ.samples(job.macs), job.block),
            runtime=job.fast,
            per_channel=job.policy.per_channel_weights,
            progress=progress,
        )
    )
    return max(plan, rounded, key=lambda p: p.evaluation.score_db)


def _left_in_float(layer: Layer, noise: Mapping[str, float], *, measured: bool) -> FloatLayer:
    level = 10 * np.log10(max(noise[layer.node], np.finfo(np.float64).tiny))
    where = "of the network's output" if measured else "of its own output, as predicted"
    return FloatLayer(layer.node, f"alone in INT8 it makes noise at {level:.0f} dB {where}", layer.macs)


def _evenly(samples: Samples, most: int, block: int) -> Samples:
    """Return at most `most` samples, evenly spread, in whole blocks."""
    blocks = samples.count // block
    wanted = max(1, most // block)
    if blocks <= wanted:
        return samples
    starts = [n * blocks // wanted * block for n in range(wanted)]
    return samples.take([start + i for start in starts for i in range(block)])


def _macs_of(layer: Layer) -> float:
    return layer.macs


@dataclass(frozen=True, slots=True)
class _Work:
    """What a node computes and moves per sample."""

    macs: int
    elements: int


def _work(model: ir.Model, samples: Samples) -> dict[str, _Work]:
    """Return each node's work at the samples' own size, by name."""
    copy = model.clone()
    if calibration.frozen_batch(model) is None:
        first = next(samples.batches(1))
        for value in copy.graph.inputs:
            if value.name in first:
                value.shape = ir.Shape(first[value.name].shape)
        for node in copy.graph:
            for value in node.outputs:
                value.shape = None
        graph.tidy(copy)
    return {node.name or "": _Work(graph.macs(node), graph.elements(node)) for node in copy.graph}


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
