"""One spelling for every SE block, so that each later step has one form to know.

GlobalAveragePool -> Conv 1x1 -> activation -> Conv 1x1 -> gate -> Mul: biases and BatchNorm inside the
convolutions, no shape arithmetic, any batch. What stays different is refused with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph, se_blocks
from se_deploy.passes.canonical.blocks import obstacles, respell_blocks
from se_deploy.passes.canonical.fold import NotFolded, fold_affine, fold_constants, overflowing
from se_deploy.passes.canonical.hard import recompose_hard
from se_deploy.passes.canonical.layout import blocks_to_channels_first
from se_deploy.se_blocks.einsum import spell_out_einsum

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

PASSES = (
    spell_out_einsum,
    fold_constants,
    blocks_to_channels_first,
    respell_blocks,
    recompose_hard,
    fold_affine,
)


@dataclass(frozen=True, slots=True)
class NotCanonical:
    """A block that keeps its spelling: the name of its output, and why in a user's words."""

    output: str
    reason: str


@dataclass(frozen=True, slots=True)
class Canonical:
    """The rewritten copy, how often each pass fired, and the blocks that it left alone."""

    model: ir.Model
    counts: tuple[tuple[str, int], ...]
    refused: tuple[NotCanonical, ...] = ()
    unfolded: tuple[NotFolded, ...] = ()  # what would overflow in a convolution's weights, and so stays


def canonicalize(model: ir.Model, passes: Sequence[graph.Pass] = PASSES) -> Canonical:
    """The graph with every SE block in its one spelling, and BatchNorm and biases folded everywhere.

    Exact up to floating-point rounding and idempotent. Each block keeps its Mul and its output's name.
    `passes`: those that are right for this graph, in the order of PASSES.
    Raises: UnsupportedGraph for a graph in training mode.
    """
    graph.refuse_training(model)
    made = graph.rewrite(model, *passes)
    refused = tuple(
        NotCanonical(block.output, reason)
        for block, reason in obstacles(made.model, se_blocks.detect(made.model).se)
    )
    return Canonical(made.model, made.counts, refused, overflowing(made.model))
