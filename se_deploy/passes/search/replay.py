"""Apply a list of choices to a graph; the list is what is saved beside the ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.errors import BadInput
from se_deploy.passes import rewrites
from se_deploy.schema import decode, encode
from se_deploy.schema.files import RewriteChoices

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from se_deploy.passes.registry import Rewriter
    from se_deploy.se_blocks.types import SEBlock


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """One rewrite at one site: a block's output tensor, or the tensor that the rewrite is about."""

    rewrite: str
    site: str


@dataclass(frozen=True, slots=True)
class Replayed(graph.Rewrite):
    """The rewritten copy, and which of the choices could be applied to it."""

    applied: tuple[Choice, ...] = ()


def replay(model: ir.Model, blocks: Sequence[SEBlock], choices: Iterable[Choice]) -> Replayed:
    """Apply `choices` to a copy of `model`, in the order of the registry whatever order they come in.

    A choice whose preconditions do not hold is left out of `applied`; nothing else is touched.
    """
    wanted = frozenset(choices)
    applied: list[Choice] = []
    asked = {choice.rewrite for choice in wanted}
    passes = [_pass(r, blocks, wanted, applied) for r in rewrites.rewriters() if r.name in asked]
    done = graph.rewrite(model, *passes)
    return Replayed(done.model, done.counts, tuple(applied))


def _pass(
    rewriter: Rewriter, blocks: Sequence[SEBlock], wanted: frozenset[Choice], applied: list[Choice]
) -> graph.Pass:
    def run(copy: ir.Model) -> int:
        fired = 0
        for site in rewriter.sites(copy, blocks):
            choice = Choice(rewriter.name, site.name)
            if choice in wanted and rewriter.apply(copy, site):
                applied.append(choice)
                fired += 1
        return fired

    run.__name__ = rewriter.name
    return run


def to_json(choices: Iterable[Choice]) -> str:
    """Write choices as JSON, sorted, so that equal choices are equal files."""
    saved = RewriteChoices(choices=tuple((choice.rewrite, choice.site) for choice in sorted(choices)))
    return f"{encode(saved, indent=1)}\n"


def from_json(text: str, *, name: str = "the list") -> tuple[Choice, ...]:
    """Return saved choices; `name` says in an error where they come from.

    Raises: BadInput for another format or a rewrite that does not exist.
    """
    what, hint = f"{name}, a list of rewrites", "delete the file to search again"
    saved = decode(text, RewriteChoices, what=what, error=BadInput, hint=hint)
    unknown = sorted({rewrite for rewrite, _ in saved.choices} - set(rewrites.names()))
    if unknown:
        raise BadInput(f"{what}, is from another version: it names {', '.join(unknown)}", hint=hint)
    return tuple(Choice(rewrite, site) for rewrite, site in saved.choices)
