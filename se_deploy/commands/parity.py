"""`parity`: outputs of artifacts against a reference."""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import batching, comparison, data, verification
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.commands import artifacts, reading, shapes
from se_deploy.commands.fed_frames import FedFrames
from se_deploy.data import pictures
from se_deploy.errors import BadInput, meant
from se_deploy.options import Limits, NetworkOptions, SampleOptions
from se_deploy.protocols import silent
from se_deploy.schema import finite, output_kinds, relative, results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from se_deploy.comparison import Divergence, OutputParity, Parity, Tolerance
    from se_deploy.data import Samples
    from se_deploy.options import HostOptions, Precision
    from se_deploy.protocols import Array, Arrays, FloatArray, Progress, Session
    from se_deploy.schema.common import OutputKind
    from se_deploy.schema.input_spec import InputSpec
    from se_deploy.tables.base import Grid

_BATCH = 16
_REMEMBERED_BYTES = 256 * 2**20
_TOGETHER = (3, 2)  # samples in the batches whose rows are held against each other


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate of `parity`: measured, and judged by the tolerance of its precision."""

    path: str
    parity: Parity
    tolerance: Tolerance
    failures: tuple[str, ...]
    failing: frozenset[str]  # the outputs that they are of
    divergence: Divergence | None
    checked_as: str | None  # what stood in for the artifact, in words; None where it ran itself
    evaluated: str  # "engine", "plan-rounded", or the name of the backend that ran it
    rounding: str | None = None  # where its numbers were rounded to FP16, in words
    shapes: Mapping[str, tuple[int, ...]] | None = None  # of its inputs, in one call
    pictures: tuple[bytes | None, ...] = ()  # PNG of what was fed, for each of `parity.disagreements`

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance."""
        return not self.failures


@dataclass(frozen=True, slots=True, repr=False)
class ParityResult(Shown):
    """Every candidate measured on the same samples, and judged."""

    reference: str
    preset: str
    candidates: tuple[Judged, ...]
    reference_accuracy: float | None
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every candidate passed."""
        return all(candidate.passed for candidate in self.candidates)

    def tables(self) -> Sequence[Grid]:
        """Return what the command line prints of it."""
        from se_deploy.tables import measurements  # noqa: PLC0415 - rich where something is shown

        made = to_schema(self)
        return [measurements.parity(made)]


@data.kept()
def parity(
    reference: str | Path | artifacts.Opened,
    candidates: Sequence[str | Path],
    *,
    data: str | Path,
    kinds: Mapping[str, OutputKind] | None = None,
    limits: Limits | None = None,
    samples: SampleOptions | None = None,
    host: HostOptions | None = None,
    network: NetworkOptions | None = None,
    relative_to: Path | None = None,
    progress: Progress = silent,
) -> ParityResult:
    """Compare every candidate with the reference on the same data.

    An ONNX file is run node by node as it stands, its FP16 tensors rounded; an engine runs itself where a GPU
    is that it was built for, else through the ONNX file beside it, rounded where its plan rounds, and the
    result says so.
    Every output is compared by what it is: class scores, a mask, boxes; `kinds` overrules the guess by name.
    Raises: BadData, BadModel, BadArtifact, BadInput.
    """
    limits, samples = limits or Limits(), samples or SampleOptions()
    network = network or NetworkOptions()
    judged: list[Judged] = []
    notes = artifacts.unused(network)
    accuracy, unjudged = None, False
    with artifacts.opened(reference, exact=True, host=host, network=network) as ref:
        shapes.refuse_unknown([spec.name for spec in ref.session.inputs], network.feeding.shapes)
        _refuse_unknown(limits, [spec.name for spec in ref.session.outputs])
        fed: dict[bool, _Fed] = {}
        for done, candidate in enumerate(candidates):
            progress("parity", done, len(candidates))
            with artifacts.opened(candidate, exact=True, stand_in=True, host=host, network=network) as one:
                framed = _take_frames(one)
                asked, answering = _alike(ref, one)
                if framed not in fed:
                    spec = asked.image or _first_image(candidates, network)
                    read = artifacts.read_data(Path(data), asked.session, spec, samples)
                    notes += [text for text in read.warnings if text not in notes]
                    fed[framed] = _Fed(_Remembered(asked.session), read, next(read.batches(1)), spec)
                    notes += [text for text in _mixing(asked, read) if text not in notes]
                remembered, found = fed[framed].reference, fed[framed].samples
                frozen = [n for s in (ref.session, one.session) if (n := batching.frozen(s.inputs))]
                size = max(frozen, default=_BATCH)  # what takes fewer at a time is fed slices
                remembered.restart(size)
                measured = comparison.compare(
                    remembered,
                    answering.session,
                    found.batches(size),
                    labels=found.labels,
                    counted=found.counted,
                    kinds={**_named_in_file(ref, one), **(kinds or {})},
                )
                accuracy = measured.reference_accuracy
                drawn = ref.random_weights or one.random_weights
                held = limits.without_answers() if drawn and limits.min_top1 is None else limits
                unjudged = unjudged or held is not limits
                missed = {
                    output.name: _tolerance(held, one.precision, output.name).failures(output)
                    for output in measured.outputs
                }
                failures = tuple(text for texts in missed.values() for text in texts)
                tolerance = _tolerance(held, one.precision, measured.outputs[0].name)
                divergence = None
                if failures and asked is ref and answering is one:
                    divergence = _divergence(ref, one, found, size, tolerance)
            notes += [
                f"output '{output.name}': neither found a box in any sample, so that none was compared"
                for output in measured.outputs
                if output.kind == "boxes" and output.iou is None
            ]
            doubt = measured.label_doubt or found.unlabelled
            doubts = [f"no accuracy was measured: {doubt}"] if doubt else []
            notes += [text for text in (*_by_position(ref, one), *doubts) if text not in notes]
            if one.checked_as:
                notes.append(f"{name_of(candidate, relative_to)}: {one.checked_as}")
            name = name_of(candidate, relative_to)
            judged.append(
                Judged(
                    name,
                    measured,
                    tolerance,
                    failures,
                    frozenset(name for name, texts in missed.items() if texts),
                    divergence,
                    one.checked_as,
                    one.evaluated or one.runtime,
                    one.rounding,
                    _shapes(fed[framed].sample, one.session, min(size, found.count)),
                    tuple(_pictures(measured, found, fed[framed].image)),
                )
            )
        progress("parity", len(candidates), len(candidates))
    if unjudged:
        notes.append(
            "top-1 agreement is not judged, nor are IoUs: the weights are random, so that classes are near "
            "ties; --min-top1 and --min-iou judge them all the same"
        )
    return ParityResult(
        name_of(reference, relative_to), limits.preset or "auto", tuple(judged), accuracy, tuple(notes)
    )


@dataclass(frozen=True, slots=True)
class _Fed:
    """The reference, and samples as it and its candidates of one kind take them."""

    reference: _Remembered
    samples: Samples
    sample: Arrays
    image: InputSpec | None  # how its pictures were prepared


def _mixing(ref: artifacts.Opened, samples: Samples) -> tuple[str, ...]:
    """Return warnings of the reference's outputs that are not made sample by sample."""
    frozen = batching.frozen(ref.session.inputs)
    sizes = (frozen,) if frozen else tuple(min(size, samples.count) for size in _TOGETHER)
    if max(sizes) < 2:  # noqa: PLR2004 - a batch of others
        return ()
    batches = [batching.padded(next(samples.batches(size)), size) for size in dict.fromkeys(sizes)]
    found = () if ref.model is None else verification.found_by(ref.model)
    asked = [(feeds, batching.run(ref.session, feeds)) for feeds in batches]
    return verification.mixed(
        lambda feeds: batching.run(ref.session, feeds), ref.session.inputs, asked, apart=found
    )


def _named_in_file(ref: artifacts.Opened, one: artifacts.Opened) -> dict[str, OutputKind]:
    """Return what the files say of their outputs, by the reference's names."""
    for opened in (ref, one):
        if opened.model is not None and (kinds := output_kinds.read(opened.model.metadata_props)):
            theirs, ours = ([spec.name for spec in each.session.outputs] for each in (opened, ref))
            names = comparison.paired(theirs, ours, "outputs")
            return {names[name]: kind for name, kind in kinds.items() if name in names}
    return {}


def _by_position(ref: artifacts.Opened, one: artifacts.Opened) -> Iterator[str]:
    """Yield what was matched by its position alone, where another match was possible."""
    for what, ours, theirs in (
        ("inputs", ref.session.inputs, one.session.inputs),
        ("outputs", ref.session.outputs, one.session.outputs),
    ):
        pairs = comparison.paired([spec.name for spec in ours], [spec.name for spec in theirs], what)
        guessed = [f"'{other}' with '{name}'" for name, other in pairs.items() if name != other]
        if len(guessed) > 1:
            yield f"{what} of other names were matched by position: {', '.join(guessed)}"


def _take_frames(one: artifacts.Opened) -> bool:
    return one.image is not None and one.image.is_frames


def _alike(ref: artifacts.Opened, one: artifacts.Opened) -> tuple[artifacts.Opened, artifacts.Opened]:
    """Return both so that they take the same: where one takes frames, the other's are prepared outside.

    Raises: BadInput where nothing says how.
    """
    if len(ref.session.inputs) != 1 or len(one.session.inputs) != 1 or _take_frames(ref) == _take_frames(one):
        return ref, one
    if _take_frames(one):
        return _fed_frames(ref, one), one
    return ref, _fed_frames(one, ref)


def _fed_frames(floats: artifacts.Opened, frames: artifacts.Opened) -> artifacts.Opened:
    if floats.image is None:
        raise BadInput(
            f"one file takes uint8 frames, and nothing says how they become the input "
            f"'{floats.session.inputs[0].name}' of the other",
            hint="give that file an input spec: se-deploy export FILE --input-size ... --mean ... --std ...",
        )
    return dataclasses.replace(floats, session=FedFrames(floats.session, floats.image), image=frames.image)


def _pictures(measured: Parity, samples: Samples, spec: InputSpec | None) -> Iterator[bytes | None]:
    """Yield the picture of each sample that the two disagree on; none where the data is no pictures."""
    if spec is None:
        return
    for differing in measured.disagreements:
        fed = next(samples.take([differing.sample]).batches(1))
        array = fed.get(spec.name, next(iter(fed.values())))
        yield pictures.thumbnail(array[0], spec)


def to_schema(result: ParityResult, *, with_pictures: bool = False) -> results.Parity:
    """Return what `parity --json` prints; `with_pictures`: and what it was fed where answers differ."""
    return results.Parity(
        tool_version=tool_version(),
        warnings=result.warnings,
        reference=result.reference,
        reference_accuracy=result.reference_accuracy,
        preset=result.preset,
        candidates=tuple(_candidate(one, with_pictures=with_pictures) for one in result.candidates),
        passed=result.passed,
    )


def _candidate(judged: Judged, *, with_pictures: bool) -> results.Candidate:
    where = judged.divergence
    differing = judged.parity.disagreements
    shown = judged.pictures if with_pictures and judged.pictures else (None,) * len(differing)
    return results.Candidate(
        path=judged.path,
        passed=judged.passed,
        preset=judged.tolerance.preset,
        samples=judged.parity.samples,
        accuracy=judged.parity.candidate_accuracy,
        checked_as=judged.checked_as,
        evaluated=judged.evaluated,
        rounding=judged.rounding,
        shapes=judged.shapes,
        failures=judged.failures,
        outputs=tuple(
            _output(output, passed=output.name not in judged.failing) for output in judged.parity.outputs
        ),
        first_divergence=None
        if where is None
        else results.Divergence(
            tensor=where.tensor,
            node=where.node,
            op_type=where.op_type,
            relative_rms=finite(where.relative_rms),
        ),
        disagreements=tuple(
            results.Disagreement(
                sample=one.sample,
                reference=one.reference,
                candidate=one.candidate,
                margin=finite(one.margin),
                picture=None if png is None else f"data:image/png;base64,{base64.b64encode(png).decode()}",
            )
            for one, png in zip(differing, shown, strict=True)
        ),
    )


def _output(output: OutputParity, *, passed: bool) -> results.OutputParity:
    return results.OutputParity(
        name=output.name,
        max_abs=finite(output.max_abs),
        max_rel=finite(output.max_rel),
        cosine=finite(output.cosine),
        sqnr_db=finite(output.sqnr_db),
        top1_agreement=output.top1_agreement,
        kind=output.kind,
        top5_agreement=output.top5_agreement,
        iou=output.iou,
        agreement=output.agreement,
        worst_cosine=finite(output.worst_cosine),
        passed=passed,
    )


def name_of(artifact: str | Path | artifacts.Opened, folder: Path | None) -> str:
    """Return what an artifact is called in results: relative to `folder` where one is given."""
    if isinstance(artifact, artifacts.Opened):
        return artifact.name
    return relative(artifact, folder) if folder and isinstance(artifact, Path) else str(artifact)


def _shapes(sample: Arrays, session: Session, size: int) -> dict[str, tuple[int, ...]]:
    """Return what a candidate is fed in one call, by its own inputs: its frozen batch, else `size`."""
    names = comparison.paired(list(sample), [spec.name for spec in session.inputs], "inputs")
    rows = batching.frozen(session.inputs) or size
    return {names[name]: (rows, *array.shape[1:]) if array.ndim else () for name, array in sample.items()}


def _refuse_unknown(limits: Limits, outputs: Sequence[str]) -> None:
    """Raise BadInput where an error is limited of what is no output of the reference."""
    for name, _ in (*limits.atol, *limits.rtol):
        if name and name not in outputs:
            raise BadInput(
                f"a limit (atol or rtol) names '{name}', which is no output of the reference",
                hint=f"{meant(name, outputs)}the outputs: {', '.join(outputs)}",
            )


def _tolerance(limits: Limits, precision: Precision, output: str) -> Tolerance:
    """Return what one output of a candidate is held to."""
    every = {name: value for name, value in limits.atol if name in {"", output}}
    each = {name: value for name, value in limits.rtol if name in {"", output}}
    return comparison.tolerance(
        limits.preset or precision,
        atol=every.get(output, every.get("")),
        rtol=each.get(output, each.get("")),
        min_cosine=limits.min_cosine,
        min_top1=limits.min_top1,
        min_iou=limits.min_iou,
    )


def _first_image(candidates: Sequence[str | Path], network: NetworkOptions) -> InputSpec | None:
    """Return the input spec of the first candidate that has one: the reference has none."""
    for candidate in candidates:
        if reading.kind_of(candidate) != "network":
            with artifacts.opened(candidate, stand_in=True, network=network) as one:
                if one.image is not None:
                    return one.image
    return None


def _divergence(
    reference: artifacts.Opened,
    candidate: artifacts.Opened,
    samples: Samples,
    size: int,
    tolerance: Tolerance,
) -> comparison.Divergence | None:
    """Find where a candidate leaves the reference; None where one of the two is no graph."""
    known = reference.runs or reference.model
    if known is None or candidate.model is None:
        return None
    feeds: Arrays = next(iter(samples.batches(size)))
    return comparison.first_divergence(
        known,
        candidate.model,
        feeds,
        runtime=registry.graph_runtime(SessionOptions(exact=True)),
        limit=tolerance.divergence,
        evaluated=candidate.runs,
    )


class _Remembered:
    """A reference whose answers are kept while they are small: every candidate gets the same batches."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._answers: list[dict[str, Array]] = []
        self._kept_bytes = self._next = self._size = 0
        self.inputs, self.outputs = session.inputs, session.outputs

    def restart(self, size: int) -> None:
        """Begin again with the first batch, of `size` samples."""
        if size != self._size:
            self._answers, self._kept_bytes, self._size = [], 0, size
        self._next = 0

    def run(self, feeds: Arrays) -> dict[str, Array]:
        if self._next < len(self._answers):
            answer = self._answers[self._next]
        else:
            answer = self._session.run(feeds)
            self._kept_bytes += sum(value.nbytes for value in answer.values())
            if self._kept_bytes <= _REMEMBERED_BYTES and self._next == len(self._answers):
                self._answers.append(answer)
        self._next += 1
        return answer

    def time(self, feeds: Arrays, calls: int) -> FloatArray:
        return self._session.time(feeds, calls)
