"""Block-wise reconstruction: what is asked of a trainer of INT8 roundings, and what comes back.

The trainer is PyTorch's, and this package imports none: it is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Progress
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import QuantizedLayer


@dataclass(frozen=True, slots=True)
class Task:
    """A float network, its layers, how they are in INT8 so far, and what to train on."""

    model: ir.Model
    layers: Sequence[Layer]
    planned: Sequence[QuantizedLayer]
    samples: Samples
    batch: int  # samples that the graph takes at once; 1 where it is free
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """One block: how well its output was kept on samples that it was not trained on, before and after."""

    tensor: str  # its output in the float network
    layers: tuple[str, ...]  # in INT8
    kept: bool
    before_db: float | None = None
    after_db: float | None = None
    reason: str | None = None  # why it was not tried


@dataclass(frozen=True, slots=True)
class Trained:
    """The layers with other roundings where those are better, and every block."""

    planned: tuple[QuantizedLayer, ...]
    blocks: tuple[Block, ...]


class Trainer(Protocol):
    """Trains the roundings of weights and the scales of activations, block by block."""

    def __call__(self, task: Task, *, seconds: float, progress: Progress) -> Trained:
        """Train for about `seconds`; keep a block where cross-validation finds it better than its noise."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to spend on reconstruction, and who does it."""

    trainer: Trainer
    seconds: float


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What reconstruction did: every block, and the network on the samples held back."""

    seconds: float  # that were asked for
    kept: bool  # whether the network as a whole is better with the blocks that were kept
    blocks: tuple[Block, ...]
    before_db: float
    after_db: float
