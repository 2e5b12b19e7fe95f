"""Arrays on disk that are samples already, read slice by slice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.data.samples import Hashes, hash_of
from se_deploy.errors import BadData
from se_deploy.npy import HINT, NpyFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.protocols import Array, TensorSpec

LABEL_KEYS = ("labels", "label", "y")
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ArraySource:
    """One array per input; the first axis counts samples."""

    arrays: Mapping[str, NpyFile]
    dtypes: Mapping[str, np.dtype[np.generic]]  # what the graph takes
    whole: frozenset[str] = frozenset()  # inputs of which each entry is all that one call takes

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Return these entries of every array in the graph's own types; one alone where `whole` names any."""
        rows = {
            name: array.rows(numbers).astype(self.dtypes[name], copy=False)
            for name, array in self.arrays.items()
        }
        return {name: np.asarray(array[0]) if name in self.whole else array for name, array in rows.items()}


def fed_whole(arrays: Mapping[str, NpyFile], specs: Sequence[TensorSpec]) -> frozenset[str]:
    """Return the inputs whose arrays have one axis more than they: a state, or a scalar, for each sample.

    Such an input has no axis that counts samples, or another than the first.
    """
    return frozenset(
        spec.name
        for spec in specs
        if len(arrays[spec.name].shape) == len(spec.dims) + 1
        and all(d in (None, n) for d, n in zip(spec.dims, arrays[spec.name].shape[1:], strict=True))
    )


def check(source: ArraySource, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Check every array against the input it is for; give warnings.

    Raises: BadData for a wrong rank or dimension, an element type that is no number, or counts that differ.
    """
    warnings = []
    counts = {array.shape[0] if array.shape else 0 for array in source.arrays.values()}
    if len(counts) != 1 or 0 in counts:
        described = ", ".join(f"{name} {array.shape}" for name, array in source.arrays.items())
        raise BadData(f"the arrays do not hold the same number of samples: {described}", hint=HINT)
    for spec in specs:
        array = source.arrays[spec.name]
        if array.fortran:
            raise BadData(
                f"'{array.name}' is stored in Fortran order", hint="save numpy.ascontiguousarray(array)"
            )
        wanted = spec.dims[1:]
        fits = spec.name in source.whole or (
            len(array.shape) == len(spec.dims)
            and all(want is None or have == want for have, want in zip(array.shape[1:], wanted, strict=True))
        )
        if not fits:
            shown = ", ".join("?" if d is None else str(d) for d in ("N", *wanted))
            raise BadData(
                f"'{array.name}' has shape {array.shape}, the input '{spec.name}' takes ({shown})",
                hint="the first axis counts samples, the others must be the input's, or a whole input's",
            )
        if array.dtype.kind != "f" and spec.dtype.kind == "f":
            warnings.append(
                f"'{array.name}' holds {array.dtype} and is fed as {spec.dtype} unchanged: "
                "it must be normalized already"
            )
    return tuple(warnings)


def digest(source: ArraySource, numbers: Sequence[int]) -> Hashes:
    """Hash the chosen entries and refuse what is not finite, a few megabytes at a time.

    Raises: BadData that names the array and the entry with NaN or infinity.
    """
    whole, each = hashlib.sha256(), [b""] * len(numbers)
    for name, array in source.arrays.items():
        whole.update(f"{name}\0{array.dtype.str}\0{array.shape[1:]}\0{len(numbers)}\0".encode())
        size = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        step = max(1, _BLOCK_BYTES // max(1, size))
        for start in range(0, len(numbers), step):
            rows = array.rows(numbers[start : start + step])
            if array.dtype.kind == "f" and not np.isfinite(rows).all():
                bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))[0]
                refuse_not_finite(
                    rows, f"'{array.name}' holds NaN or infinity in entry {numbers[start + bad]}"
                )
            refuse_loss(rows, array.name, name, source.dtypes[name])
            for place, row in enumerate(rows, start):
                each[place] = hash_of(each[place], row.tobytes())
                whole.update(each[place])  # not the row again: hashing it takes longer than reading it
    return Hashes(whole.hexdigest(), tuple(each))


def refuse_not_finite(rows: Array, what: str) -> None:
    """Raise BadData with the text `what` where numbers are not finite."""
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise BadData(what, hint="find out where it comes from: ranges measured on it mean nothing")


def refuse_loss(rows: Array, file: str, name: str, taken: np.dtype[np.generic]) -> None:
    """Refuse numbers that the integer input `name` cannot hold: cast to it they would be others.

    Raises: BadData.
    """
    if taken.kind not in "iu" or np.can_cast(rows.dtype, taken):
        return
    low, high = np.iinfo(taken.name).min, np.iinfo(taken.name).max
    lost = (rows < low) | (rows > high) | (rows != np.trunc(rows))
    if lost.any():
        raise BadData(
            f"'{file}' holds {rows[lost][0]:g}, the input '{name}' takes {taken}",
            hint=f"save whole numbers from {low} to {high}; prepared images are for a network of floats",
        )
