"""What a command prints: its result on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import click

from se_deploy.errors import StrictFailure, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table

    from se_deploy.protocols import Progress
    from se_deploy.schema.common import Result
    from se_deploy.verification import Verified

EXIT_ERROR = 1
EXIT_GATE = 3
EXIT_INTERRUPTED = 130

_PIPED_WIDTH = 160  # of a table that goes to a file or another program


@dataclass(frozen=True, slots=True)
class Reporter:
    """How a command reports, as --json, -v, -q, --strict and --gate ask for."""

    as_json: bool = False
    verbose: int = 0
    quiet: bool = False
    strict: bool = False
    gates: frozenset[str] = frozenset()  # verdicts that exit with 3 where they fail
    ignored: tuple[str, ...] = ()  # flags that were typed and have no effect on the command

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show a bar per step on a terminal's stderr; nothing elsewhere, but for -v a line a step.

        Stdout is for the result: what a user's network prints meanwhile goes to stderr.
        """
        with contextlib.redirect_stdout(sys.stderr), self._bars() as report:
            yield report

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Progress]:
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
                    tasks[step] = bars.add_task(printable(step), total=total)
                bars.update(tasks[step], completed=done, total=total)

            yield report

    def finish(
        self,
        payload: Result,
        tables: Sequence[Table],
        *,
        warnings: Sequence[str] = (),
        failed: Sequence[str] = (),
        verdicts: Mapping[str, Sequence[str]] | None = None,
        verified: Verified | None = None,
    ) -> None:
        """Print the result, then the warnings, then end: 3 for a failed gate, an error under --strict.

        `failed`: what fails in any case, in words; `verdicts`: what fails by --gate NAME or --strict;
        `verified`: what was written against what was given.
        """
        in_vain = tuple(f"{flag} has no effect on this command" for flag in self.ignored)
        warnings = [*in_vain, *warnings]
        if self.as_json:
            from msgspec.structs import replace

            from se_deploy.schema import encode

            click.echo(encode(replace(payload, warnings=(*in_vain, *payload.warnings))))
        else:
            show(tables)
        if not self.quiet:
            for warning in warnings:
                click.echo(f"warning: {printable(warning)}", err=True)
        failures = [
            *([] if verified is None else self._unverified(verified)),
            *failed,
            *(text for name, texts in (verdicts or {}).items() if self.judges(name) for text in texts),
        ]
        for text in failures:
            click.echo(f"failed: {printable(text)}", err=True)
        if failures:
            _leave(EXIT_GATE)
        if self.strict and warnings:
            error = StrictFailure(
                f"{len(warnings)} warning(s) under --strict, the first: {warnings[0]}",
                hint="remove the cause of each warning, or leave --strict out",
            )
            if self.as_json:  # the one object was printed; the exit code says the rest
                click.echo(f"error: {printable(error.message)}", err=True)
                _leave(EXIT_ERROR)
            raise error

    def judges(self, verdict: str) -> bool:
        """Whether a verdict decides the exit code, by --gate or --strict."""
        return self.strict or verdict in self.gates

    def _unverified(self, verified: Verified) -> list[str]:
        """Return what `verified` fails on: wrong answers always, the rest by --gate parity or --strict."""
        failures = [
            *verified.wrong,
            *(verified.taken_back if self.strict else ()),
            *(verified.missed if self.judges("parity") else ()),
        ]
        return [failure.text for failure in failures]


def console(*, stderr: bool = False) -> Console:
    """Return a console; tables keep their width when they are piped, and brackets are no markup."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, width=None if stream.isatty() else _PIPED_WIDTH, highlight=False, markup=False
    )


def show(tables: Sequence[Table]) -> None:
    """Print tables on stdout."""
    out = console()
    for table in tables:
        out.print(table)


def _leave(code: int) -> NoReturn:
    raise click.exceptions.Exit(code)


def _silent(step: str, done: int, total: int) -> None:
    """Show nothing."""


def _lines() -> Progress:
    seen: set[str] = set()

    def report(step: str, done: int, total: int) -> None:  # noqa: ARG001 - Progress's signature
        if step not in seen:
            seen.add(step)
            click.echo(f"{printable(step)} ...", err=True)

    return report
