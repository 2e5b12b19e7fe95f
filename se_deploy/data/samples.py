"""The samples that a step is given: counted, hashed, and read batch by batch."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from se_deploy.protocols import Array

IntArray = npt.NDArray[np.int64]


class Source(Protocol):
    """Something on disk that gives samples by their number."""

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Return these samples as one batch by input name, first axis = len(numbers)."""


@dataclass(frozen=True, slots=True)
class Hashes:
    """What chosen samples hold, as hashes that were taken while they were read once."""

    whole: str  # sha256 over their names and content
    each: tuple[bytes, ...]  # of each sample's content alone: equal where one is a copy of another


def hash_of(*contents: bytes) -> bytes:
    """Return 16 bytes that are equal for equal contents."""
    made = hashlib.sha256()  # processors have instructions for it
    for content in contents:
        made.update(content)
    return made.digest()[:16]


@dataclass(frozen=True, slots=True)
class Samples:
    """A choice of samples from one source, in a fixed order."""

    source: Source
    chosen: tuple[int, ...]  # numbers in the source, in order
    labels: IntArray | None  # (count,) class indices of the chosen samples, None where there are none
    sha256: str  # over the chosen samples' names and content, and how they are prepared
    warnings: tuple[str, ...] = ()
    shapes: tuple[object, ...] | None = None  # of each chosen sample; None: all have the same
    counted: int | None = None  # the labels are places among so many sorted class names; None: they are known
    each: tuple[bytes, ...] | None = None  # a hash of each chosen sample's content; None: no two are equal
    unlabelled: str = ""  # why there are no labels, where some samples seemed to have one

    @property
    def count(self) -> int:
        """How many samples are chosen."""
        return len(self.chosen)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield the samples in order, at most `size` at a time by input name.

        Fewer come last, and where the next sample has another shape: those cannot be one array.
        """
        start = 0
        while start < self.count:
            end = min(start + size, self.count)
            if self.shapes is not None:
                same = (shape == self.shapes[start] for shape in self.shapes[start:end])
                end = start + sum(itertools.takewhile(bool, same))
            yield self.source.fetch(self.chosen[start:end])
            start = end

    def take(self, positions: Sequence[int]) -> Samples:
        """Keep the samples at these positions, in this order; the hash stays that of the whole."""
        return dataclasses.replace(
            self,
            chosen=tuple(self.chosen[p] for p in positions),
            labels=None if self.labels is None else self.labels[list(positions)],
            shapes=None if self.shapes is None else tuple(self.shapes[p] for p in positions),
            each=None if self.each is None else tuple(self.each[p] for p in positions),
        )

    def parts(self, every: int, block: int = 1) -> int:
        """Return how many parts `split` tells apart: one for each turn."""
        return max(2, min(every, self.count // block))

    def split(self, every: int, block: int = 1, *, turn: int = 0) -> tuple[Samples, Samples]:
        """Hold back each `every`-th block of samples: (the rest, the held back).

        With fewer than two blocks none is held back. At other turns it is the block so many before it, so
        that each sample of a whole block is held back at one of `parts`.
        """
        every = self.parts(every, block)
        held = [p for p in range(self.count) if p // block % every == every - 1 - turn]
        held = held[: len(held) // block * block]
        back = set(held)
        return self.take([p for p in range(self.count) if p not in back]), self.take(held)
