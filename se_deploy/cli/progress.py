"""What a long command shows while it works, on stderr: a line for each step that is done, and what runs.

On a terminal the running step is a bar. Elsewhere, in a pipe or in CI, a step that takes long says so every
ten seconds: a log that stands still looks like a command that hangs.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import click

from se_deploy.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from se_deploy.protocols import Progress

SILENCE_S = 8.0
"""After how long a log that stands still says what runs: before ten seconds, also on a busy machine."""

_NAME_WIDTH = 26  # of a step's name, so that times stand below each other
_TERMINAL_WIDTH = 80
_MINUTE_S = 60


@dataclass
class Step:
    """A step that has begun and is not done."""

    name: str
    began: float  # seconds of time.monotonic
    done: int
    total: int
    note: str = ""  # what it found so far

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.began


class Display(Protocol):
    """How steps are shown."""

    def begun(self, step: Step, depth: int) -> None:
        """A step begins; `depth`: how many others it is part of."""

    def running(self, steps: list[Step], overall: tuple[int, int] | None) -> None:
        """What runs, the outermost first; `overall`: the steps of the command that are done, and all."""

    def ended(self, step: Step, depth: int, found: str) -> None:
        """A step is done, and what it found."""


class Steps:
    """Makes steps out of what verbs report; what begins while another runs is part of that one."""

    def __init__(self, display: Display) -> None:
        """Show what is reported on `display`."""
        from se_deploy.protocols import OVERALL  # numpy comes with it, which --help must not import

        self.counter = OVERALL
        self.display = display
        self.open: list[Step] = []
        self.overall: tuple[int, int] | None = None
        self._lock = threading.RLock()  # calibration reports from its threads

    def __call__(self, step: str, done: int, total: int, found: str = "") -> None:
        """As `Progress`."""
        with self._lock:
            if step == self.counter:
                self.overall = (done, total)
                return
            names = [one.name for one in self.open]
            if step not in names:
                self.open.append(Step(step, time.monotonic(), done, total))
                self.display.begun(self.open[-1], len(self.open) - 1)
            else:
                while self.open[-1].name != step:
                    self._end("")
                self.open[-1].done, self.open[-1].total = done, total
            self.open[-1].note = found
            if done >= total:
                self._end(found)
            self.display.running(self.open, self.overall)

    def _end(self, found: str) -> None:
        step = self.open.pop()
        self.display.ended(step, len(self.open), found)


@contextlib.contextmanager
def shown(*, verbose: bool) -> Iterator[Progress]:
    """Show steps on stderr, in bars on a terminal and in lines elsewhere; `verbose`: parts of steps too."""
    if sys.stderr.isatty():
        with _bars(verbose=verbose) as steps:
            yield steps
    else:
        lines = _Lines(verbose=verbose)
        steps = Steps(lines)
        with _heartbeat(steps, lines):
            yield steps


def duration(seconds: float) -> str:
    """Write a duration: 0.4 s, 12 s, 3 min 20 s."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004 - two digits say enough
    minutes, rest = divmod(round(seconds), _MINUTE_S)
    return f"{minutes} min {rest} s"


def line(step: Step, found: str) -> str:
    """Return the line of a step that is done."""
    return f"{printable(step.name):<{_NAME_WIDTH}}{duration(step.seconds):>10}  {printable(found)}".rstrip()


class _Lines:
    """A line for each step, when it is done; with `verbose` when it begins, and for its parts too."""

    def __init__(self, *, verbose: bool) -> None:
        self.verbose = verbose
        self.stream = sys.stderr  # as it is now: an exporter's own talk is redirected while it works
        self.last = time.monotonic()  # when something was said

    def say(self, text: str) -> None:
        self.last = time.monotonic()
        click.echo(text, file=self.stream)

    def begun(self, step: Step, depth: int) -> None:
        if self.verbose:
            self.say(f"{'  ' * depth}{printable(step.name)} ...")

    def running(self, steps: list[Step], overall: tuple[int, int] | None) -> None:
        """Say nothing: the heartbeat does."""

    def ended(self, step: Step, depth: int, found: str) -> None:
        if not depth or self.verbose:
            self.say(f"{'  ' * depth}{line(step, found)}")


@contextlib.contextmanager
def _heartbeat(steps: Steps, lines: _Lines) -> Iterator[None]:
    """Say what runs whenever nothing was said for SILENCE_S."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(min(1.0, SILENCE_S / 4)):
            running = list(steps.open)
            if running and time.monotonic() - lines.last >= SILENCE_S:
                lines.say(f"{where(running)} ... {duration(running[0].seconds)}")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def where(steps: list[Step]) -> str:
    """Return what runs, the outermost step first, with the count of the innermost."""
    inner = steps[-1]
    count = f" {inner.done}/{inner.total}" if inner.total > 1 else ""
    note = f" ({inner.note})" if inner.note else ""
    return printable(": ".join(step.name for step in steps) + count + note)


@contextlib.contextmanager
def _bars(*, verbose: bool) -> Iterator[Steps]:
    """Show the running step as a bar below the lines of those that are done."""
    from rich import progress
    from rich.console import Console

    console = Console(file=sys.stderr, highlight=False, markup=False)
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(16),
        progress.TimeElapsedColumn(),
    )
    room = min(console.width, _TERMINAL_WIDTH) - 16 - len("0:00:00") - 3  # for the description
    with progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", visible=False)

        class Bars:
            """The display of a terminal."""

            def begun(self, step: Step, depth: int) -> None:  # noqa: ARG002 - Display's signature
                if not depth:
                    bars.reset(task)

            def running(self, steps: list[Step], overall: tuple[int, int] | None) -> None:
                if not steps:
                    bars.update(task, visible=False)
                    return
                outer = steps[0]
                inner = steps[-1]
                counted = f"[{overall[0]}/{overall[1]}] " if overall else ""
                bars.update(
                    task, visible=True, description=(counted + where(steps))[:room],
                    completed=inner.done if inner.total > 1 else outer.done,
                    total=inner.total if inner.total > 1 else None,  # None: a bar that moves, with no end
                )  # fmt: skip

            def ended(self, step: Step, depth: int, found: str) -> None:
                if not depth or verbose:
                    bars.update(task, completed=step.total, total=step.total)
                    console.print(f"{'  ' * depth}{line(step, found)}", soft_wrap=True)

        yield Steps(Bars())
