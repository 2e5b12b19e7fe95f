"""`--remote`: the words that were typed become those of the same command on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from se_deploy.cli.output import judging, show
from se_deploy.cli.parameters import TYPED, group, optional
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE, Model
from se_deploy.errors import BadInput, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from se_deploy.cli.output import Reporter
    from se_deploy.cli.parameters import Given
    from se_deploy.commands.remote import Remote, Word
    from se_deploy.commands.remote_files import Read, Written
    from se_deploy.schema import results
    from se_deploy.tables.base import Grid

    R = TypeVar("R", results.BuildEngine, results.Parity, results.Predict, results.Profile)

_CACHES = frozenset({"timing_cache", "calib_cache"})
"""Files that a command reads and writes again."""

_VERSIONS = "install the same version of se-deploy on both machines"

_host = optional(
    "--remote", click.STRING, "Run there over SSH and bring the results back.", metavar="USER@HOST"
)
_program = optional("--remote-program", click.STRING, "Path of se-deploy there, where it is not found.")
_config = optional("--ssh-config", IN_FILE, "Configuration of ssh, in place of ~/.ssh/config.")


def _remote(given: Given) -> Remote | None:
    name = _host.of(given)
    if name is None:
        return None
    from se_deploy.commands.remote import Remote
    from se_deploy.deploy.ssh import Host

    return Remote(Host(name, _config.of(given)), _program.of(given))


remote = group("remote", _remote, _host, _program, _config, section=Section.DEVICE)


def finish(
    where: Remote,
    kind: type[R],
    tables: Callable[[R], Sequence[Grid | str]],
    reporter: Reporter,
    *,
    also: Sequence[Word] = (),
    junit: Path | None = None,
) -> None:
    """Run the current command on a device, print its result as if it had run here, and end as it ended.

    `also`: words besides those that were typed. `junit` is written here, of the result: the device would
    name its own paths.
    """
    from se_deploy import errors, files, report, schema
    from se_deploy.commands import remote as verb

    ctx: click.Context = click.get_current_context()
    overwrite = bool(_typed(ctx).get("overwrite"))
    command = str(ctx.info_name)
    name, broken = where.host.name, errors.RemoteFailed
    with judging(command, junit, overwrite=overwrite):
        answer = verb.run(where, command, (*also, *words(ctx)), overwrite=overwrite, talk=talk)
        if "error" in answer.fields:
            failure = schema.results.Error
            error = schema.convert(answer.fields, failure, what=name, error=broken, hint=_VERSIONS).error
            known = getattr(errors, error.kind, None)
            leaf = known if isinstance(known, type) and issubclass(known, errors.SeDeployError) else broken
            raise leaf(f"{name}: {error.message}", hint=error.hint)
    fields = {**answer.fields, "remote": name}
    payload = schema.convert(fields, kind, what=name, error=broken, hint=_VERSIONS)
    if junit and isinstance(payload, schema.results.Parity):
        files.write_text(junit, report.junit(payload))
    if reporter.as_json:
        click.echo(schema.encode(payload))
    else:
        show(tables(payload))
    raise click.exceptions.Exit(answer.code)


def talk(line: str) -> None:
    """Print what is said on the device."""
    click.echo(printable(line), err=True)


def words(ctx: click.Context) -> Iterator[Word]:
    """Yield what was typed, files marked, but for what is for this side only."""
    from se_deploy.commands.remote import Word

    here = {parameter.name for parameter in remote.parameters} | {"as_json", "junit"}
    values: list[Word] = []
    for name, value in _typed(ctx).items():
        parameter = next(one for one in ctx.command.params if one.name == name)
        several = value if isinstance(value, (list, tuple)) else (value,)
        if name in here:
            continue
        if isinstance(parameter, click.Option) and parameter.count:
            yield from [Word(_long(parameter.opts), "")] * int(str(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            yield Word(_long(parameter.opts if value else parameter.secondary_opts), "")
        elif isinstance(parameter, click.Option):
            yield from (Word(f"{_long(parameter.opts)}=", _marked(parameter, str(one))) for one in several)
        else:
            values += [Word("", _marked(parameter, str(one))) for one in several]
    yield from (Word("--", ""), *values)


def _typed(ctx: click.Context) -> dict[str, object]:
    """Return the values that were typed, as text, by the parameter's name; arguments in their order."""
    values, _, order = ctx.command.make_parser(ctx).parse_args(args=list(ctx.meta[TYPED]))
    return {str(parameter.name): values[str(parameter.name)] for parameter in order}


def _long(names: list[str]) -> str:
    return max(names, key=len)


def _marked(parameter: click.Parameter, text: str) -> str | Read | Written:
    """Return a value, marked where it names a file. Raises: BadInput for code that would have to travel."""
    from se_deploy.commands.remote_files import Read, Written

    kind = parameter.type
    if isinstance(kind, Model) and Path(text).is_file():
        return Read(Path(text))
    if isinstance(kind, Model) and Path(text.rpartition(":")[0]).is_file():
        raise BadInput(
            f"'{text}' is code of this machine, which does not travel",
            hint="export it, and name the ONNX file",
        )
    if not isinstance(kind, click.Path):
        return text
    if kind.exists:
        return Read(Path(text))
    return Written(Path(text), kept=parameter.name in _CACHES, folder=not kind.file_okay)
