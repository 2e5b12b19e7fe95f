"""The sections of `--help`: flags that belong together stand together, and what matters most comes first.

A flag names its section where it is made (`section=`), or takes that of the group that it is put into. A
command with many flags names the few that come first: `--help` explains those and names the others by
section, and `--help-all` explains every one.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import click

from se_deploy.cli.types import Listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HELP_WIDTH = 100
"""Columns that help may take where the terminal has them; click alone stops at 80."""

_STIFF = "\N{NON-BREAKING HYPHEN}"
"""Stands for a hyphen while click breaks lines, which would break names and flags at theirs."""

_ALL = "se_deploy.help_all"  # in the context's meta: whether --help-all was typed


class Section(Enum):
    """What a flag is about, in the order in which help shows it."""

    OUTPUT = "What is written"
    NETWORK = "Network and weights"
    INPUT = "Inputs and their sizes"
    IMAGE = "Images"
    PRECISION = "Precision"
    TARGET = "Target and exact rewrites"
    ENGINE = "Engine"
    DATA = "Data"
    CALIBRATION = "INT8 and its calibration"
    LIMITS = "Tolerances"
    TIMING = "Timing"
    DEVICE = "On another machine"
    CLUSTER = "On a cluster"
    HOST = "This machine"
    REPORTING = "Messages and exit code"


def help_all() -> click.Option:
    """Return the flag that explains every flag of its command."""

    def show(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ctx.meta[_ALL] = True
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()

    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Explain every option and end.",
    )


def write(
    ctx: click.Context,
    formatter: click.HelpFormatter,
    options: Sequence[click.Option],
    sections: Mapping[str, Section],
    first: Sequence[str],
) -> None:
    """Write the options of a command by section.

    `sections`: by the option's own name; options without one come last, under "Help". `first`: flags as they
    are typed that come first; where there are any, only --help-all explains the others.
    """
    everything = ctx.meta.get(_ALL, False)
    shown = [option for option in options if not option.hidden]
    by_flag = {flag: option for option in shown for flag in (*option.opts, *option.secondary_opts)}
    leading = [by_flag[flag] for flag in first]
    rest = [option for option in shown if option not in leading]
    if leading:
        with formatter.section("Options" if everything else "Options that matter most"):
            formatter.write_dl([_record(option, ctx, heavy=everything) for option in leading])
    groups = {section: [o for o in rest if sections.get(o.name or "") is section] for section in Section}
    closing = [option for option in rest if option.name not in sections]
    if everything or not leading:
        for section, members in groups.items():
            if members:
                with formatter.section(section.value):
                    formatter.write_dl([_record(option, ctx, heavy=everything) for option in members])
        with formatter.section("Help"):
            formatter.write_dl([_record(option, ctx, heavy=everything) for option in closing])
    else:
        with formatter.section("More, which --help-all explains"):
            rows = [(s.value, " ".join(map(_longest, members))) for s, members in groups.items() if members]
            formatter.write_dl([*rows, ("Help", " ".join(map(_longest, closing)))])
    formatter.buffer[:] = [text.replace(_STIFF, "-") for text in formatter.buffer]


def _record(option: click.Option, ctx: click.Context, *, heavy: bool) -> tuple[str, str]:
    """Return an option as it is typed, and its text; `heavy`: also choices that take an import to know."""
    spec, text = option.get_help_record(ctx) or ("", "")
    if isinstance(option.type, Listed) and (heavy or not option.type.heavy):
        text = f"{text}  [{', '.join(option.type.listed()).replace('-', _STIFF)}]"
    return spec, text


def _longest(option: click.Option) -> str:
    flags = "/".join(max(flags, key=len) for flags in (option.opts, option.secondary_opts) if flags)
    return flags.replace("-", _STIFF)
