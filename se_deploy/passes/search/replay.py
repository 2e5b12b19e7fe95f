"""Apply a list of choices to a graph; the list is what is saved beside the ONNX file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.errors import BadInput
from se_deploy.passes import rewrites

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from se_deploy.passes.registry import Rewriter
    from se_deploy.se_blocks.types import SEBlock

_SCHEMA = "se-deploy/rewrites/1"


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
    items = [[choice.rewrite, choice.site] for choice in sorted(choices)]
    return json.dumps({"schema": _SCHEMA, "choices": items}, indent=1) + "\n"


def from_json(text: str) -> tuple[Choice, ...]:
    """Read choices. Raises: BadInput for another format or a rewrite that does not exist."""
    try:
        fields = json.loads(text)
        choices = tuple(Choice(str(name), str(site)) for name, site in fields["choices"])
    except (ValueError, TypeError, KeyError) as e:
        raise BadInput(f"this is no list of rewrites: {e}", hint="delete the file to search again") from e
    unknown = sorted({c.rewrite for c in choices} - set(rewrites.names()))
    if fields.get("schema") != _SCHEMA or unknown:
        raise BadInput(
            f"the list of rewrites is from another version ({', '.join(unknown) or fields.get('schema')})",
            hint="delete the file to search again",
        )
    return choices
