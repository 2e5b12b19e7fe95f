"""Choose rewrites by the compiler's own plan: by kind first, then by group of equal blocks where it pays."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.errors import BuildFailed
from se_deploy.passes.rewrites import catalogue, identity, pad_hidden_units, prune_hidden_units
from se_deploy.passes.search.attribution import CostAttribution, Share
from se_deploy.passes.search.replay import Choice, Replayed, replay
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

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

    rewrite: str  # names joined by " + " where several came together
    at: tuple[str, ...]
    before: Cost
    after: Cost


@dataclass(frozen=True, slots=True)
class SearchResult:
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
) -> SearchResult:
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
    _HOISTS,
    ("squeeze-average-pool", *_HOISTS),
    ("squeeze-average-pool", *_HOISTS, "gate-into-previous"),
    ("squeeze-average-pool", "gate-behind-pool"),
    ("squeeze-average-pool", "gate-into-next"),
    ("squeeze-average-pool", "gate-into-next", "excite-as-sum"),
    ("squeeze-average-pool", "gate-into-next-batched"),
    ("squeeze-average-pool", "gate-into-next-batched", "excite-as-sum"),
)
"""What a block can become; what does not apply to it is left out. A block takes one of them."""

_KINDS = (("squeeze-average-pool", "squeeze-nhwc-mean"), _HOISTS)
"""In this order the blocks' new forms enter the waterfall; the rest of them last."""

_PLACES: tuple[tuple[str, ...], ...] = (
    ("pointwise-as-convolution",),
    ("concat-behind-depthwise",),
    ("partial-add-as-pad",),
    ("concat-of-copies", "concat-as-sum"),
    ("add-as-concat",),
    ("gated-add-as-concat",),
    ("squeeze-average-pool", "squeeze-nhwc-mean"),
    ("stem-space-to-depth",),
)
"""Rewrites about a place in the graph, in the order in which they are tried; a place takes one of a row."""


_TRIES = 3  # mixtures of forms that are planned until one keeps the limit on kernels

_FIRST = frozenset({identity.NAME, prune_hidden_units.NAME, pad_hidden_units.NAME})
"""Taken before a block's form is chosen, and kept with every form."""

_SMALL_GATES = (
    "gates are multiplied into weights at run time: in FP16, gates below about 1e-3 lose precision there; "
    "compare outputs with `se-deploy parity` on your data"
)


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to spell one block, and what it costs near it."""

    choices: State
    share: Share


def _choose(forms: dict[str, list[_Form]], limit: int) -> dict[str, _Form]:
    """Take each block's cheapest form; then give back what saves least per kernel, until `limit` is kept."""
    chosen = {
        output: min(found, key=lambda form: (form.share.value, form.share.kernels))
        for output, found in forms.items()
        if found
    }
    while sum(form.share.kernels for form in chosen.values()) > limit:
        swaps = [
            (
                (other.share.value - form.share.value) / (form.share.kernels - other.share.kernels),
                output,
                other,
            )
            for output, form in chosen.items()
            for other in forms[output]
            if other.share.kernels < form.share.kernels
        ]
        if not swaps:
            break
        _, output, other = min(swaps, key=lambda swap: swap[:2])
        chosen[output] = other
    return chosen


def _places(choices: Iterable[Choice]) -> tuple[str, ...]:
    return tuple(sorted({choice.at for choice in choices}))


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
        self.known: dict[State, Cost | None] = {}
        self.state: State = frozenset()  # the choices behind the best cost so far
        self.applied: State = frozenset()  # those of the graph that was measured last
        self.attribution = CostAttribution(model, blocks)
        self.shares: dict[State, Mapping[str, Share]] = {}
        self.plans = 0
        self.warnings: list[str] = []
        self.steps: list[Step] = []

    def run(self, baseline_kernels: int | None) -> SearchResult:
        baseline = self.measure(frozenset())
        if baseline is None:
            raise ValueError("the plan of the graph as given was refused without an error")
        self.limit = baseline.kernels if baseline_kernels is None else baseline_kernels
        self.best = baseline
        self.take_first()
        forms = self.forms()
        elsewhere = self.best.kernels - sum(found[0].share.kernels for found in forms.values() if found)
        self.take_forms(forms, self.limit - elsewhere)
        for state in list(self.known):  # one form everywhere, where no mixture of them was better
            self.consider(state, _places(state))
        before_places = self.best.kernels
        for row in _PLACES:
            for name in row:
                self.try_places(name, row)
        if self.best.kernels < before_places:  # room for forms that only their kernels forbade
            self.take_forms(forms, self.limit - elsewhere + before_places - self.best.kernels)
        done = self.replayed(self.state)
        computed = {r.name for r in catalogue.REWRITES if r.run_time_weights}
        if any(choice.rewrite in computed for choice in self.state):
            self.warnings.append(_SMALL_GATES)
        return SearchResult(
            done.model,
            tuple(sorted(self.state)),
            baseline,
            self.best,
            tuple(self.steps),
            self.plans,
            done.counts,
            tuple(self.warnings),
        )

    def take_first(self) -> None:
        """Take what is provably less work or suits the compiler better, unless it makes more of it."""
        early = [(r, r.sites(self.model, self.blocks)) for r in catalogue.REWRITES if r.name in _FIRST]
        state = frozenset(
            Choice(r.name, site.at) for r, sites in early for site in sites if r.name in self.allowed
        )
        cost = self.measure(state) if state else None
        if cost is not None and (cost.value, cost.kernels) <= (self.best.value, self.best.kernels):
            self.take(cost, tuple(choice.at for choice in sorted(state)))

    def forms(self) -> dict[str, list[_Form]]:
        """Plan each move for all blocks at once; give each block's forms, as it stands first."""
        found: dict[str, list[_Form]] = {block.output: [] for block in self.blocks}
        early = frozenset(c for c in self.state if c.rewrite in _FIRST)
        for move in ((), *_MOVES):
            names = [name for name in move if name in self.allowed]
            state = early | {Choice(name, output) for name in names for output in found}
            cost = self.measure(state)
            shares = self.shares.get(self.applied)
            if cost is None or shares is None:
                continue
            for output, share in shares.items():
                taken = frozenset(c for c in self.applied if c.at == output and c.rewrite not in _FIRST)
                if all(form.choices != taken for form in found[output]):
                    found[output].append(_Form(taken, share))
        return found

    def take_forms(self, forms: dict[str, list[_Form]], limit: int) -> None:
        """Give each block its cheapest form, within `limit` kernels for all blocks, and plan that."""
        others = frozenset(c for c in self.state if c.at not in forms or c.rewrite in _FIRST)
        for _ in range(_TRIES):
            chosen = _choose(forms, limit)
            cost = self.measure(others | frozenset(c for form in chosen.values() for c in form.choices))
            if cost is None or cost.kernels <= self.limit:
                break
            limit -= cost.kernels - self.limit  # shares were too hopeful about kernels at the borders
        if cost is None or cost.kernels > self.limit or self.worse(cost):
            return
        goal = self.applied
        kinds = [k for k in _KINDS if any(c.rewrite in k for c in goal - self.state)]
        for i in range(len(kinds)):
            names = {name for kind in kinds[: i + 1] for name in kind}
            part = self.state | {c for c in goal if c.rewrite in names}
            step = None if part == goal else self.measure(part)
            if step is not None and not self.worse(step):
                self.take(step, _places(self.applied - self.state))
        self.applied = goal
        if goal != self.state:
            self.take(cost, _places(goal - self.state))

    def try_places(self, name: str, row: tuple[str, ...]) -> None:
        """Try a rewrite at all its places, then at each group of equal ones."""
        if name not in self.allowed:
            return
        rewriter = next(r for r in catalogue.REWRITES if r.name == name)
        outputs = {block.output for block in self.blocks}
        places = {c.at for c in self.state if c.rewrite in row} - outputs
        free = frozenset(c for c in self.state if c.rewrite not in row or c.at not in places)
        groups: dict[tuple[object, ...], list[str]] = {}
        for site in rewriter.sites(self.replayed(free).model, self.blocks):
            if site.at not in outputs:
                groups.setdefault(site.shape, []).append(site.at)
        everything = tuple(at for group in groups.values() for at in group)
        if everything:
            self.consider(self.put(name, row, everything), everything)
        for group in groups.values() if len(groups) > 1 else ():
            here = frozenset(Choice(name, at) for at in group)
            state = self.state - here if here <= self.state else self.put(name, row, group)
            self.consider(state, tuple(group))

    def put(self, name: str, row: tuple[str, ...], places: Sequence[str]) -> State:
        """Give the state with `name` at `places` instead of any other rewrite of its row."""
        kept = frozenset(c for c in self.state if c.rewrite not in row or c.at not in places)
        return kept | frozenset(Choice(name, at) for at in places)

    def consider(self, state: State, at: tuple[str, ...]) -> None:
        """Take `state` if its plan is better than the best so far."""
        cost = self.measure(state)
        if cost is not None and cost.kernels <= self.limit and not self.worse(cost):
            self.take(cost, at)

    def worse(self, cost: Cost) -> bool:
        """Whether the best so far is at least as good."""
        return (cost.value, cost.kernels) >= (self.best.value, self.best.kernels)

    def take(self, cost: Cost, at: tuple[str, ...]) -> None:
        new = {choice.rewrite for choice in self.applied - self.state}
        gone = {choice.rewrite for choice in self.state - self.applied} - new
        names = [name for name in catalogue.NAMES if name in new] + [f"without {n}" for n in sorted(gone)]
        self.steps.append(Step(" + ".join(names), at, self.best, cost))
        self.state, self.best = self.applied, cost

    def measure(self, state: State) -> Cost | None:
        """Plan the graph that `state` makes; None where it cannot be built or the budget is used up."""
        done = self.replayed(state)
        self.applied = frozenset(done.applied)
        if self.applied not in self.known:
            if self.known and self.spent():  # the graph as given is always planned
                return None
            self.plans += 1
            self.progress("planning rewrites", self.plans, self.budget)
            self.known[self.applied] = self.planned(done.model)
        return self.known[self.applied]

    def planned(self, model: ir.Model) -> Cost | None:
        try:
            plan = self.planner.plan(self.lower(model))
        except BuildFailed as e:
            if not self.known:
                raise
            self.warnings.append(f"the compiler refused a rewritten graph, which was left out: {e.message}")
            return None
        self.shares[self.applied] = self.attribution.shares(plan, self.cost)
        return Cost(plan.kernels, plan.activation_bytes, self.cost(plan))

    def spent(self) -> bool:
        late = self.deadline is not None and time.monotonic() > self.deadline
        message = "the search for rewrites ended at its time limit: another run may choose differently"
        if late and message not in self.warnings:
            self.warnings.append(message)
        return late or self.plans >= self.budget

    def replayed(self, choices: Iterable[Choice]) -> Replayed:
        return replay(self.model, self.blocks, choices)
