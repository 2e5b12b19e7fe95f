"""`predict`: what an artifact says of images, with its labels; the first thing tried on a device."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import data, files
from se_deploy.backends import manifest as manifests
from se_deploy.backends.sessions import shape_text
from se_deploy.commands import artifacts
from se_deploy.data.images import UNREADABLE, SourceImage, unreadable
from se_deploy.errors import BadArtifact, BadData, BadInput, MissingRuntime
from se_deploy.options import NetworkOptions
from se_deploy.protocols import silent
from se_deploy.schema import tool_version
from se_deploy.schema.results import Guess, Predict, Prediction

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from se_deploy.options import HostOptions, ImageOptions
    from se_deploy.protocols import Array, FloatArray, Progress, Session
    from se_deploy.schema.input_spec import InputSpec

# FP16 probabilities of 1000 classes add up to 1 within 2**-11; rounded once more on the way out.
_SUM_TOLERANCE = 1e-3


def predict(
    artifact: str | Path,
    images: Sequence[str | Path],
    *,
    top: int = 5,
    host: HostOptions | None = None,
    network: NetworkOptions | None = None,
    progress: Progress = silent,
) -> Predict:
    """Return the `top` most probable classes of each image.

    Scores become probabilities by softmax, unless they are probabilities already. Nothing stands in for
    the artifact: an engine needs its GPU. Raises: BadInput where the artifact is no classifier or does not
    say how images become its input; BadData for an unreadable image; MissingRuntime; BadArtifact.
    """
    network = network or NetworkOptions()
    image = network.image
    with _opened(str(artifact), host, network) as one:
        spec = _spec(one, str(artifact), image)
        # An engine's profile may end at any batch: one image at a time fits them all.
        size = artifacts.batch_size(one.session, 1)
        guessed: list[Prediction] = []
        for start in range(0, len(images), size):
            progress("predict", start, len(images))
            names = [str(name) for name in images[start : start + size]]
            scores = _scores(one.session, spec, names, size)
            _check_labels(spec, str(artifact), scores.shape[1], given=image.labels is not None)
            for name, row in zip(names, probabilities(scores), strict=True):
                best = np.argsort(-row, kind="stable")[:top]
                guesses = (
                    Guess(index=int(i), label=_label(spec, int(i)), probability=float(row[i])) for i in best
                )
                guessed.append(Prediction(image=name, top=tuple(guesses)))
        progress("predict", len(images), len(images))
        return Predict(
            tool_version=tool_version(),
            warnings=_spec_warnings(one, image),
            artifact=str(artifact),
            runtime=one.runtime,
            device=one.device,
            predictions=tuple(guessed),
        )


@contextlib.contextmanager
def _opened(artifact: str, host: HostOptions | None, network: NetworkOptions) -> Iterator[artifacts.Opened]:
    """Open the artifact itself; where its GPU is missing, say what could be run in its place."""
    with contextlib.ExitStack() as stack:
        try:
            opening = artifacts.opened(artifact, host=host, network=network)
            one = stack.enter_context(opening)
        except MissingRuntime as e:
            if artifacts.kind_of(artifact) != "engine":
                raise
            try:
                onnx = manifests.stand_in(Path(artifact), manifests.read(Path(artifact)))
            except BadArtifact:  # nothing to point to: what is missing is the device
                raise e from None
            hint = f"{e.hint}; or ask the ONNX file that it was built from: se-deploy predict {onnx} ..."
            raise MissingRuntime(e.message, hint=hint) from e
        yield one


def _spec(one: artifacts.Opened, artifact: str, image: ImageOptions) -> InputSpec:
    """Return how an image becomes the artifact's one input."""
    if len(one.session.inputs) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in one.session.inputs)
        raise BadInput(
            f"'{artifact}' takes {len(one.session.inputs)} inputs ({names}), an image is one",
            hint="for networks of several inputs compare outputs with `se-deploy parity`",
        )
    taken = one.session.inputs[0]
    spec = image.applied(one.image)
    if spec is None:
        raise BadInput(
            f"'{artifact}' does not say how an image becomes its input '{taken.name}' "
            f"({taken.dtype} {shape_text(taken.dims)})",
            hint=data.how_to_describe(one.session.inputs),
        )
    floats = np.issubdtype(taken.dtype, np.floating)
    if not floats and taken.dtype != np.dtype(spec.element):
        raise BadInput(
            f"the input '{taken.name}' of '{artifact}' takes {taken.dtype}, its input spec makes "
            f"{spec.element}",
            hint="for other networks compare outputs with `se-deploy parity`",
        )
    dims = taken.dims[1:]
    if len(dims) != len(spec.dims) or any(d not in {None, m} for d, m in zip(dims, spec.dims, strict=True)):
        raise BadInput(
            f"the input '{taken.name}' of '{artifact}' takes {shape_text(taken.dims)}, its input spec makes "
            f"images of {shape_text(spec.dims)}",
            hint="name the size that the network takes with --input-size CxHxW",
        )
    return spec


def _spec_warnings(one: artifacts.Opened, image: ImageOptions) -> tuple[str, ...]:
    """Return which normalization nobody gave: the flags made the input spec."""
    frames = one.session.inputs[0].dtype == np.uint8
    given = not frames and image.size is not None and (image.mean is None or image.std is None)
    plain = one.image is None or (set(one.image.mean) == {0.0} and set(one.image.std) == {1.0})
    if given and plain:
        return ("--mean and --std were not both given: 0 and 1 stand for what is missing",)
    return ()


def _scores(session: Session, spec: InputSpec, names: Sequence[str], size: int) -> FloatArray:
    """Run one batch: the scores of the first output that has them, (len(names), classes)."""
    taken = session.inputs[0]
    batch = np.stack([_prepared(name, spec) for name in names]).astype(taken.dtype)
    # A graph frozen at a larger batch is filled up with the last image, whose copies are dropped again.
    batch = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
    answers = session.run({taken.name: batch})
    output = next((o for o in session.outputs if _are_scores(answers[o.name], len(batch))), None)
    if output is None:
        first = session.outputs[0]
        raise BadInput(
            f"the output '{first.name}' is {first.dtype} {shape_text(answers[first.name].shape)}, not "
            "(N, classes) of scores, nor is another: this is no classifier",
            hint="predict names classes; for other networks compare outputs with `se-deploy parity`",
        )
    scores = answers[output.name]
    scores = scores[: len(names)].astype(np.float64)
    for name, row in zip(names, scores, strict=True):
        if not np.isfinite(row).all():
            raise BadArtifact(
                f"the output '{output.name}' for '{name}' holds NaN or infinity",
                hint="compare the artifact with what it was made from: se-deploy parity",
            )
    return scores


def _prepared(name: str, spec: InputSpec) -> Array:
    image = SourceImage(name, functools.partial(files.read_bytes, Path(name), error=BadData))
    try:
        return data.preprocess(image.open(image.content()), spec)
    except UNREADABLE as e:
        raise unreadable(name, e, "name a whole image of a format that Pillow knows") from e


def _check_labels(spec: InputSpec, artifact: str, classes: int, *, given: bool) -> None:
    """Refuse names that would be put to the wrong classes."""
    if spec.labels and len(spec.labels) != classes:
        where = "--labels names" if given else f"'{artifact}' carries"
        raise BadInput(
            f"{where} {len(spec.labels)} labels for {classes} classes",
            hint=f"name a file of {classes} labels, one a line, with --labels",
        )


def _are_scores(array: Array, batch: int) -> bool:
    """Tell scores from the index of the best class, which is an integer, and from maps and boxes."""
    return array.ndim == 2 and array.dtype.kind == "f" and array.shape[0] == batch and array.shape[1] > 1  # noqa: PLR2004 - (N, classes)


def probabilities(scores: FloatArray) -> FloatArray:
    """Softmax over (N, classes), but for a network that ends in one itself."""
    if (scores >= 0).all() and (abs(scores.sum(axis=1) - 1) <= _SUM_TOLERANCE).all():
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return found


def _label(spec: InputSpec, index: int) -> str | None:
    return spec.labels[index] if index < len(spec.labels) else None
