"""What an output is: class scores, labels, a mask, boxes; read off its name, element type and shape.

Two detectors that find the same objects in another order are equal, two classifiers that do so are not: how
outputs are compared depends on what they are, and where the guess is wrong `--output NAME:KIND` overrules it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

import numpy as np

from se_deploy import batching
from se_deploy.comparison import boxes
from se_deploy.errors import BadInput
from se_deploy.schema.common import OutputKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from se_deploy.protocols import Array, Arrays

_UNIT = 1e-2  # FP16 keeps the norm of a normalized vector within this
_SURE = 0.1  # as near to 0 or 1 a probability is an answer
_MOST = 0.9  # of the pixels of a mask: all but its edges
_BOX = re.compile(r"box", re.IGNORECASE)
_NO_BOX = re.compile(r"regress|delta|offset|anchor|dist|logit", re.IGNORECASE)
_SCORE = re.compile(r"score|conf|prob", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed", re.IGNORECASE)
_MASK = re.compile(r"mask|segm", re.IGNORECASE)


def kinds_of(
    outputs: Arrays, feeds: Arrays, given: Mapping[str, OutputKind] | None = None
) -> dict[str, OutputKind]:
    """Return the kind of each of the reference's outputs for `feeds`, as `given` where it names it.

    Raises: BadInput where `given` names no output, or an output cannot be of that kind.
    """
    given = given or {}
    for name, kind in given.items():
        if name not in outputs:
            raise BadInput(
                f"there is no output '{name}' to take as {kind}",
                hint=f"the outputs are {', '.join(outputs)}",
            )
        _check(name, outputs[name], kind)
    return {name: given.get(name) or _guess(name, outputs, feeds) for name in outputs}


def _guess(name: str, outputs: Arrays, feeds: Arrays) -> OutputKind:
    array = outputs[name]
    if array.dtype.kind != "f":
        return "mask" if _is_plane(array) else "labels"
    samples = batching.rows(feeds) if any(array.ndim for array in feeds.values()) else 0
    if _is_boxes(name, outputs, samples):
        return "boxes"
    if _is_score(name, outputs, samples):
        return "scores"
    if _is_mask(name, array, feeds):
        return "mask"
    if array.ndim == 2 and array.shape[1] > 1:  # noqa: PLR2004 - (N, classes) or (N, features)
        norms = np.linalg.norm(array.astype(np.float64), axis=1)
        unit = bool(norms.size) and bool((np.abs(norms - 1) < _UNIT).all()) and bool((array < 0).any())
        return "embedding" if unit or _EMBEDDING.search(name) else "logits"
    return "values"


def _is_plane(array: Array) -> bool:
    """Whether an integer array is (N, H, W), with or without an axis of one channel."""
    dims = [size for axis, size in enumerate(array.shape) if axis == 0 or size != 1]
    return array.ndim in {3, 4} and len(dims) == 3  # noqa: PLR2004


def _is_mask(name: str, array: Array, feeds: Arrays) -> bool:
    """Whether a float array scores classes, (N, classes, H, W), for each pixel of an input."""
    if array.ndim != 4:  # noqa: PLR2004 - (N, C, H, W)
        return False
    if _MASK.search(name):
        return True
    # An output with the input's channels is a picture, one of another size is a feature map.
    inputs = [a for a in feeds.values() if a.ndim == 4]  # noqa: PLR2004
    sizes = {one for a in inputs for one in ((a.shape[1], a.shape[2:]), (a.shape[3], a.shape[1:3]))}
    channels, size = array.shape[1], array.shape[2:]
    fits = any(size == other and channels != c for c, other in sizes)
    return fits and (channels > 1 or _is_decided(array))


def _is_decided(array: Array) -> bool:
    """Whether nearly all numbers are probabilities near 0 or 1: there or not, unlike a depth or a grey."""
    if not array.size or not bool(((array >= 0) & (array <= 1)).all()):
        return False
    return float(((array < _SURE) | (array > 1 - _SURE)).mean()) > _MOST


def _is_boxes(name: str, outputs: Arrays, samples: int) -> bool:
    """Whether a float array is (K, 4) or (N, K, 4) corners or centres, by name or by what goes with it."""
    array = outputs[name]
    if array.ndim not in {2, 3} or array.shape[-1] != boxes.COORDINATES or _NO_BOX.search(name):
        return False
    rows = array.reshape(-1, boxes.COORDINATES)
    if _BOX.search(name):
        return boxes.form_of(rows) is not None
    by_sample = array.ndim == 2 and len(array) == samples  # noqa: PLR2004 - may be four classes
    beside = any(
        other != name and outputs[other].shape[: array.ndim - 1] == array.shape[:-1] for other in outputs
    )
    return not by_sample and beside and bool(rows.size) and boxes.form_of(rows) == "corners"


def _is_score(name: str, outputs: Arrays, samples: int) -> bool:
    """Whether a float array goes with boxes row by row."""
    shape = outputs[name].shape
    for other, array in outputs.items():
        fits = other != name and shape[: array.ndim - 1] == array.shape[:-1]
        if fits and len(shape) < 4 and _is_boxes(other, outputs, samples):  # noqa: PLR2004 - four is a mask
            return len(shape) == array.ndim - 1 or bool(_SCORE.search(name))
    return False


def _check(name: str, array: Array, kind: OutputKind) -> None:
    """Raise BadInput where an output cannot be of the kind that it was given."""
    what = f"output '{name}' ({array.dtype}, {array.ndim} axes) cannot be compared as {kind}"
    if kind not in get_args(OutputKind):
        raise BadInput(what, hint=f"the kinds are {', '.join(get_args(OutputKind))}")
    if kind == "logits" and (array.ndim < 2 or array.shape[-1] < 2):  # noqa: PLR2004
        raise BadInput(what, hint="logits are (N, ..., classes), the classes last")
    if kind == "mask" and array.ndim < 3:  # noqa: PLR2004
        raise BadInput(what, hint="a mask is integers (N, H, W) or scores (N, classes, H, W)")
    if kind == "mask" and array.dtype.kind == "f" and array.ndim < 4:  # noqa: PLR2004
        raise BadInput(what, hint="a mask of floats is scores (N, classes, H, W), one class or more")
    if kind == "boxes" and (array.ndim not in {2, 3} or array.shape[-1] != boxes.COORDINATES):
        raise BadInput(what, hint="boxes are (K, 4) or (N, K, 4): corners, or centre and size")
    if kind == "embedding" and array.ndim < 2:  # noqa: PLR2004
        raise BadInput(what, hint="an embedding is (N, features)")
