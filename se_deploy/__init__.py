"""Deploy squeeze-and-excitation networks: export, fuse, quantize, build engines, check the numbers.

The verbs of the command line are the verbs of the library. They are imported on first use, because
`se-deploy --help` must not pay for torch, onnx or onnxruntime.
"""

from __future__ import annotations

import importlib

__all__ = ["__version__", "build_engine", "export", "inspect", "parity", "profile", "quantize"]

_VERBS = frozenset(__all__) - {"__version__"}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - 15 ms that --help need not pay

        return version("se-deploy")
    if name in _VERBS:
        return getattr(importlib.import_module(f"se_deploy.commands.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
