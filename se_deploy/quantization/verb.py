"""The verb: measure, choose a grid per tensor, round the weights, write Q/DQ, judge on held-back samples."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import calibration, graph, se_blocks
from se_deploy.canonical.fold import fold_affine
from se_deploy.errors import BadInput, UnsupportedGraph
from se_deploy.precision import opsets, to_fp16, to_qdq, trial
from se_deploy.protocols import silent
from se_deploy.quantization import grids, layers, reconstruct, rounding, sensitivity
from se_deploy.quantization.judge import Judge
from se_deploy.quantization.layers import Kept, Layer
from se_deploy.quantization.options import POLICIES, Policy, Quantized, QuantizeOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.calibration import Method, Statistics
    from se_deploy.data import Samples
    from se_deploy.precision import Grid, QuantizedLayer
    from se_deploy.protocols import Progress, Runtime


_JUDGED = 32  # samples held back that every choice is judged on, at most
_SENSED = (4, 32, 2.5e10)  # least and most of them for one layer alone, and MACs for all layers
_RECONSTRUCTED = (16, 64, 2.5e10)  # the same for the samples whose second moments round the weights


def quantize(
    model: ir.Model,
    samples: Samples,
    *,
    runtime: Runtime,
    options: QuantizeOptions | None = None,
    progress: Progress = silent,
) -> Quantized:
    """Write `model` with its layers in INT8: explicit Q/DQ, symmetric, zero points 0.

    `runtime` runs the float network on `samples` and judges the
    result on the samples held back.

    Raises: UnsupportedGraph where there is nothing to quantize; BadData; BadInput for an unknown policy.
    """
    options = options or QuantizeOptions()
    policy = POLICIES.get(options.policy)
    if policy is None:
        raise BadInput(f"there is no policy '{options.policy}'", hint=f"choose one of {', '.join(POLICIES)}")
    model = opsets.at_least(model, opsets.FP16_SCALES if options.precision == "fp16" else opsets.PER_CHANNEL)
    model = graph.rewrite(model, fold_affine).model
    found, kept = _placed(model, policy, options)
    macs = _macs(model, samples)
    found = tuple(dataclasses.replace(layer, macs=macs[layer.node]) for layer in found)
    kept = tuple(dataclasses.replace(k, macs=macs[k.node]) for k in kept)
    chosen, held = samples.split(options.hold_back)
    total = sum(layer.macs for layer in found) + sum(k.macs for k in kept)
    held = _evenly(held, _JUDGED)
    statistics = calibration.measure(
        model, {layer.tensor: layer.channel_axis for layer in found}, chosen, runtime, progress=progress
    )
    judge = Judge.of(model, _last(model, found), held, runtime)
    tried = []
    for method in (options.method,) if options.method else calibration.METHODS:
        planned = _round(found, statistics, method, policy, options)
        tried.append((judge(trial(model, planned)), method, planned))
    judgement, method, planned = max(tried, key=lambda t: t[0].score_db)
    budget = (policy.float_macs if options.keep is None else options.keep) * total - sum(k.macs for k in kept)
    if budget > 0:
        few = _evenly(held, _affordable(_SENSED, total * len(found)))
        noise = sensitivity.measure(
            model, planned, Judge.of(model, judge.tensors, few, runtime), progress=progress
        )
        spared = sensitivity.within(sensitivity.order(found, noise), budget)
        kept = (
            *kept,
            *(
                Kept(
                    layer.node,
                    f"alone in INT8 it adds noise of {10 * np.log10(noise[layer.node]):.0f} dB",
                    layer.macs,
                )
                for layer in spared
            ),
        )
        names = {layer.node for layer in spared}
        found = tuple(layer for layer in found if layer.node not in names)
        planned = [layer for layer in planned if layer.node not in names]
        judgement = judge(trial(model, planned))
    if options.reconstruct:
        chosen_grids = {layer.tensor: q.grid for layer, q in zip(found, planned, strict=True)}
        few = _evenly(chosen, _affordable(_RECONSTRUCTED, total * reconstruct.PASSES))
        for upstream in (False, True):
            rounded = reconstruct.reconstruct(
                model,
                found,
                chosen_grids,
                planned,
                few,
                runtime=runtime,
                per_channel=policy.per_channel,
                upstream=upstream,
                progress=progress,
            )
            found_better = judge(trial(model, rounded))
            if found_better.score_db > judgement.score_db:
                planned, judgement = rounded, found_better
    result = to_qdq(model, planned).model
    warnings = samples.warnings
    if options.precision == "fp16":
        half = to_fp16(result)
        result, warnings = half.model, (*warnings, *half.warnings)
        judgement = judge(result)
    inside = sum(layer.macs for layer in found)
    return Quantized(
        model=result,
        policy=policy.name,
        method=method,
        samples=chosen.count,
        quantized=tuple(dict.fromkeys(layer.tensor for layer in found)),
        kept=kept,
        sqnr_db=judgement.sqnr_db(),
        macs_int8_fraction=inside / max(1, total),
        grids={layer.tensor: q.grid for layer, q in zip(found, planned, strict=True)},
        warnings=warnings,
    )


def _affordable(limits: tuple[int, int, float], macs: int) -> int:
    """Say how many samples may be run through `macs` each: large networks make do with fewer."""
    least, most, budget = limits
    return int(np.clip(budget / max(1, macs), least, most))


def _evenly(samples: Samples, most: int) -> Samples:
    """Take at most `most` samples, evenly spread: more would cost time and change no choice."""
    if samples.count <= most:
        return samples
    return samples.take([n * samples.count // most for n in range(most)])


def _macs(model: ir.Model, samples: Samples) -> dict[str, int]:
    """Count each node's multiply-accumulates per sample at the samples' own size, by node name."""
    copy = model.clone()
    first = next(samples.batches(1))
    for value in copy.graph.inputs:
        if value.name in first:
            value.shape = ir.Shape(first[value.name].shape)
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    graph.tidy(copy)
    return {node.name or "": graph.macs(node) for node in copy.graph}


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


def _placed(
    model: ir.Model, policy: Policy, options: QuantizeOptions
) -> tuple[tuple[Layer, ...], tuple[Kept, ...]]:
    found, kept = layers.find(model, se_blocks.find(model), policy)
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
    return found, kept


def _round(
    found: Sequence[Layer],
    statistics: dict[str, Statistics],
    method: Method,
    policy: Policy,
    options: QuantizeOptions,
) -> list[QuantizedLayer]:
    readers: dict[str, list[Layer]] = {}
    for layer in found:
        readers.setdefault(layer.tensor, []).append(layer)
    chosen: dict[str, Grid] = {}
    for tensor, group in readers.items():
        shift = options.shift and all(
            layer.can_shift and (policy.shift == "all" or (policy.shift == "unpadded" and not layer.padded))
            for layer in group
        )
        chosen[tensor] = grids.choose(
            statistics[tensor],
            group,
            method,
            shift=shift,
            divide=options.divide and policy.divide,
            per_channel=policy.per_channel,
        )
    return [
        rounding.round_nearest(
            layer,
            chosen[layer.tensor],
            statistics[layer.tensor],
            per_channel=policy.per_channel and not (layer.op == "ConvTranspose" and layer.groups > 1),
        )
        for layer in found
    ]
