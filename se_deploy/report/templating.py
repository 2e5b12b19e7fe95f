"""The one place where text becomes markup: templates of this package, every value escaped."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from se_deploy.errors import printable
from se_deploy.report import units

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONG_TABLE = 20  # rows from which a table starts folded


def render(template: str, shown: Mapping[str, object]) -> str:
    """Fill a template; a name that it reads and `shown` lacks is a defect and raises."""
    return _environment().get_template(template).render(shown)


def _shown(value: object) -> object:
    """Escape control characters of what is still text: names in files are other people's."""
    return printable(value) if type(value) is str else value


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("se_deploy.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= units.FILTERS
    made.filters["agreements"] = lambda output: ", ".join(units.agreements(output))
    made.globals |= {
        "change": units.change,
        "formats": units.FILTERS,
        "long_table": _LONG_TABLE,
    }
    return made
