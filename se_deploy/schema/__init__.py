"""The JSON objects that this tool writes and reads: one frozen type each, the contract in code.

Every writer makes one of these and every reader gets one; unknown keys, as newer versions add them, are
ignored. Keys of the contract have no default; later ones have, so that older files can still be read.
"""

from __future__ import annotations

import atexit
import gc
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from se_deploy.schema import config, files, results, sweep
from se_deploy.schema.codec import builtins, convert, decode, encode, load
from se_deploy.schema.common import finite, relative, tool_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msgspec import Struct

__all__ = [
    "OBJECTS", "builtins", "config", "convert", "decode", "encode", "files", "finite", "json_schema", "load",
    "relative", "results", "tool_version",
]  # fmt: skip

OBJECTS: Mapping[str, type[Struct]] = MappingProxyType(
    {
        "export": results.Export,
        "inspect": results.Inspect,
        "quantize": results.Quantize,
        "build-engine": results.BuildEngine,
        "parity": results.Parity,
        "profile": results.Profile,
        "run": results.Run,
        "sweep": sweep.Sweep,
        "demo": results.Demo,
        "doctor": results.Doctor,
        "check": results.Check,
        "report": results.Report,
        "networks": results.Networks,
        "predict": results.Predict,
        "bundle": results.Bundle,
        "dry-run": results.DryRun,
        "error": results.Error,
        "manifest": files.Manifest,
        "calibration-cache": files.CalibrationCache,
        "rewrites": files.RewriteChoices,
        "input": files.BundleInput,
        "config": config.Config,
        "sweep-cell": sweep.SweepCell,
        "sweep-file": sweep.SweepFile,
    }
)
"""By command, and by kind of file; "dry-run" is what a command prints
with --dry-run, "error" what any command prints with --json where it fails."""

# The interpreter's last collection may crash in msgspec's types (msgspec issue 717, 0.22 too), so that a
# command ends with 139 in place of its exit code; what is frozen is not collected.
atexit.register(gc.freeze)

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of one of OBJECTS."""
    import msgspec  # noqa: PLC0415 - only to print it

    text = msgspec.json.encode(msgspec.json.schema(OBJECTS[name]))  # defaults that are tuples become lists
    return {"$schema": _DIALECT, **msgspec.json.decode(text)}
