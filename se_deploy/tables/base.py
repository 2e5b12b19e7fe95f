"""What all tables share: their look, how they fit a terminal, and how numbers and verdicts are written."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from se_deploy.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

PLAIN_FROM, PLAIN_BELOW = 1e-4, 1e9
"""Between these a number is written without an exponent."""


@dataclass
class Grid:
    """A table before it is known how wide the terminal is."""

    title: str
    columns: tuple[str, ...]
    right: frozenset[int] = frozenset()  # columns of numbers
    spare: tuple[int, ...] = ()  # columns that may be left out, the first of them first
    caption: str = ""
    rows: list[tuple[Text, ...]] = field(default_factory=list)
    ends: set[int] = field(default_factory=set)  # how many rows there were when a section ended

    def add(self, *cells: str | Text | None) -> None:
        """Add a row; None is a dash, text from files is escaped, and rich reads no markup in it."""
        given = ("-" if cell is None else cell for cell in cells)
        self.rows.append(tuple(Text(printable(cell)) if isinstance(cell, str) else cell for cell in given))

    def add_section(self) -> None:
        """End a group of rows."""
        self.ends.add(len(self.rows))

    def fitted(self, console: Console) -> Table:
        """Return the table for this console: spare columns are left out until it fits."""
        left_out: set[int] = set()
        waiting = list(self.spare)
        while True:
            table = self._drawn(left_out)
            natural = Measurement.get(console, console.options.update(width=10_000), table).maximum
            if natural <= console.width or not waiting:
                if left_out:
                    table.caption = Text("\n".join(filter(None, (self.caption, self._said(left_out)))))
                return table
            left_out.add(waiting.pop(0))

    def html(self) -> str:
        """Return the table as HTML with all of its columns, every text escaped."""
        heads = "".join(f"<th>{html.escape(printable(name))}</th>" for name in self.columns)
        lines = [f"<caption>{html.escape(printable(self.title))}</caption>"]
        lines += [f"<thead><tr>{heads}</tr></thead>"] if any(self.columns) else []
        for row in self.rows:
            sides = ("right" if i in self.right else "left" for i in range(len(row)))
            cells = (
                f'<td style="text-align: {side}">{html.escape(cell.plain)}</td>'
                for side, cell in zip(sides, row, strict=True)
            )
            lines.append(f"<tr>{''.join(cells)}</tr>")
        below = f"<p>{html.escape(printable(self.caption))}</p>" if self.caption else ""
        return f"<table>{''.join(lines)}</table>{below}"

    def _said(self, left_out: set[int]) -> str:
        names = ", ".join(self.columns[i] for i in sorted(left_out))
        return f"not shown for want of width: {names} (--json has all)"

    def _drawn(self, left_out: set[int]) -> Table:
        table = Table(
            title=Text(printable(self.title), style="bold"),
            title_justify="left",
            caption=Text(printable(self.caption)) if self.caption else None,
            caption_justify="left",
            header_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_header=any(self.columns),
        )
        kept = [i for i in range(len(self.columns)) if i not in left_out]
        for i in kept:
            name = Text(printable(self.columns[i]))
            table.add_column(name, justify="right" if i in self.right else "left", overflow="fold")
        for n, row in enumerate(self.rows, 1):
            table.add_row(*(row[i] for i in kept), end_section=n in self.ends)
        return table


def megabytes(size: float | None) -> str:
    """Bytes as megabytes (10^6), as plans are compared."""
    return "-" if size is None else f"{size / 1e6:.2f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number of so many digits, or a dash where it was not measured; whole digits are never cut."""
    if value is None:
        return "-"
    size = abs(value)
    if not math.isfinite(value) or (size and not PLAIN_FROM <= size < PLAIN_BELOW):
        return f"{value:.{digits}g}"
    decimals = digits - 1 - (math.floor(math.log10(size)) if size else 0)
    text = f"{value:,.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(value: float | None) -> str:
    """A share as percent."""
    return "-" if value is None else f"{100 * value:.2f} %"


def passed(value: bool | None) -> Text:
    """A verdict in colour; a dash where nothing was judged."""
    if value is None:
        return Text("-")
    return Text("pass", style="green") if value else Text("FAIL", style="bold red")


def titled(
    title: str, columns: Sequence[str], *, right: Sequence[int] = (), spare: Sequence[int] = ()
) -> Grid:
    """Return an empty table; columns without any name have no header, those at `right` hold numbers.

    `spare`: columns that are left out where the terminal is too narrow, the first of them first.
    """
    return Grid(title, tuple(columns), frozenset(right), tuple(spare))


def add(table: Grid, *cells: str | Text | None) -> None:
    """Add a row to a table."""
    table.add(*cells)


def print_all(tables: Sequence[Grid | str], out: Console) -> None:
    """Print tables, each fitted to the console, and the lines between them."""
    for i, table in enumerate(tables):
        if isinstance(table, str):
            out.print(printable(table))
            continue
        if i:
            out.print()
        out.print(table.fitted(out))
