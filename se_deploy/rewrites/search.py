"""Choose rewrites by the compiler's own plan: by kind first, then by group of equal blocks where it pays."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.protocols import silent
from se_deploy.rewrites import catalogue
from se_deploy.rewrites.replay import Choice, Replayed, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx_ir as ir

    from se_deploy.plan import Plan
    from se_deploy.protocols import Planner, Progress
    from se_deploy.se_blocks.types import SEBlock

    State = frozenset[Choice]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan costs: launches, activation bytes per image, and the objective made of them."""

    kernels: int
    activation_bytes: int
    value: float  # what the search makes small


@dataclass(frozen=True, slots=True)
class Step:
    """What one rewrite brought when it was taken: a bar of the waterfall. Planned, not timed."""

    rewrite: str
    at: tuple[str, ...]
    before: Cost
    after: Cost


@dataclass(frozen=True, slots=True)
class Found:
    """The best graph that the search saw; never worse than the one it was given."""

    model: ir.Model  # in the precision that it was given in
    choices: tuple[Choice, ...]
    baseline: Cost | None  # None where no plan was asked for
    best: Cost | None
    steps: tuple[Step, ...]
    plans_used: int
    counts: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...] = ()


def planned_bytes(plan: Plan) -> float:
    """Count activation bytes per image: the objective where no device is named."""
    return float(plan.activation_bytes)


def search(
    model: ir.Model,
    blocks: Sequence[SEBlock],
    planner: Planner,
    *,
    allowed: Sequence[str] = catalogue.NAMES,
    budget_plans: int = 96,
    seconds: float | None = None,
    cost: Callable[[Plan], float] = planned_bytes,
    lower: Callable[[ir.Model], ir.Model] = lambda model: model,
    baseline_kernels: int | None = None,
    progress: Progress = silent,
) -> Found:
    """Find choices that make `cost` small without more kernels than the graph as given.

    `model`: canonical, with its census `blocks`. `lower` is what happens to the graph before it is planned
    (FP16). Deterministic for a budget in plans; `seconds` ends it early with a warning. `baseline_kernels`:
    how many kernels are allowed, where the graph to beat is another one.
    Raises: BuildFailed where the compiler refuses the graph as given.
    """
    run = _Search(model, blocks, planner, tuple(allowed), budget_plans, seconds, cost, lower, progress)
    return run.run(baseline_kernels)


_HOISTS = ("hoist-squeeze-1x1", "hoist-squeeze-kxk")

_MOVES: tuple[tuple[str, ...], ...] = (
    ("squeeze-average-pool",),
    ("squeeze-nhwc-mean",),
    ("squeeze-average-pool", *_HOISTS),
    ("squeeze-nhwc-mean", *_HOISTS),
    ("squeeze-average-pool", *_HOISTS, "gate-into-previous"),
    ("squeeze-average-pool", "gate-behind-pool"),
    ("squeeze-average-pool", "gate-into-next"),
    ("squeeze-average-pool", "gate-into-next", "excite-as-sum"),
    ("squeeze-average-pool", "gate-into-next-batched"),
    ("squeeze-average-pool", "gate-into-next-batched", "excite-as-sum"),
)
"""What a block can become; what does not apply to it is left out. A block takes one of them."""

_PLACES: tuple[tuple[str, ...], ...] = (
    ("pointwise-as-convolution",),
    ("concat-behind-depthwise",),
    ("partial-add-as-pad",),
    ("concat-of-copies", "concat-as-sum"),
    ("add-as-concat",),
    ("stem-space-to-depth",),
)
"""Rewrites about a place in the graph, in the order in which they are tried; a place takes one of a row."""


class _Search:
    """The state of one search."""

    def __init__(  # noqa: PLR0917 - made in one place, `search`, whose own arguments are named
        self,
        model: ir.Model,
        blocks: Sequence[SEBlock],
        planner: Planner,
        allowed: tuple[str, ...],
        budget: int,
        seconds: float | None,
        cost: Callable[[Plan], float],
        lower: Callable[[ir.Model], ir.Model],
        progress: Progress,
    ) -> None:
        self.model, self.blocks, self.planner = model, blocks, planner
        self.allowed, self.budget, self.cost, self.lower = allowed, budget, cost, lower
        self.progress = progress
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.known: dict[State, Cost] = {}
        self.plans = 0
        self.warnings: list[str] = []
        self.steps: list[Step] = []

    def run(self, baseline_kernels: int | None) -> Found:
        baseline = self.measure(frozenset())
        if baseline is None:
            raise ValueError("a search needs a budget of at least one plan")
        self.limit = baseline.kernels if baseline_kernels is None else baseline_kernels
        self.state: State = frozenset()
        self.best = baseline
        self.try_places("dead-hidden-units", ("dead-hidden-units",))
        for group in self.groups():
            for move in _MOVES:
                self.try_block_move(group, move)
        for row in _PLACES:
            for name in row:
                self.try_places(name, row)
        done = self.replayed(self.state)
        return Found(
            done.model,
            tuple(sorted(self.state)),
            baseline,
            self.best,
            tuple(self.steps),
            self.plans,
            done.counts,
            tuple(self.warnings),
        )

    def groups(self) -> list[tuple[str, ...]]:
        """Give the blocks' outputs, equal blocks together, in graph order."""
        found: dict[tuple[object, ...], list[str]] = {}
        for block in self.blocks:
            found.setdefault(self.signature(block), []).append(block.output)
        return [tuple(group) for group in found.values()]

    def signature(self, block: SEBlock) -> tuple[object, ...]:
        return (block.channels, block.reduced, block.placement, block.followed_by, block.activation)

    def try_block_move(self, group: tuple[str, ...], move: tuple[str, ...]) -> None:
        kept = frozenset(c for c in self.state if c.at not in group)
        added = frozenset(Choice(name, at) for name in move for at in group if name in self.allowed)
        self.consider(kept | added, move[-1], group)

    def try_places(self, name: str, row: tuple[str, ...]) -> None:
        """Try a rewrite at all its places, then at each group of equal ones."""
        if name not in self.allowed:
            return
        rewriter = next(r for r in catalogue.REWRITES if r.name == name)
        free = frozenset(c for c in self.state if c.rewrite not in row)
        groups: dict[tuple[object, ...], list[str]] = {}
        for site in rewriter.sites(self.replayed(free).model, self.blocks):
            groups.setdefault(site.shape, []).append(site.at)
        everything = tuple(at for group in groups.values() for at in group)
        if everything:
            self.consider(self.put(name, row, everything), name, everything)
        for group in groups.values() if len(groups) > 1 else ():
            here = frozenset(Choice(name, at) for at in group)
            state = self.state - here if here <= self.state else self.put(name, row, group)
            self.consider(state, name, tuple(group))

    def put(self, name: str, row: tuple[str, ...], places: Sequence[str]) -> State:
        """Give the state with `name` at `places` instead of any other rewrite of its row."""
        kept = frozenset(c for c in self.state if c.rewrite not in row or c.at not in places)
        return kept | frozenset(Choice(name, at) for at in places)

    def consider(self, state: State, name: str, at: tuple[str, ...]) -> None:
        """Take `state` if its plan is better than the best so far."""
        cost = self.measure(state)
        if cost is None or not self.better(cost):
            return
        self.steps.append(Step(name, at, self.best, cost))
        self.state, self.best = self.applied, cost

    def better(self, cost: Cost) -> bool:
        if cost.kernels > self.limit:
            return False
        return (cost.value, cost.kernels) < (self.best.value, self.best.kernels)

    def measure(self, state: State) -> Cost | None:
        """Plan the graph that `state` makes; None where the budget or the time is used up."""
        if self.spent():
            return None
        done = self.replayed(state)
        self.applied = frozenset(done.applied)
        if self.applied not in self.known:
            plan = self.planner.plan(self.lower(done.model))
            self.plans += 1
            self.progress("planning rewrites", self.plans, self.budget)
            self.known[self.applied] = Cost(plan.kernels, plan.activation_bytes, self.cost(plan))
        return self.known[self.applied]

    def spent(self) -> bool:
        late = self.deadline is not None and time.monotonic() > self.deadline
        if late and not self.warnings:
            self.warnings.append(f"the search for rewrites ended at its time limit, after {self.plans} plans")
        return late or self.plans >= self.budget

    def replayed(self, choices: Iterable[Choice]) -> Replayed:
        return replay(self.model, self.blocks, choices)
