"""What a network is fed, as it is declared: names, sizes that may be free, element types.

`--input feats:Nx80xT --input lengths:N:int64` is two inputs whose first dimension, N, is the batch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from se_deploy.errors import BadInput, counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

BATCH = "N"
"""The free dimension that counts samples."""
DTYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")
_HINT = "write it as NAME:DIMS or NAME:DIMS:DTYPE, as in feats:Nx80xT or lengths:N:int64"


@dataclass(frozen=True, slots=True)
class DeclaredInput:
    """One input: a dimension is a size, or the name of one that is free; equal names are one dimension."""

    name: str
    dims: tuple[int | str, ...]  # () is a scalar
    dtype: str = "float32"  # one of DTYPES

    @property
    def free(self) -> dict[int, str]:
        """The names of the free dimensions by their axis."""
        return {axis: dim for axis, dim in enumerate(self.dims) if isinstance(dim, str)}

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with every free dimension as `sizes` has it. Raises: KeyError."""
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in self.dims)

    def __str__(self) -> str:
        """The input as `--input` takes it."""
        dims = "x".join(map(str, self.dims))
        return f"{self.name}:{dims}" + ("" if self.dtype == "float32" else f":{self.dtype}")


@dataclass(frozen=True, slots=True)
class Feeding:
    """How a network is fed where one image size does not say it."""

    inputs: tuple[DeclaredInput, ...] = ()  # in any order where they carry the parameters' names
    example: Path | None = None  # .npz of arrays by input name, or the .npy of the only one
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by input: its free sizes' values

    @property
    def sizes(self) -> dict[str, int]:
        """The values of free dimensions by their names. Raises: BadInput where two shapes disagree."""
        sizes: dict[str, int] = {}
        for one in self.inputs:
            shape = self.shapes.get(one.name, ())
            if shape and len(shape) != len(one.dims):
                raise BadInput(
                    f"'{one}' has {counted(len(one.dims), 'dimension')}, its shape {len(shape)}", hint=_HINT
                )
            for axis, name in one.free.items() if shape else ():
                if sizes.setdefault(name, shape[axis]) != shape[axis]:
                    raise BadInput(
                        f"{name} is {sizes[name]} and {shape[axis]} in the shapes given",
                        hint="equal names are one dimension: give it one size, or two names",
                    )
        return sizes


def parse(text: str) -> DeclaredInput:
    """Return the input that NAME:DIMS[:DTYPE] declares; it is read from the right, for NAME may hold colons.

    Raises: BadInput for a text without a name or with other dimensions than numbers and names without an x.
    """
    rest, dtype = text, "float32"
    head, colon, last = text.rpartition(":")
    if colon and ":" in head and re.fullmatch(r"b?float\d+|u?int\d+|bool", last):
        if last not in DTYPES:
            raise BadInput(f"'{last}' in '{text}' is no element type", hint=f"use one of {', '.join(DTYPES)}")
        rest, dtype = head, last
    name, colon, dims = rest.rpartition(":")
    if not colon or not name:
        raise BadInput(f"'{text}' names no input", hint=_HINT)
    return DeclaredInput(name, tuple(_dim(word, text) for word in dims.split("x")) if dims else (), dtype)


def free_names(inputs: Iterable[DeclaredInput]) -> tuple[str, ...]:
    """Return the names of the free dimensions but for the batch, each once, in order."""
    names = (name for one in inputs for name in one.free.values())
    return tuple(dict.fromkeys(name for name in names if name != BATCH))


def _dim(word: str, text: str) -> int | str:
    if re.fullmatch(r"[1-9]\d*", word):
        return int(word)
    if re.fullmatch(r"[A-Za-wyz_][A-Za-wyz_0-9]*", word):
        return word
    raise BadInput(f"'{word}' in '{text}' is neither a size nor a name of one", hint=_HINT)
