"""A command's parameters with types: what click parses reaches the command as values of the library.

A `Part` is one keyword argument of a command. Most are one flag; a group joins the flags that belong
together into one frozen dataclass. A command lists its parts, and `--help` shows them in that order.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import click
from click.core import ParameterSource

from se_deploy.cli import sections

if TYPE_CHECKING:
    from se_deploy.cli.sections import Section

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

TYPED = "se_deploy.typed"
"""Where a context keeps the words of its command as they were typed."""

Given = Mapping[str, object]
"""What click parsed, by its own name of the parameter; and what `IGNORED` names."""

IGNORED = " ignored"
"""Where a command says which flags were typed that have no effect on it; no parameter has such a name."""


@dataclass(frozen=True, slots=True)
class Part(Generic[T_co]):
    """One keyword argument of a command."""

    keyword: str
    parameters: tuple[click.Parameter, ...]  # that it is made of
    of: Callable[[Given], T_co]  # its value
    sections: Mapping[str, Section] = field(default_factory=dict)  # by click's own name of the parameter


class Command(click.Command):
    """A command whose function takes the values of its parts."""

    def __init__(
        self,
        function: Callable[..., None],
        name: str,
        parts: Sequence[Part[object]],
        *,
        first: Sequence[str] = (),
        inert: Sequence[Part[object]] = (),
    ) -> None:
        """`function` takes each part's keyword; its docstring is the help text.

        `first`: flags that help shows before all others. `inert`: flags that have no effect here; they are
        taken, with a warning, for they once were flags of this command, or are of its neighbours.
        """
        self.parts, self.first = tuple(parts), tuple(first)
        self.sections = {k: section for part in reversed(self.parts) for k, section in part.sections.items()}
        own = {parameter.name: parameter for part in self.parts for parameter in part.parameters}
        self.inert = [
            parameter for part in inert for parameter in part.parameters if parameter.name not in own
        ]
        super().__init__(
            name,
            callback=function,
            params=[*own.values(), *map(_hidden, self.inert), sections.help_all()],
            help=inspect.cleandoc(function.__doc__ or ""),
            context_settings={"max_content_width": sections.HELP_WIDTH},
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by section."""
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        sections.write(ctx, formatter, options, self.sections, self.first)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words as they were typed, for a command that may run elsewhere."""
        ctx.meta[TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Make the parts and call the function."""
        given: dict[str, object] = {**ctx.params, IGNORED: self._typed_in_vain(ctx)}
        ctx.params.clear()
        try:
            ctx.params.update({part.keyword: part.of(given) for part in self.parts})
            return super().invoke(ctx)
        except click.UsageError as e:
            e.ctx = e.ctx or ctx
            raise

    def _typed_in_vain(self, ctx: click.Context) -> tuple[str, ...]:
        """Return the flags that were typed and have no effect here."""
        return tuple(
            max(parameter.opts, key=len)
            for parameter in self.inert
            if parameter.name and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        )


def command(
    name: str, *parts: Part[object], first: str = "", inert: Sequence[Part[object]] = ()
) -> Callable[[Callable[..., None]], Command]:
    """Return the decorator that makes a function the command `name`; `first`: flags divided by blanks."""

    def decorate(function: Callable[..., None]) -> Command:
        return Command(function, name, parts, first=first.split(), inert=inert)

    return decorate


def switch(names: str, text: str, *, section: Section | None = None) -> Part[bool]:
    """Return a flag without a value. `names`, here and below: as typed, then the keyword if it differs.

    `section`, here and below: where help shows it; a flag without one takes that of its group.
    """
    return _single(click.Option(names.split(), is_flag=True, help=text), section)


def on_off(names: str, text: str, *, section: Section | None = None) -> Part[bool]:
    """Return a flag that is on, and its opposite: "--verify/--no-verify"."""
    return _single(click.Option([names], default=True, show_default=True, help=text), section)


def either(names: str, text: str, *, section: Section | None = None) -> Part[bool | None]:
    """Return a flag and its opposite, of which neither may be given: None."""
    return _single(click.Option([names], default=None, help=text), section)


def count(names: str, text: str, *, section: Section | None = None) -> Part[int]:
    """Return a flag whose repetitions are counted."""
    return _single(click.Option(names.split(), count=True, help=text), section)


def optional(
    names: str,
    kind: click.ParamType[T],
    text: str,
    *,
    metavar: str | None = None,
    section: Section | None = None,
) -> Part[T | None]:
    """Return an option that may be left out: None."""
    return _single(click.Option(names.split(), type=kind, help=text, metavar=metavar), section)


def defaulted(
    names: str, kind: click.ParamType[T], default: T | str, text: str, *, section: Section | None = None
) -> Part[T]:
    """Return an option with a default, which `--help` shows."""
    option = click.Option(names.split(), type=kind, default=default, show_default=True, help=text)
    return _single(option, section)


def required(names: str, kind: click.ParamType[T], text: str, *, section: Section | None = None) -> Part[T]:
    """Return an option that must be given."""
    return _single(click.Option(names.split(), type=kind, required=True, help=text), section)


def repeated(
    names: str, kind: click.ParamType[T], text: str, *, section: Section | None = None
) -> Part[tuple[T, ...]]:
    """Return an option that may be given several times."""
    return _single(click.Option(names.split(), type=kind, multiple=True, help=text), section)


def argument(name: str, kind: click.ParamType[T], *, metavar: str | None = None) -> Part[T]:
    """Return a positional argument."""
    return _single(click.Argument([name], type=kind, metavar=metavar))


def optional_argument(name: str, kind: click.ParamType[T]) -> Part[T | None]:
    """Return a positional argument that may be left out: None."""
    return _single(click.Argument([name], type=kind, required=False))


def arguments(name: str, kind: click.ParamType[T]) -> Part[tuple[T, ...]]:
    """Return one or more positional arguments."""
    return _single(click.Argument([name], type=kind, nargs=-1, required=True))


def group(
    keyword: str, make: Callable[[Given], T], *parts: Part[object], section: Section | None = None
) -> Part[T]:
    """Return the part that `make` builds from what the flags of `parts` were given.

    `section`: of those of its flags that name none themselves.
    """
    parameters = tuple(parameter for part in parts for parameter in part.parameters)
    named = {name: one for part in reversed(parts) for name, one in part.sections.items()}
    taken = {} if section is None else {p.name: section for p in parameters if p.name is not None}
    return Part(keyword, parameters, make, {**taken, **named})


def _single(parameter: click.Parameter, section: Section | None = None) -> Part[T]:
    name = parameter.name
    if name is None:  # click names every parameter that is declared with a name
        raise ValueError("a parameter needs a name")

    def value(given: Given) -> T:
        return cast("T", given[name])  # the parameter's own type has converted it

    return Part(name, (parameter,), value, {} if section is None else {name: section})


def _hidden(parameter: click.Parameter) -> click.Parameter:
    """Return a parameter that is taken and not shown; the command does not see its value."""
    twin = copy.copy(parameter)
    twin.expose_value = False
    if isinstance(twin, click.Option):
        twin.hidden = True
    return twin
