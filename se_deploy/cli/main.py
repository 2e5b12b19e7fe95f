"""The group: finds a command's module by name, and turns every error into its exit code, in one place."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from se_deploy.backends import keeping
from se_deploy.cli.output import EXIT_ERROR, EXIT_INTERRUPTED, unjudged
from se_deploy.errors import CannotWrite, OutputExists, SeDeployError, meant, printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

EXIT_USAGE = 2
PROGRAM = "se-deploy"
COMPLETE_VARIABLE = "_SE_DEPLOY_COMPLETE"  # as click derives it from the program's name

COMMANDS = {
    # command: one line for the group's help; its module is imported only for that command
    "export": "Write a network as ONNX with every SE block in one spelling.",
    "inspect": "Show the SE blocks of an ONNX file, or what an engine holds.",
    "quantize": "Write an ONNX file with explicit INT8 Q/DQ nodes, SE-aware.",
    "build-engine": "Build a TensorRT engine and check its precision.",
    "parity": "Compare outputs under a tolerance preset.",
    "profile": "Measure latency, also against PyTorch.",
    "run": "Do all of it: one directory, one report.",
    "sweep": "Do `run` for networks x precisions x targets, here or on a Ray cluster.",
    "worker": "Work for sweeps as a node of a Ray cluster.",
    "demo": "Do `run` on the shipped network and digits.",
    "doctor": "Show what this machine can build and run.",
    "check": "Evaluate every gate listed in se-deploy.toml.",
    "report": "Put several runs side by side.",
    "networks": "List the SE networks that ship.",
    "predict": "Classify images with an artifact.",
    "bundle": "Gather what goes to the device.",
    "schema": "Print the JSON Schema of what a command prints.",
    "completion": "Print the script that completes commands and flags in a shell.",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"se_deploy.cli.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one names the nearest."""
        if args[0] not in COMMANDS:
            ctx.fail(f"No such command '{args[0]}'. {meant(args[0], COMMANDS).capitalize()}".rstrip())
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from se_deploy import __version__

        click.echo(f"se-deploy {__version__}")
        ctx.exit()


@click.group(name=PROGRAM, cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)
def commands() -> None:
    """Deploy squeeze-and-excitation networks.

    Export to ONNX, find every SE block, rewrite it exactly into what the target's compiler likes, build
    FP16 and INT8 TensorRT engines, and check every number against PyTorch.

    \b
    Start here:
        se-deploy demo -o out
        se-deploy run timm:mobilenetv3_small_100 --calib-data PHOTOS -o out
    """


def main(args: Sequence[str] | None = None, *, standalone_mode: bool = True) -> int:
    """Run a command and return its exit code; `standalone_mode` ends the process with it instead."""
    _tame_logs()
    _interrupted.clear()  # what ended the command before
    words = list(sys.argv[1:] if args is None else args)
    if not standalone_mode:
        return _run(words, as_json="--json" in words)
    _interrupt_on_termination()  # the process is the command's own, and so are its signals
    try:
        code = _run(words, as_json="--json" in words)
    except Exception:
        # A C extension that is interrupted while it is imported says that its import failed, and not why.
        if not _interrupted:
            raise
        code = _interrupted_here()
    sys.exit(code)


def _run(words: list[str], *, as_json: bool) -> int:
    """Run a command; every way out passes here."""
    if sys.stdout is None or sys.stderr is None:  # closed by the caller, as with >&-
        return _no_output()
    try:
        with keeping.kept():
            code = commands.main(words, prog_name=PROGRAM, standalone_mode=False, obj=words)
        sys.stdout.flush()  # what cannot be written is known here and not at the end of the interpreter
    except SeDeployError as e:
        if _interrupted:  # what was interrupted was taken for a failure on the way
            return _interrupted_here()
        return _fail(e.kind, e.message, e.hint, EXIT_ERROR, as_json=as_json)
    except click.UsageError as e:
        _tell_junit(e, words)
        hint = f"{e.ctx.command_path} --help" if e.ctx else "se-deploy --help"
        if as_json:
            return _fail("Usage", e.format_message(), hint, EXIT_USAGE, as_json=True)
        click.UsageError(printable(e.format_message()), ctx=e.ctx).show()
        return EXIT_USAGE
    except click.ClickException as e:
        return _fail(type(e).__name__, e.format_message(), "see --help", e.exit_code, as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        return _interrupted_here()
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: nobody is left to tell.
        _drop_output()
        return EXIT_ERROR
    except OSError as e:  # the machine's doing, wherever it comes up: a full disk, a limit
        where = f" '{e.filename}'" if e.filename else ""
        if not where:
            _drop_output()  # it may be the output itself
        message = f"the system refused{where}: {e.strerror or e}"
        hint = "make room, or look at permissions and limits; then run it again"
        return _fail("System", message, hint, EXIT_ERROR, as_json=as_json and bool(where))
    except MemoryError as e:
        message = f"there is not enough memory: {e}" if str(e) else "there is not enough memory"
        return _fail("System", message, "give a smaller batch or input size", EXIT_ERROR, as_json=as_json)
    return code if isinstance(code, int) else 0


def _tell_junit(e: click.UsageError, words: Sequence[str]) -> None:
    """Let what --junit names say that the command was not understood: an older verdict is none of this run.

    A file that the command itself would not replace stays.
    """
    asked = commands if e.ctx is None else e.ctx.command
    if asked is not commands and all(parameter.name != "junit" for parameter in asked.params):
        return
    options = [parameter for parameter in asked.params if isinstance(parameter, click.Option)]
    valued = {name for one in options if not one.is_flag and not one.count for name in one.opts}
    junit, overwrite, typed = "", False, iter(words)
    for word in typed:
        if word == "--":
            break
        if word in {"--junit", *valued}:
            value = next(typed, "")
            junit = value if word == "--junit" else junit
        elif word.startswith("--junit="):
            junit = word.removeprefix("--junit=")
        overwrite = overwrite or word == "--overwrite"
    if not junit:
        return
    name = asked.name if asked is not commands and asked.name else words[0]
    with contextlib.suppress(OutputExists, CannotWrite):
        hint = f"{PROGRAM} {name} --help"
        unjudged(name, Path(junit), "Usage", e.format_message(), hint, overwrite=overwrite)


def _interrupted_here() -> int:
    click.echo("interrupted; nothing half-written was left behind", err=True)
    return EXIT_INTERRUPTED


def _drop_output() -> None:
    """Let what is still to be written to stdout go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _no_output() -> int:
    """Say on whichever of both is open that the other is not."""
    closed, left = ("stdout", sys.stderr) if sys.stdout is None else ("stderr", sys.stdout)
    if left is not None:
        click.echo(f"error: {closed} is closed\n  hint: send it to a file, or to {os.devnull}", file=left)
    return EXIT_ERROR


def _interrupt_on_termination() -> None:
    """Take SIGTERM and SIGHUP as Ctrl-C is taken: what is half-done is removed, and helpers are ended."""
    if threading.current_thread() is not threading.main_thread():
        return  # only there may handlers be set
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        taken = {signal.SIG_DFL, signal.default_int_handler}
        if number is not None and signal.getsignal(number) in taken:  # nohup ignores it
            signal.signal(number, _interrupt)


_interrupted: list[int] = []
"""The signals that the command now running was sent."""


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _interrupted.append(number)
    raise KeyboardInterrupt


class _Escaped(logging.Formatter):
    """A log line whose control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Format as usual, then escape: libraries log names out of files."""
        return printable(super().format(record))


def _tame_logs() -> None:
    """Let libraries' errors through, escaped; what they and Python warn of is no user's business."""
    logging.captureWarnings(capture=True)
    if logging.lastResort is not None:  # what handles a record where nobody has set up logging
        logging.lastResort.setLevel(logging.ERROR)
        logging.lastResort.setFormatter(_Escaped())


def _fail(kind: str, message: str, hint: str, code: int, *, as_json: bool) -> int:
    if as_json:
        from se_deploy import schema

        fields = schema.results.ErrorFields(kind=kind, message=message, hint=hint)
        click.echo(schema.encode(schema.results.Error(error=fields), indent=None))
    else:
        click.echo(f"error: {printable(message)}\n  hint: {printable(hint)}", err=True)
    return code
