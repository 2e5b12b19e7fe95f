"""What every verb that writes a graph owes its user: what it wrote was compared with what it was given.

One comparison where all is right. Where it is not, the guilty step is found and taken back: the simplifier, a
pass of the canonical form, a choice of rewrites. What cannot be taken back is a failure of the command.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import comparison, verification
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.commands.fed_frames import FedFrames
from se_deploy.frontend import simplify
from se_deploy.passes import canonical
from se_deploy.schema import input_spec, output_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import onnx_ir as ir

    from se_deploy.comparison import Divergence
    from se_deploy.data import Samples
    from se_deploy.protocols import Arrays, Runtime, Session
    from se_deploy.schema.input_spec import InputSpec
    from se_deploy.verification import Expected, Failure, Verified

    Truth = Callable[[], AbstractContextManager[Session]]
    """Opens what a graph must equal."""

SIMPLIFY = "simplify"
_DATA_ROWS = 8
"""Samples of the user's own that a check runs: a few show a fault, `parity` measures on all."""


@dataclass(frozen=True, slots=True)
class Checker:
    """The source of a graph and its answers; compares with them what each step makes of it."""

    given: ir.Model  # the graph that the steps start from; names the node where a difference begins
    expected: Expected
    runtime: Runtime

    def verify(
        self,
        model: ir.Model,
        step: str,
        *,
        precision: str = "fp32",
        exact: bool = True,
        evaluated: ir.Model | None = None,
    ) -> Verified:
        """Compare a graph with the source: exactly, or by the preset of a lower precision.

        `evaluated` is run in its place, where ONNX Runtime would not compute its numbers; tensors have the
        same names in both.
        """
        preset = comparison.PRESETS[precision]

        def locate(feeds: Arrays) -> Divergence | None:
            if model is self.given and evaluated is None:
                return None
            return comparison.first_divergence(
                self.given,
                model,
                feeds,
                runtime=self.runtime,
                limit=preset.divergence,
                evaluated=evaluated,
            )

        with self.runtime.open(model if evaluated is None else evaluated) as made:
            return verification.verify(
                self.expected, made, step=step, tolerance=None if exact else preset, locate=locate
            )

    def of_graph(self) -> Checker:
        """Return a checker against the graph's own answers, where those differ from its source's."""
        return dataclasses.replace(
            self,
            expected=verification.expect(
                lambda: self.runtime.open(self.given),
                self.expected.probes,
                found=verification.found_by(self.given),
                kinds=output_kinds.read(self.given.metadata_props),
            ),
        )


def checker(
    given: ir.Model,
    source: Truth | None = None,
    *,
    samples: Samples | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Checker:
    """Choose inputs that `given` accepts and ask its source for the answers; `source` None is itself.

    Raises: UnsupportedGraph where no inputs can be found; BadInput where the file names kinds that its
    outputs cannot be of.
    """
    exact = registry.graph_runtime(SessionOptions(exact=True))
    with exact.open(given) as session:
        probes = verification.choose(
            given,
            session,
            image=input_spec.read(given.metadata_props),
            shapes=shapes,
            data=None if samples is None else next(samples.batches(min(_DATA_ROWS, samples.count))),
            seed=seed,
        )
    expected = verification.expect(
        source or (lambda: exact.open(given)),
        probes,
        found=verification.found_by(given),
        kinds=output_kinds.read(given.metadata_props),
    )
    return Checker(given, expected, exact)


def of_session(session: Session) -> Truth:
    """Return a source that is open already."""
    return lambda: contextlib.nullcontext(session)


def of_graph(model: ir.Model) -> Truth:
    """Return a graph, run node by node, as a source."""
    return lambda: registry.graph_runtime(SessionOptions(exact=True)).open(model)


def fed_frames(source: Truth, spec: InputSpec) -> Truth:
    """Return a source of prepared images as one of frames, which `spec` prepares outside of it."""

    @contextlib.contextmanager
    def opened() -> Iterator[Session]:
        with source() as session:
            yield FedFrames(session, spec)

    return opened


@dataclass(frozen=True, slots=True)
class Form:
    """A graph in canonical form, and the verdict on the way there."""

    model: ir.Model
    counts: tuple[tuple[str, int], ...]
    verified: Verified
    checker: Checker | None  # for the steps that follow; None where nothing is to be compared
    warnings: tuple[str, ...]


def canonical_form(given: ir.Model, check: Checker | None, *, simplified: bool = False) -> Form:
    """Simplify where asked and canonicalize, without the steps that change the answers."""
    small = simplify.simplify(given) if simplified else None
    passes = {f"canonical form: {p.__name__}": p for p in canonical.PASSES}
    steps: tuple[str, ...] = (*([SIMPLIFY] if small else []), *passes)

    def built(names: Sequence[str]) -> canonical.Canonical:
        start = small.model if small is not None and SIMPLIFY in names else given
        return canonical.canonicalize(start, [passes[name] for name in names if name in passes])

    made = built(steps)
    verdict = verification.skipped()
    if check is not None:
        unsteady = verification.Verified(failures=check.expected.unsteady)
        verdict = check.verify(made.model, "canonical form").joined(unsteady)
        if not verdict.passed and unsteady.passed:  # else no step is to blame
            at_once = check.verify(given, "export")
            if not at_once.passed:
                check = check.of_graph()
            found = verification.keep_right(steps, _faults(check, built))
            made = built(found.kept)
            verdict = dataclasses.replace(
                at_once.joined(check.verify(made.model, "canonical form")), taken_back=found.faults
            )
    notes = [] if small is None else list(small.warnings)
    notes += [f"SE block '{no.output}' is not in canonical form: {no.reason}" for no in made.refused]
    notes += [f"{no.op_type} '{no.node}' was not folded: {no.reason}" for no in made.unfolded]
    return Form(made.model, made.counts, verdict, check, tuple(notes))


def _faults(
    check: Checker, built: Callable[[Sequence[str]], canonical.Canonical]
) -> Callable[[Sequence[str]], Sequence[Failure]]:
    """Judge the graph that some steps make; a fault is put down to the last of them."""
    return lambda names: check.verify(built(names).model, names[-1]).failures
