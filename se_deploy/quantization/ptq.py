"""Post-training quantization: measure, choose parameters, round weights, write Q/DQ, evaluate."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from se_deploy import calibration, graph
from se_deploy.errors import BadInput
from se_deploy.protocols import in_turn, silent
from se_deploy.quantization import (
    cache,
    corrected,
    equalization,
    fp16_ranges,
    fp16_rounding,
    gptq,
    mixed_precision,
    placement,
    qdq,
    qparams,
    reconstruction,
    residual,
    rounding,
    scales,
    sensitivity,
)
from se_deploy.quantization.cache import Cache, Moments
from se_deploy.quantization.fp16 import to_fp16
from se_deploy.quantization.job import GPTQ, Job, Plan, evenly, named, prepare
from se_deploy.quantization.layers import FloatLayer, Layer
from se_deploy.quantization.options import QuantizationResult, QuantizeOptions
from se_deploy.schema import tool_version
from se_deploy.schema.files import Stamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.calibration import Method, Statistics
    from se_deploy.data import Samples
    from se_deploy.protocols import Arrays, Each, FloatArray, Progress, Runtime
    from se_deploy.quantization.policies import Policy
    from se_deploy.quantization.qdq import QuantizedLayer, QuantParams


_DEFAULT_METHOD: Method = "mse"
"""Scales of least predicted error."""
_OTHER_METHODS: tuple[Method, ...] = ("percentile", "entropy")
"""Tried beside it where the data may hold what should not decide: they are blind to single values. Taking the
best of all methods on some tens of samples was tried: chance, and with more samples it cost up to 6 dB."""
_FEWEST_HELD = 6  # samples that may speak for another method: four did, and cost a text detector 5 dB
_PROMISE = 1.4  # times less rounding noise than the default's: else it is not worth an evaluation


def quantize(
    model: ir.Model,
    samples: Samples,
    *,
    runtime: Runtime,
    fast: Runtime | None = None,
    options: QuantizeOptions | None = None,
    extremes: Sequence[Arrays] = (),
    calib_cache: Path | None = None,
    each: Each = in_turn,
    progress: Progress = silent,
) -> QuantizationResult:
    """Return `model` with its layers in INT8: explicit Q/DQ, symmetric, zero points 0.

    Part of `samples` is measured, and every choice is evaluated on the rest, which is held back: by
    `runtime`, node by node. `fast`, where given, runs the float network in its place, equal but for rounding.
    Over an FP16 base `extremes` are batches beside the samples that must not leave FP16's range. With
    `calib_cache`, scales and sensitivities are kept there and taken from there the next time. `each` works on
    the layers whose sensitivity is measured.

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
            each=each,
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
    each: Each,
    progress: Progress,
) -> QuantizationResult:
    policy = options.policy
    stamp = _stamp(model, samples, options)
    known = None if calib_cache is None else cache.read(calib_cache, stamp)
    job = prepare(model, samples, runtimes, options)
    plan: Plan | None = None
    if known is not None:
        job = _equalized(job, known)
    else:
        known, job, plan = _calibrated(job, stamp, progress)
        if calib_cache is not None:
            cache.write(calib_cache, known)
    job = job.without_tensors(known.float_tensors)
    if calib_cache is not None:
        _check_complete(calib_cache, known, job.layers)
    noise: Mapping[str, float] = _predicted(job, known.params, known.statistics())
    measured = options.goal.asked or bool(options.float_macs)  # the policy's own share is too small to pay it
    if measured:
        if not known.noise:
            rounded = _rounded(job, known.params, known.statistics())
            alone = sensitivity.measure(rounded, job.sensitivity_evaluator(), each=each, progress=progress)
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
    if options.bias_correction:
        plan = corrected.with_biases(job, plan, progress)
    params, rebuilt = known.params, None
    if options.reconstruct is not None:
        plan, rebuilt = _reconstructed(job, plan, options.reconstruct, progress)
        read_by = {layer.node: layer.tensor for layer in job.layers}
        params = {**params, **{read_by[layer.node]: layer.params for layer in plan.layers}}
    planned, evaluation = plan.layers, plan.evaluation
    warnings = [*samples.warnings, *job.warnings]
    rest = [layer for layer in ranked if layer not in in_float] if options.goal.asked else []
    remaining = corrected.Remaining(job, plan, progress)
    curve = mixed_precision.tradeoff_curve(planned, rest, remaining, job.macs, job.added_ms) if rest else ()
    if options.goal.asked:
        count = mixed_precision.fewest_float_layers(planned, rest, remaining, options.goal)
        if count is None:
            warnings.append("the goal is not reached even with every layer in float")
        in_float += rest if count is None else rest[:count]
        plan = remaining.plan(mixed_precision.without(planned, in_float))
        planned, evaluation = plan.layers, plan.evaluation
    result = qdq.to_qdq(job.model, planned).model
    half = run = None
    if options.base_precision == "fp16":
        half = to_fp16(result, ranges=_ranges(job, result, extremes))
        result = half.model
        warnings += half.warnings
        run = fp16_rounding.evaluation(result)
        evaluation = job.evaluator(run.model)
    inside = [layer for layer in job.layers if layer not in in_float]
    fraction = sum(layer.macs for layer in inside) / max(1, job.macs)
    warnings += [*_notes(params, inside, planned), *job.missed_share(fraction)]
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
        macs_int8_fraction=fraction,
        params={layer.tensor: params[layer.tensor] for layer in inside},
        warnings=tuple(warnings),
        curve=curve,
        kept_fp32=half.kept if half else (),
        unchecked=half.unchecked if half else (),
        reconstruction=rebuilt,
        rounding=run.rounding if run else None,
    )


def _reconstructed(
    job: Job, plan: Plan, request: reconstruction.Request, progress: Progress
) -> tuple[Plan, reconstruction.Reconstruction]:
    """Return the plan with trained blocks where the whole network is better with them, and what was done."""
    task = reconstruction.Task(job.model, job.layers, plan.layers, job.chosen, job.block)
    trained = request.trainer(task, seconds=request.seconds, progress=progress)
    after = job.evaluated(list(trained.planned))
    kept = any(b.kept for b in trained.blocks) and after.evaluation.score_db > plan.evaluation.score_db
    before_db, after_db = (min(one.evaluation.sqnr_db().values()) for one in (plan, after))
    done = reconstruction.Reconstruction(request.seconds, kept, trained.blocks, before_db, after_db)
    return (after if kept else plan), done


def _ranges(job: Job, model: ir.Model, extremes: Sequence[Arrays]) -> fp16_ranges.Ranges:
    """Return the ranges of the Q/DQ graph's tensors on the samples held back and on the extremes."""
    held = job.evaluator.held.batches(job.block)
    kinds = ["data", *(["extremes"] if extremes else [])]
    return fp16_ranges.measure(model, itertools.chain(held, extremes), job.fast, kinds=kinds)


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


def _equalized(job: Job, known: Cache) -> Job:
    """Return the job with the factors in its weights that an earlier run chose. Raises: BadInput."""
    if not known.factors:
        return job
    possible = equalization.groups(job.model, {layer.tensor for layer in job.layers}, pointwise=True)
    if unknown := [group for group in known.factors if group not in possible]:
        raise BadInput(
            f"the calibration cache: its factors of {named(unknown[0].tensors)} do not fit the graph",
            hint="delete the cache or name another one with --calib-cache",
        )
    return job.equalized(known.factors)


def _check_complete(path: Path, known: Cache, candidates: Sequence[Layer]) -> None:
    """Raise BadInput where a cache lacks what a layer needs."""
    for layer in candidates:
        entry = known.moments.get(layer.tensor)
        if entry is None or len(entry.mean) != layer.channels:
            what = "is missing" if entry is None else f"has {len(entry.mean)} channels, not {layer.channels}"
            raise BadInput(
                f"the calibration cache '{path}': tensors.{layer.tensor} {what}",
                hint="delete the cache or name another one with --calib-cache",
            )
        if known.noise and layer.node not in known.noise:
            raise BadInput(
                f"the calibration cache '{path}': noise.{layer.node} is missing",
                hint="delete the cache or name another one with --calib-cache",
            )


def _notes(
    params: Mapping[str, QuantParams], inside: Sequence[Layer], planned: Sequence[QuantizedLayer]
) -> list[str]:
    """Return what scales were not chosen by the data, in a user's words."""
    tensors = dict.fromkeys(layer.tensor for layer in inside)
    notes = [f"the tensor '{name}': {params[name].reason}" for name in tensors if params[name].reason]
    raised = [layer.node for layer in planned if layer.raised_for_bias]
    if raised:
        notes.append(
            f"the weight scales of {len(raised)} layers were raised, so that their biases fit into the int32 "
            f"sums of a runtime that adds them there ({named(raised)})"
        )
    return notes


def _calibrated(job: Job, stamp: Stamp, progress: Progress) -> tuple[Cache, Job, Plan]:
    """Return parameters of all tensors, the job that they are for (equalized, maybe) and the plan of them."""
    placed = placement.place(job.model, job.layers) if job.policy.whole_chain else placement.Placement()
    axes = {pair.tensor: 1 for pair in placed.pairs}
    axes |= {layer.tensor: layer.channel_axis for layer in job.layers}
    method = job.options.method or _DEFAULT_METHOD
    statistics = calibration.measure(
        job.model,
        axes,
        job.chosen,
        job.fast,
        positions=calibration.POSITIONS if method == "minmax" else calibration.TAIL_POSITIONS,
        progress=progress,
    )
    float_tensors = {
        name: reason
        for name, seen in statistics.items()
        if (reason := scales.out_of_range(float(seen.low.min()), float(seen.high.max()), qdq.HIGHEST_LEVEL))
    }
    job = job.without_tensors(float_tensors)
    placed = placed.without(float_tensors)
    tensors = dict.fromkeys(layer.tensor for layer in job.layers)
    shared = residual.read_by_adds(job.model, tensors) if job.policy.quantize_residual else set()
    tied = shared | placed.tied
    adds: set[str] = set() if job.policy.whole_chain else shared  # else pairs are placed one by one
    factors = _equalization(job, statistics, tied)
    if factors:
        job = job.equalized(factors)
        statistics = _divided(statistics, factors)
    subjects = _subjects(job, statistics, tied)

    def by(method: Method) -> dict[str, QuantParams]:
        chosen = {name: qparams.choose(one, (method,))[method].params for name, one in subjects.items()}
        params = {n: dataclasses.replace(one, residual=n in adds) for n, one in chosen.items()}
        return placement.with_pairs(params, placed, job.layers, statistics, method)

    def planned(params: Mapping[str, QuantParams]) -> Plan:
        ranked = sensitivity.rank(job.layers, _predicted(job, params, statistics), _macs_of)
        in_float = sensitivity.within_budget(ranked, job.float_budget())
        return job.evaluated(mixed_precision.without(_rounded(job, params, statistics), in_float))

    params = by(method)
    plan = planned(params)
    if job.options.method is None and job.evaluator.held.count >= _FEWEST_HELD:
        for name in _OTHER_METHODS:
            other = by(name)
            ours, theirs = (sum(_predicted(job, one, statistics).values()) for one in (params, other))
            if theirs * _PROMISE < ours:
                tried = planned(other)
                if tried.evaluation.surely_better(plan.evaluation):
                    method, params, plan = name, other, tried
    moments = {
        name: Moments(tuple(s.mean.tolist()), tuple(s.variance.tolist())) for name, s in statistics.items()
    }
    known = Cache(stamp, method, params, moments, float_tensors=float_tensors, factors=factors)
    return known, job, plan


def _subjects(job: Job, statistics: Mapping[str, Statistics], shared: set[str]) -> dict[str, qparams.Subject]:
    """Return each tensor to be quantized, with its readers and what may be done to it.

    `shared` are those that others than layers read quantized too.
    """
    readers: dict[str, list[Layer]] = {}
    for layer in job.layers:
        readers.setdefault(layer.tensor, []).append(layer)
    values = graph.values(job.model)
    weight = {name: qparams.importance(statistics[name], group) for name, group in readers.items()}
    behind = residual.behind_adds(job.model, readers) if shared else {}
    return {
        tensor: qparams.Subject(
            statistics[tensor],
            group,
            qparams.Allowed(
                offset_folding=job.options.offset_folding
                and tensor not in shared
                and all(_may_fold_offset(layer, values[tensor], job.policy) for layer in group),
                channel_equalization=job.options.channel_equalization
                and job.policy.channel_equalization
                and tensor not in shared,
                per_channel_weights=job.policy.per_channel_weights,
            ),
            sum((weight[name] for name in behind.get(tensor, ())), np.zeros_like(weight[tensor])),
        )
        for tensor, group in readers.items()
    }


def _equalization(
    job: Job, statistics: Mapping[str, Statistics], shared: set[str]
) -> dict[equalization.Group, FloatArray]:
    """Return what each group's channels are divided by, where the policy has that in the weights."""
    if not (job.policy.folded_equalization and job.options.channel_equalization):
        return {}
    subjects = _subjects(job, statistics, shared)
    found = {}
    for group in equalization.groups(job.model, subjects, pointwise=True):
        factor = qparams.group_factor([subjects[name] for name in group.tensors if name in subjects])
        if factor is not None:
            found[group] = factor
    return found


def _divided(
    statistics: Mapping[str, Statistics], factors: Mapping[equalization.Group, FloatArray]
) -> dict[str, Statistics]:
    """Return the statistics of the tensors of the equalized network."""
    of = {name: factor for group, factor in factors.items() for name in group.tensors}
    return {name: seen.divided(of[name]) if name in of else seen for name, seen in statistics.items()}


def _may_fold_offset(layer: Layer, read: ir.Value, policy: Policy) -> bool:
    if not layer.can_fold_offset or policy.offset_folding == "none":
        return False
    if policy.offset_folding == "all":
        return True
    return not layer.padded and (
        policy.offset_folding == "unpadded" or equalization.in_pointwise_kernel(read)
    )


def _rounded(
    job: Job, params: Mapping[str, QuantParams], statistics: Mapping[str, Statistics]
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
    job: Job, params: Mapping[str, QuantParams], statistics: Mapping[str, Statistics]
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


def _with_gptq(job: Job, plan: Plan, params: Mapping[str, QuantParams], progress: Progress) -> Plan:
    """Return the plan with weights rounded by GPTQ, or the plan itself where that is surely better."""
    names = {layer.node for layer in plan.layers}
    rounded = job.evaluated(
        gptq.round_layers(
            job.model,
            [layer for layer in job.layers if layer.node in names],
            params,
            plan.layers,
            evenly(job.chosen, GPTQ.samples(job.macs), job.block),
            runtime=job.fast,
            per_channel=job.policy.per_channel_weights,
            progress=progress,
        )
    )
    return plan if plan.evaluation.surely_better(rounded.evaluation) else rounded


def _left_in_float(layer: Layer, noise: Mapping[str, float], *, measured: bool) -> FloatLayer:
    level = 10 * np.log10(max(noise[layer.node], np.finfo(np.float64).tiny))
    where = "of the network's output" if measured else "of its own output, as predicted"
    return FloatLayer(layer.node, f"alone in INT8 it makes noise at {level:.0f} dB {where}", layer.macs)


def _macs_of(layer: Layer) -> float:
    return layer.macs
