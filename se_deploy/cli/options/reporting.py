"""How a command reports, and which of its verdicts are gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from se_deploy.cli.output import Reporter
from se_deploy.cli.parameters import IGNORED, count, group, repeated, switch
from se_deploy.cli.sections import Section

if TYPE_CHECKING:
    from se_deploy.cli.parameters import Given, Part

_require_benefit = switch(
    "--require-benefit", "Exit with 3 where INT8 is not planned to be cheaper than FP16."
)

_verbose = count("-v --verbose", "Print each step on stderr.")
_json = switch("--json as_json", "Print one JSON object on stdout.")
_quiet = switch("-q --quiet", "Print nothing but errors on stderr.")
_strict = switch("--strict", "Treat every warning as an error and every verdict as a gate.")


def reporter(*gates: str, benefit: bool = False) -> Part[Reporter]:
    """Return --json, -v, -q, --strict, and --gate where the command has verdicts to gate on.

    `benefit` adds --require-benefit, the gate on whether INT8 pays.
    """
    gate = repeated("--gate gates", click.Choice(gates), "Exit with 3 where this verdict fails.")

    def make(given: Given) -> Reporter:
        asked = [*(gate.of(given) if gates else ())]
        if benefit and _require_benefit.of(given):
            asked.append("benefit")
        return Reporter(
            as_json=_json.of(given),
            verbose=_verbose.of(given),
            quiet=_quiet.of(given),
            strict=_strict.of(given),
            gates=frozenset("fusion" if name == "fused" else name for name in asked),
            ignored=cast("tuple[str, ...]", given[IGNORED]),
        )

    own = [*([gate] if gates else []), *([_require_benefit] if benefit else [])]
    return group("reporter", make, *own, _json, _verbose, _quiet, _strict, section=Section.REPORTING)
