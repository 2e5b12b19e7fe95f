"""The group: finds a command's module by name, and turns every error into its exit code, in one place."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from se_deploy.errors import SeDeployError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_ERROR = 1
EXIT_GATE = 3
EXIT_INTERRUPTED = 130

COMMANDS = {
    # command: (module, one line for the group's help; the module is imported only for that command)
    "export": ("convert", "Write a network as ONNX with every SE block in one spelling."),
    "inspect": ("look", "Show the SE blocks of an ONNX file, or what an engine holds."),
    "quantize": ("convert", "Write an ONNX file with explicit INT8 Q/DQ nodes, SE-aware."),
    "build-engine": ("convert", "Build a TensorRT engine and check its precision."),
    "parity": ("judge", "Compare outputs under a tolerance preset."),
    "profile": ("judge", "Measure latency, also against PyTorch."),
    "run": ("flow", "All of it: one directory, one report."),
    "demo": ("flow", "`run` on the shipped network and digits."),
    "doctor": ("look", "Say what this machine can build and run."),
    "check": ("judge", "Judge every gate listed in se-deploy.toml."),
    "report": ("look", "Put several runs side by side."),
    "networks": ("look", "List the SE networks that ship."),
    "predict": ("use", "Say what an artifact makes of images."),
    "bundle": ("use", "Gather what goes to the device."),
    "schema": ("schema", "Print the JSON Schema of what a command prints."),
}


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Give the commands in the order of the way through the house."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"se_deploy.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; every way out passes here."""
        _tame_logs()
        words = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in words
        try:
            code = super().main(words, prog_name, complete_var, standalone_mode=False, obj=words, **extra)
        except SeDeployError as e:
            code = _fail(e.kind, e.message, e.hint, EXIT_ERROR, as_json=as_json)
        except click.UsageError as e:
            if not as_json:
                e.show()
            hint = f"{e.ctx.command_path} --help" if e.ctx else "se-deploy --help"
            code = e.exit_code if not as_json else _fail("Usage", e.format_message(), hint, 2, as_json=True)
        except click.ClickException as e:
            code = _fail(type(e).__name__, e.format_message(), "see --help", e.exit_code, as_json=as_json)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted; nothing half-written was left behind", err=True)
            code = EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader of our output went away, as `head` does: nobody is left to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = EXIT_ERROR
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


class _Escaped(logging.Formatter):
    """A log line whose control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Format as usual, then escape: libraries log names out of files."""
        return printable(super().format(record))


def _tame_logs() -> None:
    """Let libraries' errors through, escaped; what they warn of is no user's business."""
    if logging.lastResort is not None:  # what handles a record where nobody has set up logging
        logging.lastResort.setLevel(logging.ERROR)
        logging.lastResort.setFormatter(_Escaped())


def _fail(kind: str, message: str, hint: str, code: int, *, as_json: bool) -> int:
    if as_json:
        from se_deploy import schema

        fields = schema.results.ErrorFields(kind=kind, message=message, hint=hint)
        click.echo(schema.encode(schema.results.Error(error=fields), indent=None))
    else:
        click.echo(printable(f"error: {message}\n  to mend it: {hint}"), err=True)
    return code


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from se_deploy import __version__

        click.echo(f"se-deploy {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Say it.")
def main() -> None:
    """Deploy squeeze-and-excitation networks.

    Export to ONNX, find every SE block, rewrite it exactly into what the target's compiler likes, build
    FP16 and INT8 TensorRT engines, and check every number against PyTorch.

    \b
    Start here:
        se-deploy demo -o out
        se-deploy run timm:mobilenetv3_small_100 --calib-data PHOTOS -o out
    """
