"""What all tables share: their look, and how numbers and verdicts are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from se_deploy.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence


def megabytes(size: float | None) -> str:
    """Bytes as megabytes (10^6), as plans are compared."""
    return "-" if size is None else f"{size / 1e6:.2f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where it was not measured."""
    return "-" if value is None else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A share as percent."""
    return "-" if value is None else f"{100 * value:.2f} %"


def passed(value: bool | None) -> Text:
    """A verdict in colour; a dash where nothing was judged."""
    if value is None:
        return Text("-")
    return Text("pass", style="green") if value else Text("FAIL", style="bold red")


def titled(title: str, columns: Sequence[str], *, right: Sequence[int] = ()) -> Table:
    """Return an empty table; columns without any name have no header, those at `right` hold numbers."""
    table = Table(
        title=Text(printable(title)),
        title_justify="left",
        header_style="bold",
        pad_edge=False,
        show_header=any(columns),
    )
    for i, column in enumerate(columns):
        table.add_column(Text(printable(column)), justify="right" if i in right else "left", overflow="fold")
    return table


def add(table: Table, *cells: str | Text | None) -> None:
    """Add a row; None is a dash, text from files is escaped, and rich reads no markup in it."""
    table.add_row(
        *(
            Text(printable(cell)) if isinstance(cell, str) else cell
            for cell in ("-" if cell is None else cell for cell in cells)
        )
    )
