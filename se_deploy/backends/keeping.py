"""Helper processes that are worth keeping while a command runs: a compiler takes seconds to start."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Process(Protocol):
    """What can be kept."""

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        ...

    def end(self) -> None:
        """End it; nothing happens where it has ended."""
        ...


P = TypeVar("P", bound=Process)
_idle: dict[str, list[Process]] = {}
_scopes = 0


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep what is given back until the outermost such scope is left; outside of any, it ends at once."""
    global _scopes  # noqa: PLW0603 - one count for all of this process
    _scopes += 1
    try:
        yield
    finally:
        _scopes -= 1
        if not _scopes:
            while _idle:
                for process in _idle.popitem()[1]:
                    process.end()


def take(name: str, start: Callable[[], P]) -> P:
    """Return an idle process of that name, else start one; `start` makes all processes of one name."""
    waiting = _idle.get(name, [])
    while waiting:
        process = waiting.pop()
        if process.alive:
            return cast("P", process)
        process.end()
    return start()


def give_back(name: str, process: Process) -> None:
    """Keep `process` for the next `take` inside a scope; end it outside."""
    if _scopes and process.alive:
        _idle.setdefault(name, []).append(process)
    else:
        process.end()
