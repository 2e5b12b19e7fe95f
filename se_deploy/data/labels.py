"""Which class a sample is said to be of, and what speaks against it: a wrong label is a wrong accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from se_deploy.protocols import Array

_DIGITS = 9  # of a class number


@dataclass(frozen=True, slots=True)
class Numbering:
    """The class index of each name, and how sure it is."""

    index: Mapping[str, int] = field(default_factory=dict)  # none where the names cannot be numbered
    counted: int | None = None  # the indices are places among so many sorted names; None: they are known
    reason: str = ""  # why there is none


def numbering(names: Sequence[str], labels: Sequence[str]) -> Numbering:
    """Return the index of each class folder, of sorted `names`, for a network whose classes are `labels`.

    That of the label of its name, the number that it is, or its place where no label says otherwise.
    """
    known = [name for name in names if labels.count(name) == 1]
    if known and len(known) == len(names):
        return Numbering({name: labels.index(name) for name in names})
    if known:
        other = next(name for name in names if name not in known)
        return Numbering(reason=f"the folder '{other}' is none of the network's labels, '{known[0]}' is")
    if all(is_number(name) for name in names):
        return Numbering({name: int(name) for name in names})
    if labels and len(labels) != len(names):
        return Numbering(
            reason=f"none of {errors.counted(len(names), 'class folder')}, such as '{names[0]}', is one of "
            f"the network's {errors.counted(len(labels), 'label')}"
        )
    return Numbering({name: i for i, name in enumerate(names)}, counted=len(names))


def is_number(text: str) -> bool:
    """Whether a text is a class number."""
    return text.isdecimal() and len(text) <= _DIGITS


def whole(values: Array) -> npt.NDArray[np.int64] | None:
    """Return labels as integers; None where one is no whole number: they are targets of another kind."""
    if values.dtype.kind == "f" and not bool((np.isfinite(values) & (values == np.round(values))).all()):
        return None
    return values.astype(np.int64)


def doubt(labels: npt.NDArray[np.int64], counted: int | None, classes: int) -> str:
    """Return what speaks against labels for a network of so many classes; "" for nothing."""
    if counted not in (None, classes):
        folders = errors.counted(counted or 0, "class folder")
        return (
            f"{folders} without the network's labels can only be numbered in sorted order, "
            f"and the network has {errors.counted(classes, 'class')}"
        )
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.size:
        return (
            f"label {outside[0]} is none of {errors.counted(classes, 'class')}, which are 0 to {classes - 1}"
        )
    return ""
