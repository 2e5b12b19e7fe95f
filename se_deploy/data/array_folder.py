"""A folder of .npy files, one sample each: what feature extraction leaves, of any length where that is free.

One input: the files lie anywhere below the folder. Several: a sub-folder for each input, by its name, and
files of equal names belong together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import npy
from se_deploy.data import arrays
from se_deploy.data.samples import Hashes, hash_of
from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from se_deploy.npy import NpyFile
    from se_deploy.protocols import Array, TensorSpec

_HINT = "save each sample with numpy.save, its axes the input's without the first, N"


@dataclass(frozen=True, slots=True)
class FolderSource:
    """One file per input and sample."""

    samples: tuple[Mapping[str, NpyFile], ...]
    specs: tuple[TensorSpec, ...]

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Return these samples, which are of equal shapes, as one batch in the graph's own types."""
        return {
            spec.name: np.stack([_read(self.samples[n][spec.name], spec) for n in numbers]).astype(
                spec.dtype, copy=False
            )
            for spec in self.specs
        }


def find(folder: Path, specs: Sequence[TensorSpec]) -> tuple[dict[str, Path], ...]:
    """Return the files of each sample by input, in the order of their names. Raises: BadData."""
    if len(specs) == 1:
        return tuple({specs[0].name: path} for path in _files(folder))
    by_input = {spec.name: {p.name: p for p in _files(folder / spec.name)} for spec in specs}
    names = sorted({name for files in by_input.values() for name in files})
    for name in names:
        for one, files in by_input.items():
            if name not in files:
                raise BadData(
                    f"'{folder}' has no '{one}/{name}'",
                    hint="give a sub-folder for each input, by its name, with files of equal names",
                )
    return tuple({one: files[name] for one, files in by_input.items()} for name in names)


def open_samples(
    found: Sequence[Mapping[str, Path]], specs: Sequence[TensorSpec]
) -> tuple[Mapping[str, NpyFile], ...]:
    """Read every file's head and check it against its input. Raises: BadData."""
    samples = []
    for files in found:
        sample = {name: npy.open_npy(path) for name, path in files.items()}
        for spec in specs:
            _check(sample[spec.name], spec)
        samples.append(sample)
    return tuple(samples)


def shapes(sample: Mapping[str, NpyFile], specs: Sequence[TensorSpec]) -> tuple[tuple[int, ...], ...]:
    """Return the shape of every input of one sample, without the batch."""
    return tuple(_own(sample[spec.name].shape, spec) for spec in specs)


def digest(samples: Sequence[Mapping[str, NpyFile]], specs: Sequence[TensorSpec]) -> Hashes:
    """Hash all samples and refuse what is not finite. Raises: BadData that names the file."""
    whole, each = hashlib.sha256(), []
    for sample in samples:
        own = b""
        for spec in specs:
            file = sample[spec.name]
            array = _read(file, spec)
            arrays.refuse_not_finite(array, f"'{file.name}' holds NaN or infinity")
            arrays.refuse_loss(array, file.name, spec.name, spec.dtype)
            own = hash_of(own, repr(array.shape).encode(), array.tobytes())
            whole.update(f"{spec.name}\0{array.dtype.str}\0".encode())
            whole.update(own)
        each.append(own)
    return Hashes(whole.hexdigest(), tuple(each))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.npy") if not p.name.startswith("."))


def _own(shape: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...]:
    """Return a file's shape without a first axis of 1, which counts it as a batch of one."""
    return shape[1:] if len(shape) == len(spec.dims) and shape[:1] == (1,) else shape


def _check(file: NpyFile, spec: TensorSpec) -> None:
    wanted, shape = spec.dims[1:], _own(file.shape, spec)
    fits = len(shape) == len(wanted) and all(w in {None, s} for w, s in zip(wanted, shape, strict=True))
    if not fits or file.dtype.kind not in "fiub":
        shown = ", ".join("?" if d is None else str(d) for d in wanted)
        raise BadData(
            f"'{file.name}' holds {file.dtype} of shape {file.shape}, one sample of the input "
            f"'{spec.name}' is {spec.dtype} ({shown})",
            hint=_HINT,
        )


def _read(file: NpyFile, spec: TensorSpec) -> Array:
    return file.whole().reshape(_own(file.shape, spec))
