"""The files of a run: their names, claimed before the first step, and those of an earlier run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy import files
from se_deploy.backends import manifest as manifests
from se_deploy.commands import build_engine

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from se_deploy.options import Precision

ENGINES: Mapping[Precision, tuple[Precision, ...]] = {
    "fp32": ("fp32",), "fp16": ("fp16",), "int8": ("fp16", "int8"),
}  # fmt: skip
"""Which engines a run builds, the one that the others are compared with first."""
PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "fp32")  # narrow to wide
GRAPHS: Mapping[Precision, tuple[str, ...]] = {
    "fp32": ("model.onnx",), "fp16": ("model.onnx", "model.fp16.onnx"),
    "int8": ("model.onnx", "model.fp16.onnx", "model.int8.onnx"),
}  # fmt: skip
"""Which ONNX files a run of that precision leaves beside its engines."""


def artifact_paths(folder: Path, precision: Precision) -> tuple[Path, ...]:
    """Return every file that a run of this precision writes."""
    engines = [
        p for name in ENGINES[precision] for p in build_engine.files_of(folder / f"model.{name}.engine")
    ]
    return (*(folder / name for name in GRAPHS[precision]), *engines, *reports(folder))


def reports(folder: Path) -> tuple[Path, ...]:
    """Return the report, as JSON and as a page."""
    return (folder / "report.json", folder / "report.html")


def claim(folder: Path, *, overwrite: bool) -> None:
    """Check that nothing stands in the way of any file of a run.

    Raises: OutputExists where something does, without `overwrite`.
    """
    for path in (*_own(folder), *reports(folder)):
        files.claim(path, overwrite=overwrite)


def graphs(folder: Path) -> dict[str, Path]:
    """Return the ONNX files of each form."""
    return {"onnx": folder / "model.onnx", **{p: folder / f"model.{p}.onnx" for p in ("fp16", "int8")}}


def remove_stale(folder: Path, written: Collection[Path], model: Path) -> None:
    """Remove what an earlier run left under a run's own names: it would pass for this one's."""
    for path in _own(folder):
        own = path in written or (path.exists() and model.exists() and path.samefile(model))
        if not own:
            path.unlink(missing_ok=True)


def _own(folder: Path) -> tuple[Path, ...]:
    """Return every artifact that a run of any precision may leave in `folder`."""
    engines = [folder / f"model.{name}.engine" for name in PRECISIONS]
    sides = [p for e in engines for p in (manifests.path_of(e), build_engine.onnx_path(e))]
    return (*(folder / name for name in GRAPHS["int8"]), *engines, *sides)
