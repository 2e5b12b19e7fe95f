"""Which parts of a step are right together, and which are to blame for a wrong answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.verification.verdict import Failure

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """Parts of a step that are right together, and what those that were dropped got wrong."""

    kept: tuple[T, ...]
    dropped: tuple[T, ...]
    faults: tuple[Failure, ...]  # of the dropped ones, each beside those kept before it


def keep_right(parts: Sequence[T], faults: Callable[[Sequence[T]], Sequence[Failure]]) -> Kept[T]:
    """Drop as few `parts` as needed until nothing is wrong, in about 2 log2(len) questions a culprit.

    `faults` says what is wrong with some parts alone, in their own order; that of none is taken for granted.
    """
    kept: list[T] = []
    dropped: list[T] = []
    wrong: list[Failure] = []

    def add(group: Sequence[T]) -> None:
        found = faults((*kept, *group))
        if not found:
            kept.extend(group)
        elif len(group) == 1:
            dropped.extend(group)
            wrong.extend(found)
        else:
            add(group[: len(group) // 2])
            add(group[len(group) // 2 :])

    if parts:
        add(parts)
    return Kept(tuple(kept), tuple(dropped), tuple(wrong))
