"""Packages that not every install has, and the extra of this one that brings each."""

from __future__ import annotations

import contextlib
import importlib.util
from types import MappingProxyType
from typing import TYPE_CHECKING

from se_deploy.errors import MissingRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def install(*extras: str) -> str:
    """Return the command that installs these extras."""
    return f"pip install 'se-deploy[{','.join(extras)}]'"


INSTALL = MappingProxyType(
    {
        "torch": install("torch"),
        "onnxscript": install("torch"),
        "safetensors": install("torch"),
        "timm": install("zoo"),
        "torchvision": install("zoo"),
        "matplotlib": install("report"),
        "ray": install("sweep"),
    }
)
"""What installs a package, by the name that Python imports."""


def require(package: str, what: str) -> None:
    """Check, without importing it, that a package is installed. Raises: MissingRuntime, with the command."""
    if importlib.util.find_spec(package) is None:
        raise _missing(package, what, INSTALL)


def _missing(package: str, what: str, commands: Mapping[str, str]) -> MissingRuntime:
    return MissingRuntime(f"{what} needs {package}, which is not installed", hint=commands[package])


@contextlib.contextmanager
def needed_for(what: str, commands: Mapping[str, str] = INSTALL) -> Iterator[None]:
    """Let optional packages be imported for `what`; `commands` installs them, by the name of the module.

    Raises: MissingRuntime, with the command, where one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as e:
        package = e.name or ""
        if package not in commands:
            raise
        raise _missing(package, what, commands) from e
