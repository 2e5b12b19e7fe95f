"""Optimize for a target: which rewrites are right there, and which of them pay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.errors import BadInput
from se_deploy.passes import rewrites
from se_deploy.passes.search.plan_search import SearchResult, refusals, search
from se_deploy.passes.search.replay import Choice, replay
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.passes.registry import Scope
    from se_deploy.passes.search.plan_search import Goal
    from se_deploy.protocols import Planner, Progress
    from se_deploy.se_blocks.types import SEBlock


def allowed(
    scope: Scope, only: Sequence[str] | None = None, *, constant_weights: bool = False
) -> tuple[str, ...]:
    """The rewrites of a scope, or `only` those asked for by name, whatever their scope.

    `constant_weights`: the target's kernels cannot use weights that are computed per image.
    Raises: BadInput for a name that is none, or for computed weights where they cannot be used.
    """
    everything = rewrites.rewriters()
    computed = {r.name for r in everything if r.run_time_weights}
    if only is None:
        barred = computed if constant_weights else set()
        return tuple(r.name for r in everything if r.scope <= scope and r.name not in barred)
    rewrites.check(only)
    if constant_weights and (useless := [name for name in only if name in computed]):
        raise BadInput(
            f"'{useless[0]}' computes weights per image, which this runtime's kernels cannot use",
            hint="leave it out, or choose a --runtime that builds engines",
        )
    return tuple(name for name in rewrites.names() if name in only)


def optimize(
    model: ir.Model,
    blocks: Sequence[SEBlock],
    names: Sequence[str],
    *,
    planner: Planner | None = None,
    goal: Goal | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Rewrite a canonical graph by the rewrites `names`; with a planner only what its plan says is cheaper.

    `blocks` is the graph's census. Without a planner every rewrite is applied wherever it is possible and
    makes nothing larger.
    Raises: BuildFailed where the compiler refuses the graph as it is.
    """
    if planner is not None and names:
        return search(model, blocks, planner, allowed=names, goal=goal, progress=progress)
    done = replay(model, blocks, everywhere(model, blocks, names))
    return SearchResult(
        done.model,
        tuple(sorted(done.applied)),
        None,
        None,
        (),
        0,
        done.counts,
        refused=refusals(model, done, blocks, names),
    )


def everywhere(model: ir.Model, blocks: Sequence[SEBlock], names: Sequence[str]) -> tuple[Choice, ...]:
    """`names` at every site where one of them, after those before it, is possible and pays unplanned."""
    chosen: list[Choice] = []
    for rewriter in rewrites.rewriters():
        if rewriter.name in names:
            now = replay(model, blocks, chosen).model
            sites = rewriter.sites(now, blocks)
            chosen += [Choice(rewriter.name, site.name) for site in sites if site.pays_unplanned]
    return tuple(chosen)
