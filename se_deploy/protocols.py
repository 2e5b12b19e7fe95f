"""What an early step may ask of a late one: a session to run, a compiler to plan, a line of progress.

They stand above every module that names them, so that imports point one way only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import onnx_ir as ir

    from se_deploy.plan import Plan

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Arrays = Mapping[str, Array]
"""Host arrays by tensor name; images are (N, C, H, W)."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of a graph's input or output; None where a dimension is free."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]


class Session(Protocol):
    """A loaded model. Arrays are host numpy, NCHW, keyed by tensor name."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` must be fed."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Compute every output for one batch; the caller may keep the arrays."""

    def time(self, feeds: Arrays, calls: int) -> FloatArray:
        """Time each of `calls` calls in ms, shape (calls,); no warm-up, no host copies."""


class Runtime(Protocol):
    """Something that runs artifacts of one kind."""

    @property
    def name(self) -> str:
        """The backend's name, as registered."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda" or the name of a device."""

    def open(self, artifact: Path | ir.Model) -> AbstractContextManager[Session]:
        """Load an artifact. Raises MissingRuntime (with the install command) or BadArtifact."""


class Planner(Protocol):
    """A compiler that can say what it would run, without a device."""

    def plan(self, model: ir.Model) -> Plan:
        """Plan `model`. Raises BuildFailed with the compiler's reason."""


OVERALL = "all steps"
"""The step that counts the others, where a command knows how many there are."""


class Progress(Protocol):
    """How a long step says how far it is; the command line shows it.

    A step begins when it is first named, and is done when `done` reaches `total`; what is named in between is
    part of it.
    """

    def __call__(self, step: str, done: int, total: int, found: str = "") -> None:
        """`done` of `total` units of `step` are finished; `found`: what it found, once it is done."""


def silent(step: str, done: int, total: int, found: str = "") -> None:
    """Report progress to nobody: the library's default."""
