"""Choose rewrites by the compiler's own plan: by kind first, then by group of equal blocks where it pays."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from se_deploy import graph
from se_deploy.errors import BuildFailed
from se_deploy.options import SEARCH_PLANS
from se_deploy.passes import rewrites
from se_deploy.passes.search.attribution import CostAttribution, Share
from se_deploy.passes.search.replay import Choice, Replayed, replay
from se_deploy.protocols import ManyPlanner, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.passes.registry import Refusal
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
    sites: tuple[str, ...]
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
    refused: tuple[Refusal, ...] = ()  # of each block, the rewrites allowed that were not possible


def refusals(
    given: ir.Model, done: Replayed, blocks: Sequence[SEBlock], allowed: Sequence[str]
) -> tuple[Refusal, ...]:
    """Why rewrites were not possible at a block, neither in the graph as given nor in what was made of it.

    The reason is that of the graph as made: there a rewrite that builds on another had its chance. Where
    another rewrite took the site, it is that of the graph as given.
    """
    refused: list[Refusal] = []
    left = graph.values(done.model)
    outputs = {block.output for block in blocks}
    for rewriter in rewrites.rewriters():
        if rewriter.name not in allowed:
            continue
        before = {no.site: no for no in rewriter.refusals(given, blocks)}
        applied = {choice.site for choice in done.applied if choice.rewrite == rewriter.name}
        if applied - outputs:  # sites named otherwise than by their block, whose output they took in
            applied |= outputs - set(left)
        now = rewriter.refusals(done.model, blocks)
        left_out = [no for no in now if no.site in before and no.site not in applied]
        refused += [before[no.site] if no.taken else no for no in left_out]
    return tuple(refused)


def planned_bytes(plan: Plan) -> float:
    """Count activation bytes per image: the objective where no device is named."""
    return float(plan.activation_bytes)


def _as_it_is(model: ir.Model) -> ir.Model:
    return model


GraphCost: TypeAlias = "Callable[[ir.Model], Callable[[Plan], float]]"
"""Of a graph, what its plans cost: a plan does not hold the arithmetic of its nodes."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a search makes small, and how long it may take."""

    cost: GraphCost | None = None  # what a graph's plans cost; None: their bytes
    lower: Callable[[ir.Model], ir.Model] = _as_it_is  # what happens to the graph before it is planned (FP16)
    baseline_kernels: int | None = None  # that are allowed, where the graph to beat is another one
    budget_plans: int = SEARCH_PLANS
    seconds: float | None = None  # ends it early with a warning; a budget in plans is deterministic


def search(
    model: ir.Model,
    blocks: Sequence[SEBlock],
    planner: Planner,
    *,
    allowed: Sequence[str] | None = None,
    goal: Goal | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """The choices that make the goal's cost small without more kernels than the graph as given.

    `model`: canonical, with its census `blocks`. `allowed`: names of rewrites, all where None.
    Raises: BuildFailed where the compiler refuses the graph as given.
    """
    names = rewrites.names() if allowed is None else tuple(allowed)
    return _Search(model, blocks, planner, names, goal or Goal(), progress).run()


def _moves() -> tuple[tuple[str, ...], ...]:
    """What a block can become, short forms first; what does not apply to it is left out of a form."""
    moves = [(*others, r.name) for r in rewrites.rewriters() for others in r.tried.forms]
    return tuple(sorted(moves, key=len))


def _kinds() -> tuple[tuple[str, ...], ...]:
    """The moves that build on no other move, which enter the waterfall in this order; the rest are last."""
    moves = _moves()
    return tuple(move for move in moves if not any(set(other) < set(move) for other in moves))


def _turns() -> tuple[tuple[str, ...], ...]:
    """The rewrites of sites elsewhere in the graph, turn by turn; a site takes one of a turn."""
    turns: dict[int, list[str]] = {}
    for rewriter in rewrites.rewriters():
        if rewriter.tried.turn is not None:
            turns.setdefault(rewriter.tried.turn, []).append(rewriter.name)
    return tuple(tuple(turns[turn]) for turn in sorted(turns))


_TRIES = 3
"""Mixtures of forms that are planned until one keeps the limit on kernels: shares are estimates, and each
failed mixture lowers the limit by what it was over; the second is mostly enough."""

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


def _sites(choices: Iterable[Choice]) -> tuple[str, ...]:
    return tuple(sorted({choice.site for choice in choices}))


class _Search:
    """The state of one search."""

    def __init__(  # noqa: PLR0917 - made in one place, `search`, whose own arguments are named
        self,
        model: ir.Model,
        blocks: Sequence[SEBlock],
        planner: Planner,
        allowed: tuple[str, ...],
        goal: Goal,
        progress: Progress,
    ) -> None:
        self.model, self.blocks, self.planner = model, blocks, planner
        self.allowed, self.goal, self.progress = allowed, goal, progress
        self.first = frozenset(r.name for r in rewrites.rewriters() if r.tried.first)
        self.deadline = None if goal.seconds is None else time.monotonic() + goal.seconds
        self.known: dict[State, Cost | None] = {}
        self.outcomes: dict[State, State] = {}  # which choices of a state could be applied
        self.last: tuple[State, Replayed] | None = None
        self.state: State = frozenset()  # the choices behind the best cost so far
        self.applied: State = frozenset()  # those of the graph that was measured last
        self.attribution = CostAttribution(model, blocks)
        self.shares: dict[State, Mapping[str, Share]] = {}
        self.ahead: dict[State, Plan | BuildFailed] = {}  # plans that nobody has asked for yet
        self.plans = 0
        self.warnings: list[str] = []
        self.steps: list[Step] = []

    def run(self) -> SearchResult:
        first = self.early()
        self.look_ahead([frozenset(), first])
        baseline = self.measure(frozenset())
        if baseline is None:
            raise ValueError("the plan of the graph as given was refused without an error")
        allowed = self.goal.baseline_kernels
        self.limit = baseline.kernels if allowed is None else allowed
        self.best = baseline
        self.take_first(first)
        forms = self.forms()
        elsewhere = self.best.kernels - sum(found[0].share.kernels for found in forms.values() if found)
        self.take_forms(forms, self.limit - elsewhere)
        for state in list(self.known):  # one form everywhere, where no mixture of them was better
            self.consider(state, _sites(state))
        before_sites = self.best.kernels
        for turn in _turns():
            for name in turn:
                self.try_sites(name, turn)
        if self.best.kernels < before_sites:  # room for forms that only their kernels forbade
            self.take_forms(forms, self.limit - elsewhere + before_sites - self.best.kernels)
        done = self.replayed(self.state)
        computed = {r.name for r in rewrites.rewriters() if r.run_time_weights}
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
            refusals(self.model, done, self.blocks, self.allowed),
        )

    def early(self) -> State:
        """Return what is provably less work or suits the compiler better."""
        early = [(r, r.sites(self.model, self.blocks)) for r in rewrites.rewriters() if r.name in self.first]
        return frozenset(
            Choice(r.name, site.name) for r, sites in early for site in sites if r.name in self.allowed
        )

    def take_first(self, state: State) -> None:
        """Take what comes first, unless it makes more work."""
        cost = self.measure(state) if state else None
        if cost is not None and (cost.value, cost.kernels) <= (self.best.value, self.best.kernels):
            self.take(cost, tuple(choice.site for choice in sorted(state)))

    def forms(self) -> dict[str, list[_Form]]:
        """Plan each move for all blocks at once; give each block's forms, as it stands first."""
        found: dict[str, list[_Form]] = {block.output: [] for block in self.blocks}
        early = frozenset(c for c in self.state if c.rewrite in self.first)
        states = [
            early | {Choice(name, output) for name in move if name in self.allowed for output in found}
            for move in ((), *_moves())
        ]
        self.look_ahead(states)
        for state in states:
            self.measure(state)
            for output, share in self.shares.get(self.applied, {}).items():
                taken = frozenset(c for c in self.applied if c.site == output and c.rewrite not in self.first)
                if all(form.choices != taken for form in found[output]):
                    found[output].append(_Form(taken, share))
        return found

    def take_forms(self, forms: dict[str, list[_Form]], limit: int) -> None:
        """Set each block to its cheapest form, within `limit` kernels for all blocks, and plan that."""
        others = frozenset(c for c in self.state if c.site not in forms or c.rewrite in self.first)
        for _ in range(_TRIES):
            chosen = _choose(forms, limit)
            cost = self.measure(others | frozenset(c for form in chosen.values() for c in form.choices))
            if cost is None or cost.kernels <= self.limit:
                break
            limit -= cost.kernels - self.limit  # shares were too hopeful about kernels at the borders
        if cost is None or cost.kernels > self.limit or self.worse(cost):
            return
        goal = self.applied
        kinds = [k for k in _kinds() if any(c.rewrite in k for c in goal - self.state)]
        grown = [{c for kind in kinds[: i + 1] for c in goal if c.rewrite in kind} for i in range(len(kinds))]
        self.look_ahead([self.state | more for more in grown if self.state | more != goal])
        for more in grown:
            part = self.state | more
            step = None if part == goal else self.measure(part)
            if step is not None and not self.worse(step):
                self.take(step, _sites(self.applied - self.state))
        self.applied = goal
        if goal != self.state:
            self.take(cost, _sites(goal - self.state))

    def try_sites(self, name: str, turn: tuple[str, ...]) -> None:
        """Try a rewrite at all its sites, then at each group of equal ones."""
        if name not in self.allowed:
            return
        rewriter = next(r for r in rewrites.rewriters() if r.name == name)
        outputs = {block.output for block in self.blocks}
        taken = {c.site for c in self.state if c.rewrite in turn} - outputs
        free = frozenset(c for c in self.state if c.rewrite not in turn or c.site not in taken)
        groups: dict[tuple[object, ...], list[str]] = {}
        for site in rewriter.sites(self.replayed(free).model, self.blocks):
            if site.name not in outputs:
                groups.setdefault(site.shape, []).append(site.name)
        everything = tuple(site for group in groups.values() for site in group)
        tries = [everything] if len(groups) == 1 else [everything, *map(tuple, groups.values())]
        for i, sites in enumerate(tries if everything else ()):
            states = [self.turned(name, turn, tried, everything) for tried in tries[i : i + self.width]]
            if not self.is_planned(states[0]):  # those behind it are right as long as it is not taken
                self.look_ahead(states)
            self.consider(states[0], sites)

    def turned(
        self, name: str, turn: tuple[str, ...], sites: tuple[str, ...], everything: tuple[str, ...]
    ) -> State:
        """The state with `name` at a group of sites, or without it there where it has it; at all, with it."""
        here = frozenset(Choice(name, site) for site in sites)
        if sites != everything and here <= self.state:
            return self.state - here
        return self.put(name, turn, sites)

    def put(self, name: str, turn: tuple[str, ...], sites: Sequence[str]) -> State:
        """The state with `name` at `sites` instead of any other rewrite of its turn."""
        kept = frozenset(c for c in self.state if c.rewrite not in turn or c.site not in sites)
        return kept | frozenset(Choice(name, site) for site in sites)

    def consider(self, state: State, sites: tuple[str, ...]) -> None:
        """Take `state` if its plan is better than the best so far."""
        cost = self.measure(state)
        if cost is not None and cost.kernels <= self.limit and not self.worse(cost):
            self.take(cost, sites)

    def worse(self, cost: Cost) -> bool:
        """Whether the best so far is at least as good."""
        return (cost.value, cost.kernels) >= (self.best.value, self.best.kernels)

    def take(self, cost: Cost, sites: tuple[str, ...]) -> None:
        new = {choice.rewrite for choice in self.applied - self.state}
        gone = {choice.rewrite for choice in self.state - self.applied} - new
        names = [name for name in rewrites.names() if name in new] + [f"without {n}" for n in sorted(gone)]
        self.steps.append(Step(" + ".join(names), sites, self.best, cost))
        self.state, self.best = self.applied, cost

    def measure(self, state: State) -> Cost | None:
        """Plan the graph that `state` makes; None where it cannot be built or the budget is used up."""
        self.applied = self.outcome(state)
        if self.applied not in self.known:
            if self.known and self.spent():  # the graph as given is always planned
                return None
            self.plans += 1
            self.progress("planning rewrites", self.plans, self.goal.budget_plans)
            self.known[self.applied] = self.planned(state)
        return self.known[self.applied]

    def outcome(self, state: State) -> State:
        """The choices of a state that can be applied: what it is known by."""
        if state not in self.outcomes:
            self.outcomes[state] = frozenset(self.replayed(state).applied)
        return self.outcomes[state]

    def planned(self, state: State) -> Cost | None:
        plan = self.ahead.pop(self.applied, None)
        try:
            if plan is None:
                plan = self.planner.plan(self.goal.lower(self.replayed(state).model))
            elif isinstance(plan, BuildFailed):
                raise plan
        except BuildFailed as e:
            if not self.known:
                raise
            self.warnings.append(f"the compiler refused a rewritten graph, which was left out: {e.message}")
            return None
        of = self.goal.cost
        cost = planned_bytes if of is None else of(self.replayed(state).model)
        self.shares[self.applied] = self.attribution.shares(plan, cost)
        return Cost(plan.kernels, plan.activation_bytes, cost(plan))

    @property
    def width(self) -> int:
        """How many graphs may be planned side by side."""
        return self.planner.width if isinstance(self.planner, ManyPlanner) else 1

    def is_planned(self, state: State) -> bool:
        """Whether the plan of a state is at hand."""
        applied = self.outcome(state)
        return applied in self.known or applied in self.ahead

    def look_ahead(self, states: Sequence[State]) -> None:
        """Plan side by side what will be asked for next, where more than one plan is made at a time.

        What is asked for, counted and decided stays the same: a plan that is at hand is only found faster.
        """
        if not isinstance(self.planner, ManyPlanner) or self.width == 1:
            return
        left = self.goal.budget_plans - self.plans
        asked: list[State] = []

        def lowered() -> Iterator[ir.Model]:
            for state in states:
                if len(asked) >= left or self.late():
                    return
                applied = self.outcome(state)
                if applied not in asked and not self.is_planned(state):
                    asked.append(applied)
                    yield self.goal.lower(self.replayed(state).model)

        answers = self.planner.plan_each(lowered())
        self.ahead.update(zip(asked, answers, strict=True))

    def late(self) -> bool:
        """Whether the time limit is over."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def spent(self) -> bool:
        late = self.late()
        message = "the search for rewrites ended at its time limit: another run may choose differently"
        if late and message not in self.warnings:
            self.warnings.append(message)
        return late or self.plans >= self.goal.budget_plans

    def replayed(self, state: State) -> Replayed:
        """The graph that `state` makes; the last one is kept, for what comes next often asks for it again."""
        if self.last is None or self.last[0] != state:
            self.last = (state, replay(self.model, self.blocks, state))
        return self.last[1]
