"""What `predict`, `bundle` and `check` found, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from se_deploy.cli.render import passed, percent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from se_deploy.schema.results import Bundle, Predict


def predicted(result: Predict) -> Table:
    """Draw a row per image and class, the image named once."""
    table = _titled(f"{result.artifact} in {result.runtime}")
    for column in ("image", "class", "label"):
        table.add_column(column, overflow="fold")
    table.add_column("probability", justify="right")
    for prediction in result.predictions:
        for rank, guess in enumerate(prediction.top):
            table.add_row(
                _plain(prediction.image if rank == 0 else ""), str(guess.index),
                _plain(guess.label or "-"), percent(guess.probability),
            )  # fmt: skip
        if len(prediction.top) > 1:
            table.add_section()
    return table


def bundled(result: Bundle) -> Table:
    """Draw the files of a bundle."""
    table = _titled(f"{len(result.files)} files in {result.folder}")
    table.add_column("file", overflow="fold")
    for name in result.files:
        table.add_row(_plain(name))
    return table


def checked(result: Mapping[str, Any]) -> Table:
    """Draw a row per gate and file: what was measured, or why it failed."""
    table = _titled(f"Gates of {result['config']}")
    for column in ("gate", "file", "", "found"):
        table.add_column(column, overflow="fold")
    for gate in result["gates"]:
        found = _plain("\n".join(gate["details"]))
        table.add_row(gate["gate"], _plain(gate["name"]), passed(gate["passed"]), found)
    return table


def _titled(title: str) -> Table:
    return Table(title=_plain(title), title_justify="left", header_style="bold", pad_edge=False)


def _plain(text: str) -> Text:
    """Keep a name as it is: rich would read `[x]` in it as markup."""
    return Text(text)
