"""Where `quantize` and `build-engine` start from: an FP32 graph and samples of it, in canonical form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.commands import sampling, verifying
from se_deploy.errors import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.commands.reading import Converted
    from se_deploy.commands.verifying import Form
    from se_deploy.data import Samples
    from se_deploy.options import CalibrationOptions
    from se_deploy.protocols import Progress


@dataclass(frozen=True, slots=True)
class Start:
    """A graph as it was read, the user's samples of its inputs, and its canonical form with the verdict."""

    read: Converted
    samples: Samples | None  # None where nobody asked for any
    form: Form


def start(
    read: Converted,
    calibration: CalibrationOptions,
    *,
    sampled: bool,
    sizes: Mapping[str, Sequence[int]],
    verify: bool,
    progress: Progress,
) -> Start:
    """Read the samples where `sampled`, and bring a graph into canonical form, compared with what it was.

    `sizes` of inputs are those that it is compared at too. Raises: BadData; UnsupportedGraph where no inputs
    can be found to compare on.
    """
    given = read.model
    samples = sampling.calibration_samples(given, calibration) if sampled else None
    check = None
    if verify:
        check = verifying.checker(given, read.truth, samples=samples, shapes=sizes, seed=calibration.seed)
    progress("canonical form", 0, 1)
    form = verifying.canonical_form(given, check)
    nodes = form.model.graph.num_nodes()
    progress("canonical form", 1, 1, f"{counted(nodes, 'node')}, {form.verified.summary}")
    return Start(read, samples, form)
