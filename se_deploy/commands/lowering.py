"""A canonical FP32 graph becomes the form that a target likes, in the precision asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from se_deploy import data, files, quantization, se_blocks, verification
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.commands import fp16, on_workers, sampling, shapes
from se_deploy.errors import counted
from se_deploy.passes import rewrites, search
from se_deploy.passes.registry import Scope
from se_deploy.protocols import silent
from se_deploy.quantization import fp16_rounding, layer_cost, to_bf16, to_fp16
from se_deploy.roofline import roofline_ms
from se_deploy.targets import figures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.backends.backend import Backend
    from se_deploy.commands.verifying import Checker
    from se_deploy.options import CalibrationOptions, FloatType, Precision, RewriteOptions, TargetOptions
    from se_deploy.passes.search import GraphCost, SearchResult
    from se_deploy.plan import Plan
    from se_deploy.protocols import Planner, Progress
    from se_deploy.quantization.fp16_ranges import KeptFp32
    from se_deploy.targets import Device, Target
    from se_deploy.verification import Failure, Verified


@dataclass(frozen=True, slots=True)
class Lowered:
    """A graph in its final precision, and what was done to get there."""

    model: ir.Model
    rewritten: ir.Model  # the FP32 graph that it was lowered from
    blocks: tuple[se_blocks.SEBlock, ...]  # as the rewritten graph spells them
    found: SearchResult | None  # the search for exact rewrites; None where none was asked for
    quantized: quantization.QuantizationResult | None
    samples: data.Samples | None
    verified: Verified  # the rewrites and the precision against the source of it all
    warnings: tuple[str, ...]
    kept_fp32: tuple[KeptFp32, ...] = ()  # what FP16 cannot hold
    unchecked: tuple[str, ...] = ()  # what nobody knows of FP16's ranges, in words
    rounding: str | None = None  # where the numbers that were verified are rounded to FP16, in words


@dataclass(frozen=True, slots=True)
class Destination:
    """What a graph is lowered for."""

    backend: Backend | None  # None: the portable form
    targets: tuple[Target, ...]
    rewrites: RewriteOptions
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of inputs, to plan at
    workers: on_workers.Workers = on_workers.HERE


def destination(options: TargetOptions) -> Destination:
    """Return what `options` name.

    Raises: BadInput or MissingRuntime for a runtime that is not here; BadInput for unreadable saved rewrites.
    """
    if options.rewrites.replay is not None:
        _saved(options.rewrites.replay)
    return Destination(registry.chosen(options.runtime), options.targets, options.rewrites, options.sizes)


@contextlib.contextmanager
def planner_for(to: Destination) -> Iterator[Planner | None]:
    """Open the planner whose plans decide on rewrites; None where a backend has none."""
    planning = None if to.backend is None else to.backend.planning
    if to.backend is None or planning is None or not planning.decides_rewrites:
        yield None
        return
    asked = on_workers.Asked(to.backend.name, to.targets[0] if to.targets else None, to.sizes)
    with on_workers.planner(to.workers, planning, asked) as planner:
        yield planner


def half(model: ir.Model) -> ir.Model:
    """Return `model` in FP16, inputs and outputs in FP32."""
    return to_fp16(model).model


def optimized(
    model: ir.Model,
    *,
    precision: Precision,
    to: Destination,
    planner: Planner | None = None,
    progress: Progress = silent,
) -> SearchResult | None:
    """Rewrite for a target: as saved, or what the planner says is cheapest; None where nothing was asked.

    Cost is planned bytes, or the roofline time where a device is named whose figures have a source.
    """
    options, backend = to.rewrites, to.backend
    if options.names == ():
        return None
    blocks = se_blocks.detect(model).se
    if options.replay is not None:
        choices = _saved(options.replay)
        done = search.replay(model, blocks, choices)
        lost = len(choices) - len(done.applied)
        notes = (f"{lost} saved rewrites do not apply to this graph",) if lost else ()
        refused = search.refusals(model, done, blocks, [choice.rewrite for choice in choices])
        return search.SearchResult(done.model, done.applied, None, None, (), 0, done.counts, notes, refused)
    form = backend.form() if backend else None
    scope = form.scope if form else Scope.PORTABLE
    names = search.allowed(scope, options.names, constant_weights=form is not None and form.constant_weights)
    if precision == "int8":  # a quantized convolution keeps constant weights
        computed = {r.name for r in rewrites.rewriters() if r.run_time_weights}
        names = tuple(name for name in names if name not in computed)
    return search.optimize(
        model,
        blocks,
        names,
        planner=planner,
        goal=search.Goal(
            cost=_cost(to.targets),
            lower=_half_unless(precision),
            budget_plans=options.search_plans,
            seconds=options.search_seconds,
        ),
        progress=progress,
    )


def _saved(path: Path) -> tuple[search.Choice, ...]:
    return search.from_json(files.read_text(path), name=f"'{path}'")


def _cost(targets: Sequence[Target]) -> GraphCost | None:
    """Roofline milliseconds on the first device named; None, for planned bytes, without figures of it.

    The arithmetic is that of the graph that was planned: a rewrite makes layers and takes layers away.
    """
    device = targets[0].device if targets else None
    if device is None or not device.has_figures:
        return None
    known = device

    def of(model: ir.Model) -> Callable[[Plan], float]:
        counted: dict[tuple[object, ...], Mapping[str, int]] = {}  # by the sizes of a plan: one entry

        def milliseconds(plan: Plan) -> float:
            if plan.shapes not in counted:
                counted[plan.shapes] = shapes.macs(model, plan)
            return _milliseconds(plan, counted[plan.shapes], known)

        return milliseconds

    return of


def _same(model: ir.Model) -> ir.Model:
    return model


def lowered(
    model: ir.Model,
    *,
    precision: Precision,
    to: Destination,
    calibration: CalibrationOptions,
    io: FloatType = "fp32",
    base: FloatType | None = None,
    planner: Planner | None = None,
    check: Checker | None = None,
    planned: bool = False,
    samples: data.Samples | None = None,
    progress: Progress = silent,
) -> Lowered:
    """Rewrite, quantize and lower a canonical FP32 graph, and verify it with `check`.

    `base` is the precision of what is not INT8; None for the backend's own, FP32 in the portable form.
    `samples` are the calibration data where they were read already. With `planned` the caller verifies the
    precision itself, by the plan that is yet to be made (`precision_verified`).
    Raises: BadData where INT8 has no calibration data.
    """
    asked = to.rewrites.names != ()
    if asked:
        progress("rewrites", 0, 1)
    found = optimized(model, precision=precision, to=to, planner=planner, progress=progress)
    verified = verification.skipped() if check is None else verification.Verified()
    if found is not None and found.choices and check is not None:
        found, verified = _right(found, model, check)
        if planner is not None and verified.taken_back:
            found = _replanned(found, planner, precision, _cost(to.targets))
    if asked:
        progress("rewrites", 1, 1, f"{len(found.choices) if found else 0} applied")
    form = found.model if found else model
    blocks = _blocks(model, form)
    notes = list(found.warnings) if found else []
    made: quantization.QuantizationResult | None = None
    final = form
    kept: tuple[KeptFp32, ...] = ()
    unchecked: tuple[str, ...] = ()
    if precision == "fp16":
        progress("to FP16", 0, 1)
        probes = None if check is None else check.expected.probes
        half_way = fp16.half(
            form,
            io=io,
            samples=samples or sampling.range_samples(form, calibration),
            probes=probes,
        )
        final, kept, unchecked = half_way.model, half_way.kept, half_way.unchecked
        notes += half_way.warnings
        progress("to FP16", 1, 1, f"{counted(len(kept), 'node', ('stays', 'stay'))} in FP32")
    if precision == "bf16":
        brain = to_bf16(form)
        final, kept = brain.model, brain.kept
        notes += brain.warnings
    if precision == "int8":
        progress("quantize", 0, 1)
        samples = samples or sampling.calibration_samples(form, calibration)
        made = quantized(form, samples, to=to, calibration=calibration, base=base, progress=progress)
        final, kept, unchecked = made.model, made.kept_fp32, made.unchecked
        notes += made.warnings
        progress("quantize", 1, 1, f"{100 * made.macs_int8_fraction:.1f} % of the arithmetic in INT8")
    notes += unchecked_notes(unchecked)
    rounding = None
    if check is not None and not planned:
        progress("compare with the source", 0, 1)
        run = fp16_rounding.evaluation(final)
        verified = verified.joined(precision_verified(final, run, check, precision))
        progress("compare with the source", 1, 1, verified.summary)
        rounding = run.rounding
    return Lowered(
        final,
        form,
        blocks,
        found,
        made,
        samples if precision == "int8" else None,
        verified,
        tuple(notes),
        kept,
        unchecked,
        rounding,
    )


def _right(found: SearchResult, model: ir.Model, check: Checker) -> tuple[SearchResult, Verified]:
    """Verify a rewritten graph; take back the choices that change its answers."""
    verified = check.verify(found.model, "rewrites")
    if verified.passed:
        return found, verified
    blocks = se_blocks.detect(model).se

    def faults(choices: Sequence[search.Choice]) -> Sequence[Failure]:
        step = f"rewrite: {choices[-1].rewrite} at '{choices[-1].site}'"
        return check.verify(search.replay(model, blocks, choices).model, step).failures

    kept = verification.keep_right(found.choices, faults)
    done = search.replay(model, blocks, kept.kept)
    found = dataclasses.replace(
        found, model=done.model, choices=tuple(sorted(done.applied)), counts=done.counts
    )
    verified = dataclasses.replace(check.verify(done.model, "rewrites"), taken_back=kept.faults)
    return found, verified


def _replanned(
    found: SearchResult, planner: Planner, precision: Precision, cost: GraphCost | None
) -> SearchResult:
    """Plan what is left after choices were taken back: the last step of the search."""
    plan = planner.plan(_half_unless(precision)(found.model))
    value = search.planned_bytes(plan) if cost is None else cost(found.model)(plan)
    now = search.Cost(plan.kernels, plan.activation_bytes, value)
    before = found.best or now
    step = search.Step("without what changed the answers", (), before, now)
    return dataclasses.replace(found, best=now, steps=(*found.steps, step))


def _half_unless(precision: Precision) -> Callable[[ir.Model], ir.Model]:
    """Return how a graph is lowered before it is planned: to FP16, unless it stays in FP32."""
    return _same if precision == "fp32" else half


def precision_verified(
    model: ir.Model, run: fp16_rounding.Evaluation, check: Checker, precision: Precision
) -> Verified:
    """Return the verdict of a precision's preset on `model` by the numbers of `run`; FP32 has none."""
    if precision == "fp32":
        return verification.Verified()
    return check.verify(model, precision, precision=precision, exact=False, evaluated=run.model)


def unchecked_notes(unchecked: Sequence[str]) -> list[str]:
    """Return what to warn of where nobody knows the ranges that FP16 must hold."""
    return [f"not checked: {text}; name samples with --calib-data" for text in unchecked]


def as_it_stands(model: ir.Model) -> Lowered:
    """Take a graph that is in its final precision already."""
    blocks = se_blocks.detect(model).se
    return Lowered(model, model, blocks, None, None, None, verification.Verified(), ())


def _blocks(before: ir.Model, after: ir.Model) -> tuple[se_blocks.SEBlock, ...]:
    """Every block of `before`, as `after` spells it; a gate that moved into weights keeps its entry."""
    now = {block.output: block for block in se_blocks.detect(after).se}
    return tuple(now.get(block.output, block) for block in se_blocks.detect(before).se)


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the graph that it is of: its nodes' arithmetic is in no plan."""

    plan: Plan
    model: ir.Model

    def milliseconds(self, device: Device) -> float:
        """Return the roofline of the plan on a device whose figures are known, ms per image."""
        return _milliseconds(self.plan, shapes.macs(self.model, self.plan), device)


def _milliseconds(plan: Plan, macs: Mapping[str, int], device: Device) -> float:
    time = roofline_ms(plan, macs, device)
    if time is None:
        raise ValueError(f"the figures of {device.title} are not known")
    return time


@dataclass(frozen=True, slots=True)
class Worth:
    """INT8 against FP16 on one target: bytes and kernels as planned, and a roofline or what was timed."""

    int8: Plan
    fp16: Plan
    device: Device | None = None  # whose roofline it is; None where no figures are known of the target
    int8_ms: float | None = None  # per image
    fp16_ms: float | None = None
    timed_on: str | None = None  # the GPU that the ms were measured on; None: they are a roofline's

    @property
    def known(self) -> bool:
        """Both forms were planned or timed."""
        return True

    @property
    def worth_it(self) -> bool:
        """Whether INT8 is planned to move fewer bytes, and to take less time where a roofline says it."""
        if self.timed_on is not None and self.int8_ms is not None and self.fp16_ms is not None:
            return self.int8_ms < self.fp16_ms
        less = self.int8.activation_bytes < self.fp16.activation_bytes
        return less and (self.int8_ms is None or self.fp16_ms is None or self.int8_ms < self.fp16_ms)

    @property
    def reason(self) -> str:
        """The comparison in one sentence."""
        a, b = self.int8, self.fp16
        if self.timed_on is not None and self.int8_ms is not None and self.fp16_ms is not None:
            ms_a, ms_b = _distinct(self.int8_ms, self.fp16_ms, digits=3)
            return (
                f"the INT8 engine takes {ms_a} ms and the FP16 engine {ms_b} ms per call, the median on "
                f"{self.timed_on} ({a.runtime} {a.version}; timed)"
            )
        less = a.activation_bytes < b.activation_bytes
        bytes_a, bytes_b = _distinct(a.activation_bytes / 1e6, b.activation_bytes / 1e6, digits=2)
        also, roofline = "", f"no roofline: no figures are known of {a.target}"
        if self.device is not None and self.int8_ms is not None and self.fp16_ms is not None:
            ms_a, ms_b = _distinct(self.int8_ms, self.fp16_ms, digits=3)
            also = (" and takes less time" if self.worth_it else " but takes no less time") if less else ""
            roofline = f"{ms_a} against {ms_b} ms by the roofline of {self.device.title}"
        return (
            f"the INT8 plan moves {'less' if less else 'no less'} than the FP16 plan{also}: "
            f"{bytes_a} MB in {counted(a.kernels, 'kernel')} against "
            f"{bytes_b} MB in {counted(b.kernels, 'kernel')} per image, {roofline} "
            f"({a.runtime} {a.version}, {a.target}; planned, not timed)"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell the user; empty where INT8 pays."""
        return () if self.worth_it else (f"INT8 is not recommended here, use FP16: {self.reason}",)

    @property
    def failures(self) -> tuple[str, ...]:
        """What fails where INT8 has to pay; empty where it does."""
        return () if self.worth_it else (f"INT8 brings nothing here: {self.reason}",)


def _distinct(one: float, other: float, *, digits: int) -> tuple[str, str]:
    """Return both figures with `digits` decimals, or with as many more as it takes to tell them apart."""
    most = 12  # of a double's 16 digits: figures that agree in so many are equal
    while f"{one:.{digits}f}" == f"{other:.{digits}f}" and one != other and digits < most:
        digits += 1
    return f"{one:.{digits}f}", f"{other:.{digits}f}"


def worth(
    int8: ir.Model,
    fp16: ir.Model,
    *,
    planner: Planner,
    targets: Sequence[Target] = (),
    built: Planned | None = None,
) -> Worth:
    """Plan both forms; `built` is an FP16 plan of the same network at hand, and counts where it is cheaper.

    The roofline is that of the device named, or of one that stands for the plan's target; without figures of
    either there is none, and bytes decide.
    Raises: BuildFailed.
    """
    ours = Planned(planner.plan(int8), int8)
    device = quantization.roofline_device(targets) or figures(ours.plan.target)
    others = [Planned(planner.plan(fp16), fp16)]
    if built is not None and ours.plan.target in built.plan.targets:
        others.append(built)
    if device is None:
        return Worth(ours.plan, min((one.plan for one in others), key=search.planned_bytes))
    times = [one.milliseconds(device) for one in others]
    best = min(range(len(others)), key=times.__getitem__)
    return Worth(ours.plan, others[best].plan, device, ours.milliseconds(device), times[best])


def quantized(
    model: ir.Model,
    samples: data.Samples,
    *,
    to: Destination,
    calibration: CalibrationOptions,
    base: FloatType | None,
    progress: Progress = silent,
) -> quantization.QuantizationResult:
    """Quantize by the runtime's rules, or by the policy named; layers cost what they do on a target named."""
    preferred = to.backend.form().policy if to.backend else quantization.PORTABLE
    options = quantization.QuantizeOptions(
        policy=preferred if calibration.policy is None else registry.policy(calibration.policy),
        method=calibration.method,
        base_precision=base or preferred.base_precision,
        exclude_nodes=calibration.exclude_nodes,
        float_macs=calibration.keep_fraction,
        goal=quantization.AccuracyGoal(calibration.min_sqnr_db, calibration.max_drop_points),
        device=quantization.roofline_device(to.targets),
        reconstruct=None
        if calibration.reconstruct_s is None
        else quantization.Request(registry.trainer(), calibration.reconstruct_s),
    )
    done = quantization.quantize(
        model,
        samples,
        runtime=registry.graph_runtime(SessionOptions(threads=1, exact=True)),
        fast=registry.graph_runtime(SessionOptions(threads=1, lean=True)),
        options=options,
        extremes=[p.feeds for p in fp16.made_up(model)] if options.base_precision == "fp16" else (),
        calib_cache=calibration.cache,
        each=to.workers.each,
        progress=progress,
    )
    if to.targets and options.device is None and (options.goal.asked or options.float_macs):
        named = ", ".join(target.called for target in to.targets)
        ranked = (
            f"no figures are known of {named}: which layers stay in FP16 is ranked by another device's "
            f"roofline, that of {layer_cost.DEFAULT_DEVICE}"
        )
        return dataclasses.replace(done, warnings=(*done.warnings, ranked))
    return done
