"""What the census says: a block that it is, or a candidate that it is not, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from se_deploy.errors import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

SE_KINDS = frozenset({"se", "ese", "residual-se"})

WITHOUT_BATCH = "its channels lie along the first axis: a graph without a batch axis is not searched"
"""The reason against what would be a block in front of which a batch axis stood."""


@dataclass(frozen=True, slots=True)
class SEBlock:
    """One block: y = x * gate(fc2(act(fc1(pool(x))))), or another pooled channel attention (`kind`).

    Shapes: x, y (N, C, H, W); pool(x), gate (N, C, 1, 1) or (N, C); fc1 (N, R, 1, 1) or (N, R).
    Names are value names of the graph that the block was found in, except where they say node.
    """

    output: str  # name of y: the block's identity in every later step and report
    kind: str  # one of SE_KINDS, or "eca", "scse", "cbam-channel", "gc", "sk", "se-shift", ...
    channels: int  # C
    reduced: int | None  # R; None where there is one learned layer only
    activation: str  # inner activation: "relu", "silu", "hardswish", ..., "none"
    gate: str  # "sigmoid", "hardsigmoid", "tanh1", "softmax2", ...
    form: Literal["conv", "linear"]
    spelling: tuple[str, ...]  # operator types from the squeeze to the scale
    squeeze_input: str  # x as the squeeze reads it
    squeeze_output: str  # what the squeeze gives: the first value of size C per image
    gate_output: str  # the gate as the scale reads it
    scale_node: str  # node name of the Mul that applies the gate
    nodes: tuple[str, ...]  # node names of everything in the block, squeeze first, the Mul (or Add) last
    layers: tuple[str, ...]  # node names of the learned layers, in order
    params: int  # with biases, BatchNorm counted as its two affine vectors
    placement: str  # what x comes from: "linear-conv", "activation", "other"
    followed_by: str  # what reads y: "residual-add", "conv", "other"
    channel_axis: int = 1  # where the scaled tensor has its channels; its last axis in NHWC
    gain: float = 1.0  # constant factor on the gate: 2.0 in NFNet
    traits: tuple[str, ...] = ()  # what else is in it: "norm", "merged" (two branches), "softmax2", ...

    @property
    def ratio(self) -> float | None:
        """C / R."""
        return None if self.reduced is None else self.channels / self.reduced


@dataclass(frozen=True, slots=True)
class NotSE:
    """A candidate Mul (or Add) that is no block, and the reason in a user's words."""

    output: str
    reason: str


@dataclass(frozen=True, slots=True)
class Census:
    """Every block and every rejected candidate of a graph, in graph order."""

    blocks: tuple[SEBlock, ...]
    rejected: tuple[NotSE, ...]

    @property
    def se(self) -> tuple[SEBlock, ...]:
        """The blocks of SE_KINDS."""
        return tuple(block for block in self.blocks if block.kind in SE_KINDS)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the census does not answer, in words."""
        unread = [one.output for one in self.rejected if one.reason == WITHOUT_BATCH]
        if not unread:
            return ()
        what = counted(len(unread), "gated map", ("has", "have"))
        text = (
            f"{what} no batch axis, '{unread[0]}' first: whether that is an SE block is not known, for a "
            "graph without a batch axis is not searched. Export the network with a batch of one"
        )
        return (text,)


def formula_params(blocks: Iterable[SEBlock]) -> int:
    """Count the blocks' weights as the literature does: 2/r * sum of N_s * C_s^2 over stages, no biases.

    Each block adds 2 * C * R, which is 2/r * C^2 for its own r = C/R; one with a single learned layer C^2.
    """
    return sum(b.channels * (b.channels if b.reduced is None else 2 * b.reduced) for b in blocks)
