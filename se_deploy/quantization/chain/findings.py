"""What a linter of INT8 chains says: breaks, which other Q/DQ would mend, and ends, which it would not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from se_deploy.quantization.chain.rules import Rule


@dataclass(frozen=True, slots=True)
class Break:
    """What keeps layers from reading or writing INT8, and other Q/DQ would mend."""

    node: str  # where
    cause: str
    rule: Rule
    layers: tuple[str, ...]  # which read or write floats for it
    tensors: tuple[str, ...] = ()  # that want a quantizer in front of `reader`, or one scale for all
    reader: str | None = None  # the operator that reads the tensor in float


@dataclass(frozen=True, slots=True)
class End:
    """Where a chain ends by the network's own making, or at a layer left in float."""

    node: str  # what reads floats
    cause: str
    layers: tuple[str, ...]  # which write them


@dataclass(frozen=True, slots=True)
class Chain:
    """The layers with constant weights of a Q/DQ graph, and how far they follow on each other in INT8."""

    int8: tuple[str, ...]  # input and weights are quantized
    in_float: tuple[str, ...]
    breaks: tuple[Break, ...]
    ends: tuple[End, ...]
    # Both are None where sizes behind the batch are free.
    int8_macs_fraction: float | None  # of all layers with constant weights, of those TensorRT runs in INT8
    int8_bytes_fraction: float | None  # of the activations that kernels read and write

    @property
    def broken(self) -> frozenset[str]:
        """The INT8 layers that a break concerns."""
        return frozenset(self.int8) & {name for one in self.breaks for name in one.layers}

    @property
    def unbroken(self) -> int:
        """How many INT8 layers read and write INT8 as far as the network lets them."""
        return len(self.int8) - len(self.broken)

    @property
    def unbroken_fraction(self) -> float:
        """Their share of the INT8 layers."""
        return self.unbroken / len(self.int8) if self.int8 else 0.0


def merged_breaks(found: Iterable[Break]) -> tuple[Break, ...]:
    """Return each break once, with all layers that it concerns."""
    groups: dict[tuple[str, str, Rule], list[Break]] = {}
    for one in found:
        groups.setdefault((one.node, one.cause, one.rule), []).append(one)
    return tuple(
        dataclasses.replace(same[0], layers=tuple(dict.fromkeys(n for one in same for n in one.layers)))
        for same in groups.values()
    )


def merged_ends(found: Iterable[End]) -> tuple[End, ...]:
    """Return each end once, with all layers whose chain ends there."""
    layers: dict[tuple[str, str], dict[str, None]] = {}
    for one in found:
        layers.setdefault((one.node, one.cause), {}).update(dict.fromkeys(one.layers))
    return tuple(End(*key, tuple(names)) for key, names in layers.items())
