"""The one place where text becomes markup: templates of this package, every value escaped."""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from se_deploy.errors import printable
from se_deploy.report import units

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONG_TABLE = 20  # rows from which a table starts folded


@dataclass(frozen=True, slots=True)
class _Script:
    """The pages' own script, and the hash by which their security policy lets it alone run."""

    text: Markup
    hash: str


def render(template: str, shown: Mapping[str, object]) -> str:
    """Fill a template; a name that it reads and `shown` lacks is a defect and raises."""
    return _environment().get_template(template).render(shown)


def _shown(value: object) -> object:
    """Escape control characters of what is still text: names in files are other people's."""
    return printable(value) if type(value) is str else value


def _page_script() -> _Script:
    text = (resources.files("se_deploy.report") / "templates" / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return _Script(Markup(text), f"sha256-{digest}")  # noqa: S704 - a file of this package


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
        "counted": units.count,
        "formats": units.FILTERS,
        "long_table": _LONG_TABLE,
        "page_script": _page_script(),
    }
    return made
