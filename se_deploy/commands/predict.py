"""`predict`: what an artifact says of images, with its labels; the first thing tried on a device."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import batching, data, files, verification
from se_deploy.backends import manifest as manifests
from se_deploy.backends.sessions import shape_text
from se_deploy.commands import answers, artifacts, reading
from se_deploy.data import masks
from se_deploy.data.images import UNREADABLE, SourceImage, unreadable
from se_deploy.errors import BadArtifact, BadData, BadInput, MissingRuntime, counted
from se_deploy.options import NetworkOptions, read_labels
from se_deploy.protocols import silent
from se_deploy.schema import output_kinds, tool_version
from se_deploy.schema.results import Predict, Prediction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from se_deploy.options import HostOptions, ImageOptions
    from se_deploy.protocols import Array, Arrays, FloatArray, Progress
    from se_deploy.schema.common import OutputKind
    from se_deploy.schema.input_spec import InputSpec

_MASK = ".mask.png"


@dataclass(frozen=True, slots=True)
class Shown:
    """How much is said of each sample, and where masks go."""

    top: int = 5  # classes or boxes
    kinds: Mapping[str, OutputKind] = field(default_factory=dict)  # of outputs, where the guess is wrong
    folder: Path = Path()  # of masks
    overwrite: bool = False


def predict(
    artifact: str | Path,
    images: Sequence[str | Path],
    *,
    top: int = 5,
    shown: Shown | None = None,
    host: HostOptions | None = None,
    network: NetworkOptions | None = None,
    progress: Progress = silent,
) -> Predict:
    """Return what the artifact says of each image: its most probable classes, a mask, or boxes.

    `images`: images, folders of them, and whatever else the artifact is fed: .npy and .npz, WAV files,
    folders of frames. `top`: classes or boxes of each, where `shown` does not say it. Masks are written as
    PNG. Scores become probabilities by softmax, unless they are probabilities already. Nothing stands in for
    the artifact: an engine needs its GPU. Raises: BadInput where no output is any of these, or the artifact
    does not say how images become its input; BadData for an unreadable image; OutputExists; MissingRuntime;
    BadArtifact.
    """
    network, shown = network or NetworkOptions(), shown or Shown(top)
    with _opened(str(artifact), host, network) as one:
        named = {} if one.model is None else output_kinds.read(one.model.metadata_props)
        shown = replace(shown, kinds={**named, **shown.kinds})
        fed = _Fed(one, str(artifact), network.image)
        said: list[Prediction] = []
        for names, feeds in fed.batches([Path(image) for image in images]):
            progress("predict", len(said), max(len(images), len(said)))
            said += _said(fed, names, feeds, shown)
        progress("predict", len(said), len(said))
        return Predict(
            tool_version=tool_version(),
            warnings=tuple(dict.fromkeys((*fed.warnings, *_spec_warnings(one, network.image)))),
            artifact=str(artifact),
            runtime=one.runtime,
            device=one.device,
            predictions=tuple(said),
        )


class _Fed:
    """Turns what was named into batches that the artifact takes."""

    def __init__(self, one: artifacts.Opened, artifact: str, image: ImageOptions) -> None:
        self._one, self.artifact, self._image = one, artifact, image
        self.given_labels = image.labels is not None
        self._known: InputSpec | None = None
        self.warnings: list[str] = []
        # An engine's profile may end at any batch: one sample at a time fits them all.
        self.size = artifacts.batch_size(one.session, 1)
        self.asked = _Asked(one)

    @property
    def spec(self) -> InputSpec:
        """How an image becomes the artifact's one input. Raises: BadInput where nothing says it."""
        if self._known is None:
            self._known = _spec(self._one, self.artifact, self._image)
        return self._known

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of classes."""
        if self._known is not None:
            return self._known.labels
        if self._image.labels is not None:
            return read_labels(self._image.labels)
        return self._one.image.labels if self._one.image is not None else ()

    def batches(self, paths: Sequence[Path]) -> Iterator[tuple[list[str], dict[str, Array]]]:
        """Yield the names of some samples, and these samples by input."""
        taken = self._one.session.inputs
        pictures: list[Path] = []
        for path in paths:
            if not data.is_prepared(path, taken):
                pictures += _pictures(path)
                continue
            samples = data.read(path, list(taken))
            self.warnings += samples.warnings
            done = 0
            for feeds in samples.batches(self.size):
                rows = len(next(iter(feeds.values())))
                numbers = range(done, done + rows)
                yield [str(path) if samples.count == 1 else f"{path}[{n}]" for n in numbers], feeds
                done += rows
        for start in range(0, len(pictures), self.size):
            names = [str(path) for path in pictures[start : start + self.size]]
            spec = self.spec
            batch = np.stack([_prepared(name, spec) for name in names]).astype(taken[0].dtype)
            yield names, {taken[0].name: batch}


class _Asked:
    """A session that knows whether it answers each sample by itself, from a batch whose samples differ.

    What that takes, and what tries the padding of a batch, is asked once.
    """

    def __init__(self, one: artifacts.Opened) -> None:
        self._session = one.session
        self._known: list[tuple[Arrays, dict[str, Array]]] = []
        self._found = frozenset[str]() if one.model is None else verification.found_by(one.model)
        self._settled = artifacts.batch_size(one.session, 1) == 1  # one alone depends on no other
        self.inputs, self.outputs, self.apart = one.session.inputs, one.session.outputs, False

    def run(self, feeds: Arrays) -> dict[str, Array]:
        for asked, made in self._known:
            if all(np.array_equal(asked[name], array) for name, array in feeds.items()):
                return made
        made = self._session.run(feeds)
        if not self._settled:
            self._known.append((feeds, made))
        return made

    def time(self, feeds: Arrays, calls: int) -> FloatArray:
        return self._session.time(feeds, calls)

    def mixing(self, said: Collection[str | None]) -> tuple[str, ...]:
        """Return a warning for each of the outputs `said` that depends on the others of the last batch."""
        differing = [pair for pair in self._known if any(map(_differ, pair[0].values()))]
        if self._settled or not differing:
            self._known.clear()
            return ()
        unsaid = set(differing[0][1]) - set(said)
        told = verification.mixed(self.run, self.inputs, differing[:1], apart=unsaid | self._found)
        self._settled, self.apart = True, not told
        self._known.clear()
        return told


def _differ(array: Array) -> bool:
    """Whether the samples of one batch are not all the same."""
    return bool(array.ndim) and not np.array_equal(array, np.repeat(array[:1], len(array), 0))


def _pictures(path: Path) -> list[Path]:
    """Return an image, or the images in a folder. Raises: BadInput where it holds none."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in data.IMAGE_SUFFIXES)
    if not found:
        raise BadInput(f"'{path}' holds nothing to predict", hint="name images, .npy, .npz or WAV files")
    return found


def _said(fed: _Fed, names: Sequence[str], feeds: dict[str, Array], shown: Shown) -> list[Prediction]:
    """Run one batch and put its answers into words."""
    # A graph frozen at a larger batch is filled up with the last sample, whose copies are dropped again.
    outputs = batching.run(fed.asked, feeds, apart=fed.asked.apart)
    answer = answers.choose(outputs, feeds, len(names), shown.kinds)
    fed.warnings += fed.asked.mixing({answer.output, answer.scores, answer.labels})
    array = outputs[answer.output]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0, 0]) if len(array) == len(names) else 0
        raise BadArtifact(
            f"the output '{answer.output}' for '{names[row]}' holds NaN or infinity",
            hint="compare the artifact with what it was made from: se-deploy parity",
        )
    labels = fed.labels
    if answer.what == "boxes":
        return [
            Prediction(image=name, boxes=answers.found(answer, outputs, row, shown.top, labels))
            for row, name in enumerate(names)
        ]
    if answer.what == "mask":
        masks = answers.classes_in(array)
        return [_masked(name, mask, labels, shown) for name, mask in zip(names, masks, strict=True)]
    _check_labels(labels, fed, array.shape[1])
    shares = answers.probabilities(array.astype(np.float64))
    return [
        Prediction(image=name, top=answers.guesses(row, shown.top, labels))
        for name, row in zip(names, shares, strict=True)
    ]


def _masked(name: str, mask: Array, labels: Sequence[str], shown: Shown) -> Prediction:
    """Write one mask (H, W) and say what is in it. Raises: BadInput for classes that no picture holds."""
    stem = name.replace("[", ".").replace("]", "")
    path = shown.folder / f"{Path(stem).name.removesuffix(Path(name).suffix)}{_MASK}"
    try:
        picture = masks.png(mask)
    except ValueError as e:
        raise BadInput(
            f"the mask of '{name}' is none to draw: {e}",
            hint="say what the output is with --output NAME:KIND, as in --output out:labels",
        ) from e
    files.claim(path, overwrite=shown.overwrite)
    files.write_bytes(path, picture)
    return Prediction(image=name, mask=str(path), classes=answers.shares(mask, shown.top, labels))


@contextlib.contextmanager
def _opened(artifact: str, host: HostOptions | None, network: NetworkOptions) -> Iterator[artifacts.Opened]:
    """Open the artifact itself; where its GPU is missing, say what could be run in its place."""
    with contextlib.ExitStack() as stack:
        try:
            opening = artifacts.opened(artifact, host=host, network=network)
            one = stack.enter_context(opening)
        except MissingRuntime as e:
            if reading.kind_of(artifact) != "engine":
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
            f"'{artifact}' takes {counted(len(one.session.inputs), 'input')} ({names}), an image is one",
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


def _prepared(name: str, spec: InputSpec) -> Array:
    image = SourceImage(name, functools.partial(files.read_bytes, Path(name), error=BadData))
    try:
        return data.preprocess(image.open(image.content()), spec)
    except UNREADABLE as e:
        raise unreadable(name, e, "name a whole image of a format that Pillow knows") from e


def _check_labels(labels: Sequence[str], fed: _Fed, classes: int) -> None:
    """Refuse names that would be put to the wrong classes."""
    if labels and len(labels) != classes:
        where = "--labels names" if fed.given_labels else f"'{fed.artifact}' carries"
        raise BadInput(
            f"{where} {counted(len(labels), 'label')} for {counted(classes, 'class')}",
            hint=f"name a file of {counted(classes, 'label')}, one a line, with --labels",
        )
