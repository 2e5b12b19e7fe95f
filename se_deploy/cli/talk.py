"""How a command speaks: data on stdout, talk on stderr, a bar while it works, and its last word."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from se_deploy.cli.main import EXIT_GATE
from se_deploy.errors import StrictFailure, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from msgspec import Struct
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.progress import TaskID
    from rich.text import Text

    from se_deploy.protocols import Progress


@dataclass(frozen=True, slots=True)
class Talk:
    """What --json, -v, -q and --strict ask for."""

    as_json: bool = False
    verbose: int = 0
    quiet: bool = False
    strict: bool = False

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show a bar per step on a terminal's stderr; nothing elsewhere, but for -v a line a step."""
        if self.quiet or not (sys.stderr.isatty() or self.verbose):
            yield _silent
            return
        if not sys.stderr.isatty():
            yield _lines()
            return
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=console(stderr=True), transient=True) as bars:
            tasks: dict[str, TaskID] = {}

            def report(step: str, done: int, total: int) -> None:
                if step not in tasks:
                    tasks[step] = bars.add_task(step, total=total)
                bars.update(tasks[step], completed=done, total=total)

            yield report

    def finish(
        self,
        payload: Mapping[str, Any] | Struct,
        *,
        warnings: Sequence[str] = (),
        table: object = None,
        failed: Sequence[str] = (),
    ) -> None:
        """Print the result, then the warnings, then end: 3 for a failed gate, an error under --strict.

        `failed` says which gates failed, in words.
        """
        if self.as_json:
            from se_deploy.schema import encode

            click.echo(encode(payload))
        elif table is not None:
            show(table)
        if not self.quiet:
            for warning in warnings:
                click.echo(printable(f"warning: {warning}"), err=True)
        for text in failed:
            click.echo(printable(f"failed: {text}"), err=True)
        if failed:
            _leave(EXIT_GATE)
        if self.strict and warnings:
            error = StrictFailure(
                f"{len(warnings)} warning(s) under --strict, the first: {warnings[0]}",
                hint="mend what it says, or leave --strict out",
            )
            if self.as_json:  # the one object was printed; the exit code says the rest
                click.echo(printable(f"error: {error.message}"), err=True)
                _leave(1)
            raise error


def of(params: Mapping[str, Any]) -> Talk:
    """Take the talk options out of a command's arguments."""
    return Talk(params["as_json"], params["verbose"], params["quiet"], params["strict"])


def console(*, stderr: bool = False) -> Console:
    """Return a console; tables keep their width when piped, brackets are no markup, controls are escaped."""
    from rich.console import Console
    from rich.segment import Segment

    class Escaping(Console):
        """Escapes texts before they are measured, so that columns stay in line."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text), style, control)

    stream = sys.stderr if stderr else sys.stdout
    return Escaping(stderr=stderr, width=None if stream.isatty() else 160, highlight=False, markup=False)


def show(table: object) -> None:
    """Print a table, or several, on stdout."""
    out = console()
    for one in table if isinstance(table, (list, tuple)) else (table,):
        out.print(one)


def _leave(code: int) -> NoReturn:
    raise click.exceptions.Exit(code)


def _silent(step: str, done: int, total: int) -> None:
    """Show nothing."""


def _lines() -> Progress:
    seen: set[str] = set()

    def report(step: str, done: int, total: int) -> None:  # noqa: ARG001 - Progress's signature
        if step not in seen:
            seen.add(step)
            click.echo(printable(f"{step} ..."), err=True)

    return report
