"""Results that show themselves: `print(result)` and a notebook show what the command line prints."""

from __future__ import annotations

import html
import io
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from se_deploy.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.tables.base import Grid

_WIDTH = 120  # characters of a printed table, as where a command's output is piped


class Shown(ABC):
    """What has tables: it prints as them, and has a name of one line."""

    __slots__ = ()

    @abstractmethod
    def tables(self) -> Sequence[Grid | str]:
        """Return what the command line prints of this result: tables, and lines between them."""

    def __str__(self) -> str:
        """Return the tables as text."""
        from rich.console import Console  # noqa: PLC0415 - rich where something is shown

        from se_deploy.tables.base import print_all  # noqa: PLC0415 - as above

        out = Console(file=io.StringIO(), width=_WIDTH, highlight=False, markup=False)
        print_all(self.tables(), out)
        written = out.file
        return written.getvalue().rstrip("\n") if isinstance(written, io.StringIO) else ""

    def __repr__(self) -> str:
        """Return what it is, in one line."""
        first = next(iter(self.tables()))
        words = first if isinstance(first, str) else first.title
        return f"<{type(self).__name__}: {printable(words)}>"

    def _repr_html_(self) -> str:
        return "\n".join(
            f"<p>{html.escape(printable(table))}</p>" if isinstance(table, str) else table.html()
            for table in self.tables()
        )
