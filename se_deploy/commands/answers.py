"""What outputs say of one sample, in words: its classes, a mask, boxes with their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from se_deploy.backends.sessions import shape_text
from se_deploy.comparison import boxes
from se_deploy.comparison.kinds import kinds_of
from se_deploy.comparison.sums import answers as classes_of
from se_deploy.errors import BadInput
from se_deploy.schema.results import Box, Guess, Share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.protocols import Array, Arrays, FloatArray
    from se_deploy.schema.common import OutputKind

# FP16 probabilities of 1000 classes add up to 1 within 2**-11; rounded once more on the way out.
_SUM_TOLERANCE = 1e-3
_SAID: dict[str, tuple[OutputKind, ...]] = {
    "boxes": ("boxes",), "classes": ("logits", "scores", "values", "embedding"), "mask": ("mask",),
}  # fmt: skip
"""What an answer may be made of, where nobody says it: a vector of any guess is taken for classes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Which output is the answer, and what goes with it."""

    what: Literal["boxes", "classes", "mask"]
    output: str
    scores: str | None = None  # of boxes, row by row
    labels: str | None = None


def choose(answers: Arrays, feeds: Arrays, count: int, given: Mapping[str, OutputKind]) -> Answer:
    """Return what to say: what `given` names, else boxes, else class scores, else a mask.

    `count`: samples that were fed. Raises: BadInput where no output is any of them.
    """
    kinds = kinds_of(answers, feeds, given)
    asked = [name for name in given if name in answers]
    for names in (asked, [name for name in answers if name not in asked]):
        boxed = next(
            (name for name in names if kinds[name] == "boxes" and _by_sample(answers[name], count)), None
        )
        if boxed is not None:
            rows = answers[boxed].shape[:-1]
            beside = [n for n in answers if n != boxed and answers[n].shape[: len(rows)] == rows]
            return Answer(
                "boxes",
                boxed,
                next((n for n in beside if kinds[n] == "scores"), None),
                next((n for n in beside if kinds[n] == "labels"), None),
            )
        for name in names:
            refused = given.get(name) in {"embedding", "values", "labels"}
            if not refused and kinds[name] in _SAID["classes"] and _are_scores(answers[name], count):
                return Answer("classes", name)
        for name in names:
            if kinds[name] == "mask" and len(answers[name]) == count:
                return Answer("mask", name)
    first = next(iter(answers))
    raise BadInput(
        f"the output '{first}' is {answers[first].dtype} {shape_text(answers[first].shape)}, not "
        "(N, classes) of scores, a mask or boxes, nor is another: this is no classifier, and nothing else "
        "that predict shows",
        hint="say what an output is with --output NAME:KIND, or compare outputs with `se-deploy parity`",
    )


def guesses(scores: FloatArray, top: int, labels: Sequence[str]) -> tuple[Guess, ...]:
    """Return the most probable of (classes,) probabilities, best first."""
    best = np.argsort(-scores, kind="stable")[:top]
    return tuple(
        Guess(index=int(i), label=_label(labels, int(i)), probability=float(scores[i])) for i in best
    )


def found(answer: Answer, answers: Arrays, row: int, top: int, labels: Sequence[str]) -> tuple[Box, ...]:
    """Return the boxes of one sample, best score first, as the network gives their coordinates.

    Raises: BadInput where they are neither corners nor centres and sizes.
    """
    own = {
        name: answers[name] if answers[answer.output].ndim == 2 else answers[name][row]  # noqa: PLR2004 - (K, 4)
        for name in (answer.output, answer.scores, answer.labels)
        if name is not None
    }
    form = boxes.form_of(own[answer.output])
    if form is None:
        raise BadInput(
            f"the output '{answer.output}' holds rows that are no boxes",
            hint=f"say what it is: --output {answer.output}:values",
        )
    corners = boxes.corners(own[answer.output], form)
    scores, indices = _scored(answer, own)
    real = np.flatnonzero(boxes.areas(corners) != 0)  # detectors of a fixed size fill up with zeros
    if scores is not None:
        real = real[np.argsort(-scores[real], kind="stable")]
    return tuple(
        Box(
            corners=tuple(float(value) for value in corners[i]),
            score=None if scores is None else float(scores[i]),
            index=None if indices is None else int(indices[i]),
            label=None if indices is None else _label(labels, int(indices[i])),
        )
        for i in real[:top]
    )


def classes_in(mask: Array) -> Array:
    """Return the class of each pixel, (N, H, W), of integers or of scores (N, classes, H, W)."""
    if mask.dtype.kind == "f":
        classes = classes_of(mask, mask)[0]
    else:
        classes = mask if mask.ndim == 3 else mask.squeeze(1 if mask.shape[1] == 1 else 3)  # noqa: PLR2004
    return classes.astype(np.int64)


def shares(classes: Array, top: int, labels: Sequence[str]) -> tuple[Share, ...]:
    """Return the largest classes of a mask (H, W) by their share of its pixels."""
    indices, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:top]
    return tuple(
        Share(
            index=int(indices[i]),
            label=_label(labels, int(indices[i])),
            share=float(counts[i] / classes.size),
        )
        for i in order
    )


def probabilities(scores: FloatArray) -> FloatArray:
    """Softmax over (N, classes), but for a network that ends in one itself."""
    if (scores >= 0).all() and (abs(scores.sum(axis=1) - 1) <= _SUM_TOLERANCE).all():
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    made: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return made


def _scored(answer: Answer, own: Arrays) -> tuple[Array | None, Array | None]:
    """Return the score and the class of each box; of scores by class the best."""
    labels = None if answer.labels is None else own[answer.labels].reshape(len(own[answer.labels]), -1)[:, 0]
    if answer.scores is None:
        return None, labels
    scores = own[answer.scores].astype(np.float64)
    if scores.ndim == 1:
        return scores, labels
    return scores.max(axis=1), scores.argmax(axis=1) if labels is None and scores.shape[1] > 1 else labels


def _by_sample(array: Array, count: int) -> bool:
    """Whether it is known which sample a box is of: (N, K, 4), or (K, 4) of the only one."""
    return len(array) == count if array.ndim == 3 else count == 1  # noqa: PLR2004


def _are_scores(array: Array, batch: int) -> bool:
    """Tell scores from the index of the best class, which is an integer, and from maps and boxes."""
    return array.ndim == 2 and array.dtype.kind == "f" and array.shape[0] == batch and array.shape[1] > 1  # noqa: PLR2004 - (N, classes)


def _label(labels: Sequence[str], index: int) -> str | None:
    return labels[index] if 0 <= index < len(labels) else None
