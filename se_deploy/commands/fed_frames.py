"""A network of prepared images, fed with frames: what a file with its preprocessing inside must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy.protocols import TensorSpec

if TYPE_CHECKING:
    from se_deploy.protocols import Array, Arrays, FloatArray, Session
    from se_deploy.schema.input_spec import InputSpec

_WHITE = 255


class FedFrames:
    """A session whose one input, a float image, is prepared from uint8 frames (N, H, W, C) outside."""

    def __init__(self, session: Session, spec: InputSpec) -> None:
        """`spec` says how pixels become the session's input."""
        self._session, self._spec = session, spec
        (taken,) = session.inputs
        first, *rest = taken.dims
        a, b, c = rest
        dims = (b, c, a) if spec.layout == "NCHW" else (a, b, c)
        self._taken = taken
        self.inputs = (TensorSpec(taken.name, np.dtype(np.uint8), (first, *dims)),)
        self.outputs = session.outputs

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Prepare the frames and compute every output."""
        return self._session.run(self._prepared(feeds))

    def time(self, feeds: Arrays, calls: int) -> FloatArray:
        """Time each call without the preparation."""
        return self._session.time(self._prepared(feeds), calls)

    def _prepared(self, feeds: Arrays) -> dict[str, Array]:
        spec = self._spec
        pixels = feeds[self._taken.name].astype(np.float32) / np.float32(_WHITE)
        pixels = (pixels - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
        made = pixels.transpose(0, 3, 1, 2) if spec.layout == "NCHW" else pixels
        return {self._taken.name: np.ascontiguousarray(made).astype(self._taken.dtype)}
