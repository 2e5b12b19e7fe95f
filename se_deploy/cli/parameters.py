"""A command's parameters with types: what click parses reaches the command as values of the library.

A `Part` is one keyword argument of a command. Most are one flag; a group joins the flags that belong
together into one frozen dataclass. A command lists its parts, and `--help` shows them in that order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import click

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Given = Mapping[str, object]
"""What click parsed, by its own name of the parameter."""


@dataclass(frozen=True, slots=True)
class Part(Generic[T_co]):
    """One keyword argument of a command."""

    keyword: str
    parameters: tuple[click.Parameter, ...]  # that it is made of
    of: Callable[[Given], T_co]  # its value


class Command(click.Command):
    """A command whose function takes the values of its parts."""

    def __init__(self, function: Callable[..., None], name: str, parts: Sequence[Part[object]]) -> None:
        """`function` takes each part's keyword; its docstring is the help text."""
        self.parts = tuple(parts)
        own = {parameter.name: parameter for part in self.parts for parameter in part.parameters}
        text = inspect.cleandoc(function.__doc__ or "")
        super().__init__(name, callback=function, params=list(own.values()), help=text)

    def invoke(self, ctx: click.Context) -> object:
        """Make the parts and call the function."""
        given = dict(ctx.params)
        ctx.params.clear()
        try:
            ctx.params.update({part.keyword: part.of(given) for part in self.parts})
            return super().invoke(ctx)
        except click.UsageError as e:
            e.ctx = e.ctx or ctx
            raise


def command(name: str, *parts: Part[object]) -> Callable[[Callable[..., None]], Command]:
    """Return the decorator that makes a function the command `name`."""

    def decorate(function: Callable[..., None]) -> Command:
        return Command(function, name, parts)

    return decorate


def switch(names: str, text: str) -> Part[bool]:
    """Return a flag without a value. `names`, here and below: as typed, then the keyword if it differs."""
    return _single(click.Option(names.split(), is_flag=True, help=text))


def on_off(names: str, text: str) -> Part[bool]:
    """Return a flag that is on, and its opposite: "--verify/--no-verify"."""
    return _single(click.Option([names], default=True, show_default=True, help=text))


def count(names: str, text: str) -> Part[int]:
    """Return a flag whose repetitions are counted."""
    return _single(click.Option(names.split(), count=True, help=text))


def optional(
    names: str, kind: click.ParamType[T], text: str, *, metavar: str | None = None
) -> Part[T | None]:
    """Return an option that may be left out: None."""
    return _single(click.Option(names.split(), type=kind, help=text, metavar=metavar))


def defaulted(names: str, kind: click.ParamType[T], default: T | str, text: str) -> Part[T]:
    """Return an option with a default, which `--help` shows."""
    return _single(click.Option(names.split(), type=kind, default=default, show_default=True, help=text))


def required(names: str, kind: click.ParamType[T], text: str) -> Part[T]:
    """Return an option that must be given."""
    return _single(click.Option(names.split(), type=kind, required=True, help=text))


def repeated(names: str, kind: click.ParamType[T], text: str) -> Part[tuple[T, ...]]:
    """Return an option that may be given several times."""
    return _single(click.Option(names.split(), type=kind, multiple=True, help=text))


def argument(name: str, kind: click.ParamType[T], *, metavar: str | None = None) -> Part[T]:
    """Return a positional argument."""
    return _single(click.Argument([name], type=kind, metavar=metavar))


def arguments(name: str, kind: click.ParamType[T]) -> Part[tuple[T, ...]]:
    """Return one or more positional arguments."""
    return _single(click.Argument([name], type=kind, nargs=-1, required=True))


def group(keyword: str, make: Callable[[Given], T], *parts: Part[object]) -> Part[T]:
    """Return the part that `make` builds from what the flags of `parts` were given."""
    return Part(keyword, tuple(parameter for part in parts for parameter in part.parameters), make)


def _single(parameter: click.Parameter) -> Part[T]:
    name = parameter.name
    if name is None:  # click names every parameter that is declared with a name
        raise ValueError("a parameter needs a name")

    def value(given: Given) -> T:
        return cast("T", given[name])  # the parameter's own type has converted it

    return Part(name, (parameter,), value)
