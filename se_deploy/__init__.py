"""Deploy squeeze-and-excitation networks: export, fuse, quantize, build engines, check the numbers.

The verbs of the command line are the verbs of the library. They are imported on first use, because
`se-deploy --help` must not pay for torch, onnx or onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from se_deploy.commands.build_engine import build_engine
    from se_deploy.commands.export import export
    from se_deploy.commands.inspect import inspect
    from se_deploy.commands.parity import parity
    from se_deploy.commands.profile import profile
    from se_deploy.commands.quantize import quantize

    __version__: str

__all__ = ["__version__", "build_engine", "export", "inspect", "parity", "profile", "quantize"]

_VERBS = frozenset(__all__) - {"__version__"}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib import metadata  # noqa: PLC0415 - 15 ms that --help need not pay

        try:
            return metadata.version("se-deploy")
        except metadata.PackageNotFoundError:  # a source tree on the path, as scripts/on_gpu uses it
            return "0+uninstalled"
    if name in _VERBS:
        return getattr(importlib.import_module(f"se_deploy.commands.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
