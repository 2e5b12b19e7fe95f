"""Which rewrites there are: each registers itself, and their order comes from what they build on.

A rewrite is one file in `rewrites/`: a matcher that says `Match | Refused` of a site, an edit that changes a
private copy there, and a decorator that says what the search must know. Nothing else lists it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

import onnx_ir as ir

from se_deploy.errors import BadInput, meant
from se_deploy.se_blocks.types import SEBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Target = SEBlock | ir.Node
    """What a matcher looks at: a block of the census, or a node of the graph."""


class Scope(IntEnum):
    """How much must be known of what runs the graph before a rewrite is right there.

    A target's scope allows every rewrite of its own scope and of those before it.
    """

    PORTABLE = 0  # fewer nodes or weights on any machine: part of the portable form
    LESS_WORK = 1  # less arithmetic and less traffic on any machine that is named
    BY_PLAN = 2  # may cost more: taken where a compiler's plan says that it pays


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a rewrite is not possible at a site: what the site lacks, in a user's words."""

    reason: str
    taken: bool = (
        False  # another rewrite was there before: the reason is that of the search, not of the graph
    )


class Match(Protocol):
    """Everything that an edit needs of a site."""

    @property
    def site(self) -> str:
        """The block's output, or the tensor that the rewrite is about: how a saved choice names the site."""

    @property
    def shape(self) -> tuple[object, ...]:
        """What makes sites alike: sites of equal shape are expected to gain alike."""


@dataclass(frozen=True, slots=True)
class Site:
    """One site where a rewrite is possible."""

    rewrite: str
    name: str  # as `Match.site`
    shape: tuple[object, ...] = ()
    pays_unplanned: bool = True  # whether it is less work at this very site, as its scope promises
    target: Target | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rewrite that is not possible at a site, and why; those of blocks are rows of `export`'s `refused`."""

    rewrite: str
    site: str  # a block's output, or what a node writes
    reason: str
    taken: bool = False  # as `Refused.taken`


@dataclass(frozen=True, slots=True)
class Tried:
    """Where and when the search by plan tries a rewrite; nowhere by default.

    `first`: before a block's form is chosen, and kept with every form.
    `forms`: in a block's form, once together with each of these rewrites; `()` is a form of its own.
    `turn`: at its sites elsewhere in the graph, lowest turn first; a site takes one rewrite of a turn. The
    search is greedy, so that turns matter: they are as the README's figures were planned with.
    """

    first: bool = False
    forms: tuple[tuple[str, ...], ...] = ()
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class Rewriter:
    """One exact idea: it changes no answer beyond floating-point rounding.

    It finds its own sites in the graph as it stands, so that rewrites compose and a choice can be replayed.
    """

    name: str
    idea: str  # one line for a table
    after: tuple[str, ...]  # rewrites that are applied before it
    scope: Scope
    tried: Tried
    run_time_weights: bool  # it makes a convolution's weights something computed per image
    candidates: Callable[[ir.Model, Sequence[SEBlock]], Iterable[Site | Refusal]]
    edit: Callable[[ir.Model, Target], bool]

    def sites(self, model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[Site, ...]:
        """Where it is possible in `model`, whose census was `blocks`."""
        return tuple(site for site in self.candidates(model, blocks) if isinstance(site, Site))

    def refusals(self, model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[Refusal, ...]:
        """Why it is not possible, for each block where it is not."""
        names = {block.output for block in blocks}
        refused = (no for no in self.candidates(model, blocks) if isinstance(no, Refusal))
        return tuple(no for no in refused if no.site in names)

    def apply(self, model: ir.Model, site: Site) -> int:
        """How often it fired at `site`: 1, or 0 where an edit before it took the site away."""
        target = site.target
        if target is None or (isinstance(target, ir.Node) and target.outputs[0].name != site.name):
            return 0
        return int(self.edit(model, target))


_T = TypeVar("_T", SEBlock, ir.Node, "SEBlock | ir.Node")
_M = TypeVar("_M", bound=Match)
_registered: dict[str, Rewriter] = {}


def rewrite(
    *,
    name: str,
    idea: str,
    where: Callable[[ir.Model, Sequence[SEBlock]], Iterable[_T]],
    match: Callable[[ir.Model, _T], _M | Refused],
    tried: Tried,
    after: tuple[str, ...] = (),
    scope: Scope = Scope.BY_PLAN,
    pays_unplanned: Callable[[_M], bool] = lambda _: True,
    run_time_weights: bool = False,
) -> Callable[[Callable[[ir.Model, _M], None]], Callable[[ir.Model, _M], None]]:
    """Register the decorated edit as a rewrite; it gets what `match` read of a target of `where`.

    `pays_unplanned`: at which sites it keeps its scope's promise without a plan.
    Raises: ValueError for a name that is taken.
    """
    if name in _registered:
        raise ValueError(f"there is a rewrite '{name}' already")

    def register(edit: Callable[[ir.Model, _M], None]) -> Callable[[ir.Model, _M], None]:
        def candidates(model: ir.Model, blocks: Sequence[SEBlock]) -> Iterable[Site | Refusal]:
            for target in where(model, blocks):
                found = match(model, target)
                if isinstance(found, Refused):
                    yield Refusal(name, _name(target), found.reason, found.taken)
                else:
                    yield Site(name, found.site, found.shape, pays_unplanned(found), target)

        def edited(model: ir.Model, target: Target) -> bool:
            found = match(model, target)  # type: ignore[arg-type]  # what its own `where` gave
            if isinstance(found, Refused):
                return False
            edit(model, found)
            return True

        _registered[name] = Rewriter(name, idea, after, scope, tried, run_time_weights, candidates, edited)
        return edit

    return register


def _name(target: Target) -> str:
    return target.output if isinstance(target, SEBlock) else str(target.outputs[0].name)


def forget(name: str) -> None:
    """Take a rewrite out of the registry again: a plug-in that is unloaded, a test that ends."""
    del _registered[name]


def rewriters() -> tuple[Rewriter, ...]:
    """Every rewrite, in the order in which chosen ones are applied: what is tried first, then by `after`.

    Raises: ValueError where `after` names no rewrite or goes in a circle.
    """
    waiting = dict(sorted(_registered.items()))
    first = [name for name, r in waiting.items() if r.tried.first]
    needs = {name: {*r.after, *(() if r.tried.first else first)} for name, r in waiting.items()}
    done: list[Rewriter] = []
    while waiting:
        ready = next((name for name in waiting if not needs[name] - {r.name for r in done}), None)
        if ready is None:
            raise ValueError(
                f"the rewrites {sorted(waiting)} wait for each other, or for one that is missing"
            )
        done.append(waiting.pop(ready))
    return tuple(done)


def names() -> tuple[str, ...]:
    """The names of `rewriters()`, in their order."""
    return tuple(r.name for r in rewriters())


def check(asked: Iterable[str]) -> None:
    """Raise BadInput for the first name that is no rewrite."""
    known = names()
    for name in asked:
        if name not in known:
            raise BadInput(
                f"'{name}' is no rewrite", hint=f"{meant(name, known)}choose from {', '.join(known)}"
            )


def every_block(model: ir.Model, blocks: Sequence[SEBlock]) -> Iterable[SEBlock]:  # noqa: ARG001 - one signature
    """The blocks themselves, for a rewrite about an SE block."""
    return blocks


def every(*op_types: str) -> Callable[[ir.Model, Sequence[SEBlock]], Iterable[ir.Node]]:
    """The nodes of some operators, for a rewrite about a site in the graph."""

    def where(model: ir.Model, blocks: Sequence[SEBlock]) -> Iterable[ir.Node]:  # noqa: ARG001 - one signature
        return [node for node in model.graph if node.op_type in op_types]

    return where
