"""The verb: measure, choose a grid per tensor, round the weights, write Q/DQ, judge on held-back samples."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from se_deploy import calibration, graph, se_blocks
from se_deploy.errors import BadInput, UnsupportedGraph
from se_deploy.passes.canonical.fold import fold_affine
from se_deploy.protocols import silent
from se_deploy.quantization import (
    cache,
    cost,
    goals,
    grids,
    layers,
    opsets,
    qdq,
    reconstruct,
    rounding,
    sensitivity,
)
from se_deploy.quantization.cache import Cache, Stamp
from se_deploy.quantization.fp16 import to_fp16
from se_deploy.quantization.judge import Judge, Judgement
from se_deploy.quantization.layers import Kept, Layer
from se_deploy.quantization.options import POLICIES, Policy, Quantized, QuantizeOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from se_deploy.calibration import Method, Statistics
    from se_deploy.data import Samples
    from se_deploy.protocols import Progress, Runtime
    from se_deploy.quantization.qdq import Grid, QuantizedLayer

# Least and most samples, and the MACs that all runs of a step together may take in between.
_JUDGED = (10, 48, 5e8)  # every choice is judged on these
_PROMISE = 1.4  # times less noise than minmax is predicted to make
_SENSED = (4, 16, 6e9)  # one layer alone in INT8
_RECONSTRUCTED = (16, 64, 1.2e9)  # second moments that round the weights


def quantize(
    model: ir.Model,
    samples: Samples,
    *,
    runtime: Runtime,
    fast: Runtime | None = None,
    options: QuantizeOptions | None = None,
    calib_cache: Path | None = None,
    progress: Progress = silent,
) -> Quantized:
    """Write `model` with its layers in INT8: explicit Q/DQ, symmetric, zero points 0.

    Part of `samples` is measured, and every choice is judged on the rest, which is held back: by `runtime`,
    node by node. `fast`, where given, runs the float network in its place, equal but for rounding. With
    `calib_cache`, scales and sensitivities are kept there and taken from there the next time.

    Raises: UnsupportedGraph where there is nothing to quantize; BadData; BadInput for an unknown policy, a
    cache of something else, or a goal that needs labels.
    """
    # The products are small and are taken beside the runtime's own threads: more threads make them slower.
    with threadpool_limits(1, user_api="blas"):
        return _quantize(
            model,
            samples,
            runtimes=(runtime, fast or runtime),
            options=options or QuantizeOptions(),
            calib_cache=calib_cache,
            progress=progress,
        )


def _quantize(
    model: ir.Model,
    samples: Samples,
    *,
    runtimes: tuple[Runtime, Runtime],
    options: QuantizeOptions,
    calib_cache: Path | None,
    progress: Progress,
) -> Quantized:
    policy = POLICIES.get(options.policy)
    if policy is None:
        raise BadInput(f"there is no policy '{options.policy}'", hint=f"choose one of {', '.join(POLICIES)}")
    stamp = _stamp(model, samples, options)
    known = None if calib_cache is None else cache.read(calib_cache, stamp)
    job = _prepare(model, samples, runtimes, policy, options)
    plan: _Plan | None = None
    if known is None:
        known, plan = _calibrated(job, stamp, progress)
        if calib_cache is not None:
            cache.write(calib_cache, known)
    noise: Mapping[str, float] = _predicted(job, known.grids, known.statistics())
    measured = options.goal.asked or bool(options.keep)  # the policy's own budget is too small to pay for it
    if measured:
        if not known.noise:
            rounded = _rounded(job, known.grids, known.statistics())
            alone = sensitivity.measure(rounded, job.sensing(), progress=progress)
            known = dataclasses.replace(known, noise=alone)
            if calib_cache is not None:
                cache.write(calib_cache, known)
        noise = known.noise
    ranked = sensitivity.order(job.layers, noise, job.added_ms if options.goal.asked else _macs_of)
    spared = sensitivity.within(ranked, job.float_budget())
    if plan is None or measured:
        plan = job.judged(goals.without(_rounded(job, known.grids, known.statistics()), spared))
    if options.reconstruct:
        plan = _reconstructed(job, plan, known.grids, progress)
    planned, judgement = plan.layers, plan.judgement
    warnings = [*samples.warnings, *job.warnings]
    rest = [layer for layer in ranked if layer not in spared] if options.goal.asked else []
    curve = goals.curve(planned, rest, job.judge, job.macs, job.added_ms) if rest else ()
    if options.goal.asked:
        count = goals.fewest(planned, rest, job.judge, options.goal)
        if count is None:
            warnings.append("the goal is not reached even with every layer in float")
        spared += rest if count is None else rest[:count]
        planned = goals.without(planned, spared)
        judgement = job.judge.layers(planned)
    result = qdq.to_qdq(job.model, planned).model
    if options.precision == "fp16":
        half = to_fp16(result)
        result = half.model
        warnings += half.warnings
        judgement = job.judge(result)
    inside = [layer for layer in job.layers if layer not in spared]
    return Quantized(
        model=result,
        policy=policy.name,
        method=known.method,
        samples=job.chosen.count,
        quantized=tuple(dict.fromkeys(layer.tensor for layer in inside)),
        kept=(*job.kept, *(_spared(layer, noise, measured=measured) for layer in spared)),
        sqnr_db=judgement.sqnr_db(),
        macs_int8_fraction=sum(layer.macs for layer in inside) / max(1, job.macs),
        grids={layer.tensor: known.grids[layer.tensor] for layer in inside},
        warnings=tuple(warnings),
        curve=curve,
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Layers in INT8, and how the graph with them was judged."""

    layers: list[QuantizedLayer]
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class _Job:
    """What every step of one run works on."""

    model: ir.Model  # the float network, BatchNorm folded
    layers: tuple[Layer, ...]
    kept: tuple[Kept, ...]
    policy: Policy
    options: QuantizeOptions
    fast: Runtime
    chosen: Samples
    block: int  # samples that the graph takes at once; 1 where it is free
    judge: Judge
    warnings: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Count the MACs of all convolutions and fully connected layers."""
        return sum(layer.macs for layer in self.layers) + sum(k.macs for k in self.kept)

    def float_budget(self) -> float:
        """Give the MACs that may yet stay in float."""
        share = self.policy.float_macs if self.options.keep is None else self.options.keep
        return share * self.macs - sum(k.macs for k in self.kept)

    def added_ms(self, layer: Layer) -> float:
        """Estimate what leaving a layer in float costs on the device that was named."""
        return cost.added_ms(layer, self.options.device)

    def judged(self, layers: list[QuantizedLayer]) -> _Plan:
        """Judge the graph with these layers in INT8."""
        return _Plan(layers, self.judge.layers(layers))

    def sensing(self) -> Judge:
        """Give a judge on few samples: every layer is tried alone."""
        few = _evenly(self.judge.held, _affordable(_SENSED, self.macs * len(self.layers)), self.block)
        if few is self.judge.held:
            return self.judge
        return Judge.of(self.model, self.judge.tensors, few, self.judge.runtime, self.fast)


def _stamp(model: ir.Model, samples: Samples, options: QuantizeOptions) -> Stamp:
    used = (options.hold_back, options.exclude_nodes, options.shift, options.divide)
    return Stamp(
        onnx_sha256=cache.model_sha256(model),
        data_sha256=samples.sha256,
        samples=samples.count,
        policy=options.policy,
        method=options.method or "auto",
        options=repr(used),
    )


def _prepare(
    model: ir.Model,
    samples: Samples,
    runtimes: tuple[Runtime, Runtime],
    policy: Policy,
    options: QuantizeOptions,
) -> _Job:
    runtime, fast = runtimes
    model = opsets.at_least(model, opsets.FP16_SCALES if options.precision == "fp16" else opsets.PER_CHANNEL)
    model = graph.rewrite(model, fold_affine).model
    found, kept = layers.find(model, se_blocks.detect(model), policy)
    if options.exclude_nodes:
        excluded = re.compile(options.exclude_nodes)
        out = [layer for layer in found if excluded.search(layer.node)]
        kept = (*kept, *(Kept(layer.node, "excluded by --exclude-nodes", layer.macs) for layer in out))
        found = tuple(layer for layer in found if layer not in out)
    if not found:
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
    total = sum(work[layer.node][0] for layer in found) + sum(work[k.node][0] for k in kept)
    held = _evenly(held, _affordable(_JUDGED, total), block)
    return _Job(
        model=model,
        layers=tuple(
            dataclasses.replace(layer, macs=work[layer.node][0], elements=work[layer.node][1])
            for layer in found
        ),
        kept=tuple(dataclasses.replace(k, macs=work[k.node][0]) for k in kept),
        policy=policy,
        options=options,
        fast=fast,
        chosen=chosen,
        block=block,
        judge=Judge.of(model, _last(model, found), held, runtime, fast),
        warnings=tuple(warnings),
    )


def _calibrated(job: _Job, stamp: Stamp, progress: Progress) -> tuple[Cache, _Plan]:
    """Measure the tensors and choose their grids by each method; keep the method that is judged best."""
    axes = {layer.tensor: layer.channel_axis for layer in job.layers}
    asked = job.options.method
    # Where channels are divided clipping pays seldom, and is looked at closely only on request.
    tails = asked != "minmax" and (asked is not None or not job.policy.divide)
    statistics = calibration.measure(
        job.model,
        axes,
        job.chosen,
        job.fast,
        positions=calibration.TAIL_POSITIONS if tails else calibration.POSITIONS,
        progress=progress,
    )
    values = {v.name: v for node in job.model.graph for v in node.outputs}
    residual = {
        layer.tensor
        for layer in job.layers
        if job.policy.residual and layer.tensor in values and qdq.adds(values[layer.tensor])
    }
    readers: dict[str, list[Layer]] = {}
    for layer in job.layers:
        readers.setdefault(layer.tensor, []).append(layer)
    methods = (asked,) if asked else calibration.METHODS
    chosen = {
        tensor: grids.choose(
            statistics[tensor],
            group,
            methods,
            shift=job.options.shift
            and tensor not in residual
            and all(_may_shift(layer, job.policy) for layer in group),
            divide=job.options.divide and job.policy.divide and tensor not in residual,
            per_channel=job.policy.per_channel,
        )
        for tensor, group in readers.items()
    }
    noise = {method: sum(by_method[method].noise for by_method in chosen.values()) for method in methods}
    # minmax clips nothing, and what a prediction misses is what clipping does: another method must promise
    # enough to be tried against it.
    safe: Method = "minmax" if "minmax" in methods else methods[0]
    promise = _PROMISE if job.policy.divide else 1.0
    likely = [safe, *(method for method in methods if noise[method] * promise < noise[safe])]
    best: tuple[Method, dict[str, Grid], _Plan] | None = None
    for i, method in enumerate(likely):
        found = {
            tensor: dataclasses.replace(by_method[method].grid, residual=tensor in residual)
            for tensor, by_method in chosen.items()
        }
        spared = sensitivity.within(
            sensitivity.order(job.layers, _predicted(job, found, statistics), _macs_of), job.float_budget()
        )
        plan = job.judged(goals.without(_rounded(job, found, statistics), spared))
        if best is None or plan.judgement.score_db > best[2].judgement.score_db:
            best = (method, found, plan)
        progress("method", i + 1, len(likely))
    assert best is not None  # noqa: S101 - at least one method is likely
    method, found, plan = best
    moments = {name: (s.mean.tolist(), s.variance.tolist()) for name, s in statistics.items()}
    return Cache(stamp, method, found, moments), plan


def _may_shift(layer: Layer, policy: Policy) -> bool:
    return layer.can_shift and (policy.shift == "all" or (policy.shift == "unpadded" and not layer.padded))


def _rounded(
    job: _Job, found: Mapping[str, Grid], statistics: Mapping[str, Statistics]
) -> list[QuantizedLayer]:
    return [
        rounding.round_nearest(
            layer,
            found[layer.tensor],
            statistics[layer.tensor],
            per_channel=job.policy.per_channel and layer.scales_per_channel,
        )
        for layer in job.layers
    ]


def _predicted(
    job: _Job, found: Mapping[str, Grid], statistics: Mapping[str, Statistics]
) -> dict[str, float]:
    """Predict each layer's noise over its own output's power, by node name."""
    return {
        layer.node: grids.predicted_noise(
            layer, found[layer.tensor], statistics[layer.tensor], per_channel=job.policy.per_channel
        )
        for layer in job.layers
    }


def _reconstructed(job: _Job, plan: _Plan, found: Mapping[str, Grid], progress: Progress) -> _Plan:
    """Round by second moments; keep it where it is judged better."""
    names = {layer.node for layer in plan.layers}
    rounded = job.judged(
        reconstruct.reconstruct(
            job.model,
            [layer for layer in job.layers if layer.node in names],
            found,
            plan.layers,
            _evenly(job.chosen, _affordable(_RECONSTRUCTED, job.macs), job.block),
            runtime=job.fast,
            per_channel=job.policy.per_channel,
            progress=progress,
        )
    )
    return max(plan, rounded, key=lambda p: p.judgement.score_db)


def _spared(layer: Layer, noise: Mapping[str, float], *, measured: bool) -> Kept:
    level = 10 * np.log10(max(noise[layer.node], np.finfo(np.float64).tiny))
    where = "of the network's output" if measured else "of its own output, as predicted"
    return Kept(layer.node, f"alone in INT8 it makes noise at {level:.0f} dB {where}", layer.macs)


def _affordable(limits: tuple[int, int, float], macs: int) -> int:
    """Say how many samples may be run through `macs` each: large networks make do with fewer."""
    least, most, budget = limits
    return int(np.clip(budget / max(1, macs), least, most))


def _evenly(samples: Samples, most: int, block: int) -> Samples:
    """Take at most `most` samples, evenly spread, in whole blocks: more cost time and change no choice."""
    blocks = samples.count // block
    wanted = max(1, most // block)
    if blocks <= wanted:
        return samples
    starts = [n * blocks // wanted * block for n in range(wanted)]
    return samples.take([start + i for start in starts for i in range(block)])


def _macs_of(layer: Layer) -> float:
    return layer.macs


def _work(model: ir.Model, samples: Samples) -> dict[str, tuple[int, int]]:
    """Count each node's multiply-accumulates and elements per sample at the samples' own size, by name."""
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
    return {node.name or "": (graph.macs(node), graph.elements(node)) for node in copy.graph}


def _last(model: ir.Model, found: Sequence[Layer]) -> tuple[str, ...]:
    """Name the outputs of layers behind which there is no other layer."""
    names = {layer.node for layer in found}
    before: set[ir.Value] = set()  # values with a layer behind them
    last = []
    for node in reversed(list(model.graph)):
        behind = any(value in before for value in node.outputs)
        if node.name in names and not behind:
            last.append(node.outputs[0].name or "")
        if behind or node.name in names:
            before.update(value for value in node.inputs if value is not None)
    return tuple(reversed(last))
