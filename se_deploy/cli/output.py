"""What a command prints: its result on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import click

from se_deploy.cli import progress
from se_deploy.errors import SeDeployError, StrictFailure, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from se_deploy.commands.benefit import Unweighed
    from se_deploy.commands.lowering import Worth
    from se_deploy.protocols import Progress
    from se_deploy.schema.common import Result
    from se_deploy.tables.base import Grid
    from se_deploy.verification import Verified

EXIT_ERROR = 1
EXIT_GATE = 3
EXIT_INTERRUPTED = 130

_PIPED_WIDTH = 120  # of a table that goes to a file or another program, where COLUMNS does not say it


@contextlib.contextmanager
def judging(command: str, junit: Path | None, *, overwrite: bool) -> Iterator[None]:
    """Claim what --junit names; where the block ends with an error, the file says that instead of a verdict.

    An older file would else stand for this run in a CI that keeps it: from the start it says that there is
    no verdict yet, so that a run which is interrupted or killed leaves none.
    """
    if junit is None:
        yield
        return
    said = "it was interrupted, killed, or ended by a fault of the machine or of se-deploy"
    unjudged(
        command,
        junit,
        "Unfinished",
        f"{command} came to no verdict: {said}",
        "run it again",
        overwrite=overwrite,
    )
    try:
        yield
    except SeDeployError as e:
        unjudged(command, junit, e.kind, e.message, e.hint, overwrite=True)
        raise


def unjudged(command: str, junit: Path, kind: str, message: str, hint: str, *, overwrite: bool) -> None:
    """Write into what --junit names that the command gave no verdict. Raises: OutputExists, CannotWrite."""
    from se_deploy import files, report
    from se_deploy.schema.results import ErrorFields

    files.claim(junit, overwrite=overwrite)
    files.write_text(junit, report.junit_error(command, ErrorFields(kind=kind, message=message, hint=hint)))


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
        """Show each step on stderr, unless -q; -v shows the parts of steps too.

        Stdout is for the result: what a user's network prints meanwhile goes to stderr.
        """
        with contextlib.redirect_stdout(sys.stderr):
            if self.quiet:
                from se_deploy.protocols import silent

                yield silent
                return
            with progress.shown(verbose=bool(self.verbose)) as report:
                yield report

    def finish(
        self,
        payload: Result,
        tables: Sequence[Grid | str],
        *,
        warnings: Sequence[str] = (),
        failed: Sequence[str] = (),
        verdicts: Mapping[str, Sequence[str]] | None = None,
        unjudged: Mapping[str, str] | None = None,
        verified: Verified | None = None,
        then: Sequence[str | Path] = (),
    ) -> None:
        """Print the result, then the warnings, then end: 3 for a failed gate, an error under --strict.

        `failed`: what fails in any case, in words; `verdicts`: what fails by --gate NAME or --strict;
        `unjudged`: the verdicts that nobody could give, and why: what --gate NAME asks for is then no pass;
        `verified`: what was written against what was given; `then`: the words of the command
        to type next.
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
            *(
                f"{name} was not judged: {why}"
                for name, why in (unjudged or {}).items()
                if name in self.gates
            ),
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
        if then and not (self.quiet or self.as_json):
            click.echo(f"next: {printable(shlex.join(['se-deploy', *map(str, then)]))}", err=True)

    def judges(self, verdict: str) -> bool:
        """Whether a verdict decides the exit code, by --gate or --strict."""
        return self.strict or verdict in self.gates

    def benefit(self, worth: Worth | Unweighed | None) -> Sequence[str]:
        """Return what fails where INT8 has to pay; that nobody knows fails only where it was asked for."""
        if worth is None or not (worth.known or "benefit" in self.gates):
            return ()
        return worth.failures

    def _unverified(self, verified: Verified) -> list[str]:
        """Return what `verified` fails on: wrong answers always, the rest by --gate parity or --strict."""
        if verified.skipped and "parity" in self.gates:
            return ["parity was not judged: nothing was compared (--no-verify)"]
        failures = [
            *verified.wrong,
            *(verified.taken_back if self.strict else ()),
            *(verified.missed if self.judges("parity") else ()),
        ]
        return [failure.text for failure in failures]


def console() -> Console:
    """Return stdout as a console; brackets are no markup."""
    from rich.console import Console

    told = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(file=sys.stdout, width=None if told else _PIPED_WIDTH, highlight=False, markup=False)


def show(tables: Sequence[Grid | str]) -> None:
    """Print tables, and lines between them, on stdout."""
    from se_deploy.tables.base import print_all

    print_all(tables, console())


def _leave(code: int) -> NoReturn:
    raise click.exceptions.Exit(code)
