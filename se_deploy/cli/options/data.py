"""Which samples are read, and the seed of what is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli.parameters import defaulted, group, optional, switch
from se_deploy.cli.sections import Section
from se_deploy.options import SampleOptions

if TYPE_CHECKING:
    from se_deploy.cli.parameters import Given

seed = defaulted("--seed", click.INT, 0, "Seed of everything random.", section=Section.DATA)
samples = optional(
    "--samples", click.IntRange(min=1), "Largest number of samples to use.", section=Section.DATA
)
skip_unreadable = switch(
    "--skip-unreadable", "Count unreadable files in a warning instead of failing.", section=Section.DATA
)


def _sampled(given: Given) -> SampleOptions:
    return SampleOptions(samples.of(given), skip_unreadable.of(given), seed.of(given))


sampled = group("samples", _sampled, samples, skip_unreadable, seed, section=Section.DATA)
