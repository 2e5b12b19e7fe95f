"""Optimize for a target: which rewrites are right there, and which of them pay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from se_deploy.errors import BadInput
from se_deploy.passes.rewrites import catalogue, gate, hoist, identity, prune_hidden_units
from se_deploy.passes.search.plan_search import SearchResult, planned_bytes, search
from se_deploy.passes.search.replay import Choice, replay
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

    from se_deploy.passes.rewrites.base import Site
    from se_deploy.plan import Plan
    from se_deploy.protocols import Planner, Progress
    from se_deploy.se_blocks.types import SEBlock

    TargetRuntime = Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"]

_ALWAYS = (identity.NAME, prune_hidden_units.NAME)
_LESS_WORK = (*_ALWAYS, hoist.POINTWISE, gate.BEHIND_POOL)
"""What is less arithmetic and less traffic on any machine, so that it needs no measurement."""


def allowed(runtime: TargetRuntime, only: Sequence[str] | None = None) -> tuple[str, ...]:
    """Give the rewrites that are right for a runtime, or `only` those asked for by name.

    "auto" is the portable form. TensorRT-RTX says what it would run, so that everything may be tried. Full
    TensorRT and ONNX Runtime get what is less work anywhere: weights computed at run time may lose a tuned
    kernel there, and a spelling that suits one compiler may not suit another. `only` overrides this, but for
    ONNX Runtime, whose CPU kernels need constant weights.
    Raises: BadInput for a name that is none, or for run-time weights on ONNX Runtime.
    """
    if only is None:
        rules = {"auto": _ALWAYS, "tensorrt-rtx": catalogue.NAMES}
        return rules.get(runtime, _LESS_WORK)
    unknown = [name for name in only if name not in catalogue.NAMES]
    if unknown:
        raise BadInput(f"'{unknown[0]}' is no rewrite", hint=f"choose from {', '.join(catalogue.NAMES)}")
    computed = [r.name for r in catalogue.REWRITES if r.run_time_weights and r.name in only]
    if computed and runtime == "onnxruntime":
        raise BadInput(
            f"'{computed[0]}' computes weights per image, which ONNX Runtime's CPU kernels cannot use",
            hint="leave it out, or choose --runtime tensorrt-rtx",
        )
    return tuple(name for name in catalogue.NAMES if name in only)


def optimize(
    model: ir.Model,
    blocks: Sequence[SEBlock],
    *,
    runtime: TargetRuntime = "auto",
    planner: Planner | None = None,
    only: Sequence[str] | None = None,
    budget_plans: int = 96,
    seconds: float | None = None,
    cost: Callable[[Plan], float] = planned_bytes,
    lower: Callable[[ir.Model], ir.Model] = lambda model: model,
    baseline_kernels: int | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Rewrite a canonical graph for a runtime; with a planner only what its plan says is cheaper.

    `blocks` is the graph's census. Without a planner every allowed rewrite is applied wherever it is
    possible and makes nothing larger.
    Raises: BadInput for `only`; BuildFailed where the compiler refuses the graph as it is.
    """
    names = allowed(runtime, only)
    if planner is not None and names:
        return search(
            model, blocks, planner, allowed=names, budget_plans=budget_plans, seconds=seconds, cost=cost,
            lower=lower, baseline_kernels=baseline_kernels, progress=progress,
        )  # fmt: skip
    done = replay(model, blocks, everywhere(model, blocks, names))
    return SearchResult(done.model, tuple(sorted(done.applied)), None, None, (), 0, done.counts)


def everywhere(model: ir.Model, blocks: Sequence[SEBlock], names: Sequence[str]) -> tuple[Choice, ...]:
    """Choose `names` at every place where one of them, after those before it, is possible."""
    chosen: list[Choice] = []
    for rewriter in catalogue.REWRITES:
        if rewriter.name in names:
            now = replay(model, blocks, chosen).model
            chosen += [
                Choice(rewriter.name, site.at) for site in rewriter.sites(now, blocks) if _shrinks(site)
            ]
    return tuple(chosen)


def _shrinks(site: Site) -> bool:
    """Whether a hoisted squeeze reads no more channels than before; other rewrites are not judged."""
    if site.rewrite != hoist.POINTWISE:
        return True
    outputs, per_group, groups = (cast("int", site.shape[i]) for i in (0, 1, 4))
    return per_group * groups <= outputs
