"""The sizes behind a figure: named by the user or by the file, never silently 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.protocols import TensorSpec
    from se_deploy.schema.input_spec import InputSpec

Shapes = dict[str, tuple[int, ...]]
"""The dimensions of every input, by name."""


def settled(
    inputs: Sequence[TensorSpec],
    figure: str,
    *,
    batch: int = 1,
    image: InputSpec | None = None,
    named: Mapping[str, Sequence[int]] | None = None,
) -> Shapes:
    """Return the shape of every input: `named` by the user, else its own, free sizes by the input spec.

    A free first dimension is `batch`; `figure` is what the sizes are for.
    Raises: BadInput where a size is free that nobody named, or where `named` does not fit.
    """
    named = named or {}
    known = [spec.name for spec in inputs]
    for name in named:
        if name not in known:
            raise BadInput(
                f"--opt-shapes names '{name}', which is no input", hint=f"the inputs: {', '.join(known)}"
            )
    if image is not None and len(inputs) == 1:
        image = msgspec.structs.replace(image, name=inputs[0].name)  # an engine's manifest may lack the name
    return {
        spec.name: _given(spec, named[spec.name]) if spec.name in named else _own(spec, figure, batch, image)
        for spec in inputs
    }


def _given(spec: TensorSpec, sizes: Sequence[int]) -> tuple[int, ...]:
    fits = len(sizes) == len(spec.dims) and all(d in {None, n} for d, n in zip(spec.dims, sizes, strict=True))
    if not fits:
        raise BadInput(
            f"--opt-shapes gives '{spec.name}' the shape {_text(sizes)}, it takes {_text(spec.dims)}",
            hint="give one number for each dimension, the fixed ones as they are",
        )
    return tuple(sizes)


def _own(spec: TensorSpec, figure: str, batch: int, image: InputSpec | None) -> tuple[int, ...]:
    dims = list(spec.dims)
    if dims and dims[0] is None:
        dims[0] = batch
    if image is not None and image.name == spec.name and len(dims) == 1 + len(image.shape):
        c, h, w = image.shape
        sizes = (c, h, w) if image.layout == "NCHW" else (h, w, c)
        dims[1:] = [d if d is not None else n for d, n in zip(dims[1:], sizes, strict=True)]
    if None in dims:
        example = "x".join("?" if d is None else str(d) for d in dims)
        raise BadInput(
            f"{figure} depends on the size of input '{spec.name}', {_text(spec.dims)}, and nobody named it",
            hint=f"give it: --input-size {_text(dims[1:])} or --opt-shapes {spec.name}:{example}, "
            "with numbers for the question marks",
        )
    return tuple(d for d in dims if d is not None)


def _text(dims: Sequence[int | None]) -> str:
    return "x".join("?" if d is None else str(d) for d in dims) or "scalar"
