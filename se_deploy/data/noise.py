"""Random samples: for a network without data, and only where the user allows it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.data.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.protocols import Array, TensorSpec


@dataclass(frozen=True, slots=True)
class NoiseSource:
    """Standard normal numbers, bytes of their whole range; the same for the same seed and sample number."""

    specs: tuple[TensorSpec, ...]
    seed: int

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Draw these samples: each has a generator of its own."""
        return {
            spec.name: np.stack([self._draw(spec, slot, number) for number in numbers])
            for slot, spec in enumerate(self.specs)
        }

    def _draw(self, spec: TensorSpec, slot: int, number: int) -> Array:
        shape = [1 if d is None else d for d in spec.dims[1:]]
        rng = np.random.default_rng([self.seed, slot, number])
        if spec.dtype == np.uint8:
            return rng.integers(0, np.iinfo(np.uint8).max, shape, np.uint8, endpoint=True)
        values: Array = np.asarray(rng.standard_normal(shape))
        return values.astype(spec.dtype)


def random(specs: Sequence[TensorSpec], *, count: int, seed: int = 0) -> Samples:
    """Return `count` random samples; the result carries a warning that the ranges mean nothing."""
    source = NoiseSource(tuple(specs), seed)
    return Samples(
        source=source,
        chosen=tuple(range(count)),
        labels=None,
        sha256=hashlib.sha256(repr(source).encode()).hexdigest(),
        warnings=("calibrated on random numbers: the ranges, and every figure from them, mean nothing",),
    )
