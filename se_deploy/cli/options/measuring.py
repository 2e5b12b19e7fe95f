"""How outputs are compared, and how long a file is timed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from se_deploy.cli.options.network import opt_shapes, tuned
from se_deploy.cli.parameters import defaulted, group, optional, repeated
from se_deploy.cli.sections import Section
from se_deploy.cli.types import KindOfOutput, Limit, Number, NumberRange
from se_deploy.options import OUTPUT_KINDS, PRECISIONS, RUN_DURATION_S, Limits, TimingOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from se_deploy.cli.parameters import Given
    from se_deploy.schema.common import OutputKind

_KINDS = f"What an output is, where the guess is wrong: one of {', '.join(OUTPUT_KINDS)}."
_output_kinds = repeated("--output", KindOfOutput(), _KINDS, section=Section.LIMITS)
kinds = group("kinds", lambda given: by_name(_output_kinds.of(given)), _output_kinds)


def by_name(typed: Iterable[tuple[str, OutputKind]]) -> dict[str, OutputKind]:
    """Return the kinds of outputs by name. Raises: click.UsageError where one has two."""
    found: dict[str, OutputKind] = {}
    for name, kind in typed:
        if found.setdefault(name, kind) != kind:
            raise click.UsageError(f"--output takes '{name}' as {found[name]} and as {kind}")
    return found


_warmup_ms = defaulted("--warmup-ms", NumberRange(min=0), 200.0, "Untimed calls before the timed ones.")
_duration_s = defaulted("--duration-s", NumberRange(min=0), 3.0, "Seconds to time, at least.")
_run_duration_s = defaulted(
    "--duration-s", NumberRange(min=0), RUN_DURATION_S, "Seconds to time each artifact, at least."
)
_iterations = defaulted("--iterations", click.IntRange(min=1), 10, "Calls to time, at least.")


def _timing(given: Given) -> TimingOptions:
    """Return what the three flags say; `--duration-s` is the same flag wherever its default is from."""
    return TimingOptions(_warmup_ms.of(given), _duration_s.of(given), _iterations.of(given))


run_timing = group("timing", _timing, _warmup_ms, _run_duration_s, _iterations, section=Section.TIMING)
"""Of a command that times all of its artifacts besides much else."""

sized_timing = group(
    "timing",
    lambda given: dataclasses.replace(_timing(given), sizes=tuned(given)),
    opt_shapes,
    _warmup_ms,
    _duration_s,
    _iterations,
    section=Section.TIMING,
)
"""Of a command that times files whose sizes may be free."""

_preset = optional("--preset", click.Choice(PRECISIONS), "Tolerances by precision.")
_atol = repeated("--atol", Limit(), "Largest absolute error.")
_rtol = repeated("--rtol", Limit(), "Largest error over the output's range.")
_min_cosine = optional("--min-cosine", Number(), "Smallest cosine between outputs.")
_min_top1 = optional("--min-top1", Number(), "Smallest share of equal answers, between 0 and 1.")
_min_iou = optional("--min-iou", Number(), "Smallest IoU of masks and of boxes, between 0 and 1.")


def _limits(given: Given) -> Limits:
    return Limits(
        preset=_preset.of(given),
        atol=_atol.of(given),
        rtol=_rtol.of(given),
        min_cosine=_min_cosine.of(given),
        min_top1=_min_top1.of(given),
        min_iou=_min_iou.of(given),
    )


limits = group(
    "limits", _limits, _preset, _atol, _rtol, _min_cosine, _min_top1, _min_iou, section=Section.LIMITS
)
