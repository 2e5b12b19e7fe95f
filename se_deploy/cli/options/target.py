"""Precision, the runtime and device to serve, and the exact rewrites for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli.options.network import opt_shapes, tuned
from se_deploy.cli.parameters import defaulted, group, optional, repeated, switch
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE, NumberRange, RewriteNames, RuntimeName, TargetName
from se_deploy.options import PRECISIONS, SEARCH_PLANS, RewriteOptions, TargetOptions

if TYPE_CHECKING:
    from se_deploy.cli.parameters import Given
    from se_deploy.options import Precision

_precision = optional("--precision", click.Choice(PRECISIONS), "Precision of weights and activations.")
_fp16 = switch("--fp16", "Short for --precision fp16.")
_bf16 = switch("--bf16", "Short for --precision bf16: as fast as FP16, without its overflow, less exact.")
_int8 = switch("--int8", "Short for --precision int8.")


def _chosen(given: Given) -> Precision | None:
    """Join --precision with its short forms. Raises: click.UsageError where they contradict."""
    asked: dict[Precision, str] = {}
    if (named := _precision.of(given)) is not None:
        asked[named] = f"--precision {named}"
    if _fp16.of(given):
        asked.setdefault("fp16", "--fp16")
    if _bf16.of(given):
        asked.setdefault("bf16", "--bf16")
    if _int8.of(given):
        asked.setdefault("int8", "--int8")
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(asked.values())} contradict each other")
    return next(iter(asked), None)


precision = group("precision", _chosen, _precision, _fp16, _bf16, _int8, section=Section.PRECISION)

_runtime = defaulted("--runtime", RuntimeName(), "auto", "Runtime to serve.")
_targets = repeated(
    "--target targets",
    TargetName(),
    "Compute capability (sm86) or device (orin-nano) to build for; repeatable.",
)


_rewrites = optional("--rewrites", RewriteNames(), "Apply these exact rewrites only, unmeasured ones too.")
_no_rewrites = switch("--no-rewrites", "Leave the canonical form as it is.")
_search_plans = defaulted(
    "--search-plans",
    click.IntRange(min=0),
    SEARCH_PLANS,
    "Plans that the search for the cheapest form may ask for.",
)
_replay = optional("--replay", IN_FILE, "Apply the choices that an earlier search saved.")
_search_seconds = optional("--search-seconds", NumberRange(min=0), "End the search early.")


def _rewriting(given: Given) -> RewriteOptions:
    asked = {
        "--no-rewrites": _no_rewrites.of(given),
        "--rewrites": _rewrites.of(given),
        "--replay": _replay.of(given),
    }
    named = [flag for flag, value in asked.items() if value]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} contradict each other")
    names = _rewrites.of(given)
    if names:
        from se_deploy.passes import rewrites

        rewrites.check(names)
    return RewriteOptions(
        names=() if _no_rewrites.of(given) else names,
        search_plans=_search_plans.of(given),
        search_seconds=_search_seconds.of(given),
        replay=_replay.of(given),
    )


def _planned(given: Given, rewrites: RewriteOptions | None = None) -> TargetOptions:
    sizes = tuned(given)
    return TargetOptions(_runtime.of(given), _targets.of(given), rewrites or RewriteOptions(), sizes)


target = group("target", _planned, _runtime, _targets, opt_shapes, section=Section.TARGET)

rewritten_target = group(
    "target",
    lambda given: TargetOptions(_runtime.of(given), _targets.of(given), _rewriting(given)),
    _runtime,
    _targets,
    _rewrites,
    _no_rewrites,
    _search_plans,
    _replay,
    _search_seconds,
    section=Section.TARGET,
)
"""Of a command that rewrites the graph for the target."""

exported_target = group(
    "target",
    lambda given: _planned(given, _rewriting(given)),
    _runtime,
    _targets,
    opt_shapes,
    _rewrites,
    _no_rewrites,
    _search_plans,
    _replay,
    _search_seconds,
    section=Section.TARGET,
)
"""The same for a network whose sizes may be free."""
