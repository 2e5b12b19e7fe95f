"""What each compiler at hand makes of a graph: its plan, a verdict per block, and what SE costs in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import fusion
from se_deploy.backends import registry
from se_deploy.commands import reading, shapes
from se_deploy.errors import BadInput, BuildFailed, MissingRuntime
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from se_deploy import se_blocks
    from se_deploy.backends.backend import Backend
    from se_deploy.fusion import Totals, Verdict
    from se_deploy.options import Precision, TargetOptions
    from se_deploy.plan import Plan
    from se_deploy.protocols import Planner, Progress
    from se_deploy.schema import common


@dataclass(frozen=True, slots=True)
class Planned:
    """One compiler's plan of the graph, a verdict per block, and what SE costs in it."""

    plan: Plan
    verdicts: tuple[Verdict, ...]
    totals: Totals
    precision: Precision


def planned(
    model: ir.Model,
    census: se_blocks.Census,
    target: TargetOptions,
    progress: Progress = silent,
) -> tuple[tuple[Planned, ...], tuple[str, ...]]:
    """Plan a graph with every backend that can plan without a device.

    One that is missing or refuses is a warning, unless it was asked for by name.
    """
    plans: list[Planned] = []
    notes: list[str] = []
    one = registry.chosen(target.runtime)
    names = registry.names() if one is None else (one.name,)
    for done, name in enumerate(names):
        progress("plan", done, len(names))
        try:
            plans += _plans(model, census, registry.get(name), target, asked=one is not None)
        except (MissingRuntime, BuildFailed) as e:
            if one is not None:
                raise
            notes.append(f"no plan from {name}: {e.message}")
    progress("plan", len(names), len(names))
    return tuple(plans), tuple(notes)


def _plans(
    model: ir.Model, census: se_blocks.Census, backend: Backend, target: TargetOptions, *, asked: bool
) -> Iterator[Planned]:
    """Yield the plan for each target; none from a backend that plans nothing and was not asked for."""
    planning = backend.planning
    if planning is None or not (asked or planning.without_device):
        if asked:
            raise BadInput(
                f"{backend.title} does not say what it would run", hint="leave --runtime out, or name another"
            )
        return
    for device in target.targets or (None,) if planning.targets else (None,):
        with planning.open(device) as planner:
            yield _planned(model, census, shapes.SizedPlanner(planner, target.sizes), backend)


def _planned(model: ir.Model, census: se_blocks.Census, planner: Planner, backend: Backend) -> Planned:
    plan = planner.plan(model)
    verdicts = fusion.verdicts(plan, census.se, model, backend.form().fusion)
    plain = planner.plan(fusion.without_gates(model, census.se)) if census.se else None
    return Planned(plan, verdicts, fusion.totals(plan, verdicts, plain), reading.precision_of(model))


def to_schema(found: Planned) -> common.Plan:
    """Return one entry of `plans`."""
    return fusion.to_schema(found.plan, found.verdicts, found.precision, found.totals)
