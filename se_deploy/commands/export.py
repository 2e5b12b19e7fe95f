"""`export`: an ONNX file comes out, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import files, graph
from se_deploy.backends import registry
from se_deploy.commands import lowering, source
from se_deploy.commands.results import (
    Json,
    census_json,
    finite,
    fp16_json,
    head,
    refused_json,
    relative,
    waterfall_json,
)
from se_deploy.options import CalibrationOptions, ImageOptions, NetworkOptions, RewriteOptions
from se_deploy.passes import search
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.backends.backend import Backend
    from se_deploy.commands.lowering import Lowered
    from se_deploy.commands.source import Source
    from se_deploy.options import Precision
    from se_deploy.protocols import Progress
    from se_deploy.verification import Verified


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A written ONNX file and how it came about."""

    onnx: Path
    source: Source
    lowered: Lowered
    precision: Precision
    runtime: str
    verified: Verified  # the written file against the source
    warnings: tuple[str, ...]

    def json(self) -> Json:
        """The object of the contract."""
        search = self.lowered.found
        return {
            **head("export", self.warnings),
            **census_json(self.source.census),
            "plans": [],
            "onnx": relative(self.onnx, self.onnx.parent),
            "exporter": self.source.exporter,
            "precision": self.precision,
            "runtime": self.runtime,
            "opset": graph.opset(self.lowered.model),
            "nodes_before": self.source.nodes_before,
            "nodes_after": self.lowered.model.graph.num_nodes(),
            "rewrites": [
                *([name, count] for name, count in self.source.counts),
                *([name, count] for name, count in (search.counts if search else ())),
            ],
            "max_abs_error": finite(self.verified.max_abs_error),
            "frozen": [] if self.source.network is None else [f.json() for f in self.source.network.frozen],
            "waterfall": waterfall_json(search) if search else [],
            "refused": refused_json(search),
            "verified": self.verified.json(),
            **fp16_json(self.lowered.kept_fp32, self.lowered.unchecked),
        }


def export(
    model: str | Path,
    output: str | Path,
    *,
    precision: Precision = "fp32",
    io: str = "fp32",
    runtime: str = registry.AUTO,
    targets: Sequence[str] = (),
    network: NetworkOptions | None = None,
    image: ImageOptions | None = None,
    rewrites: RewriteOptions | None = None,
    calibration: CalibrationOptions | None = None,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ExportResult:
    """Write a network as ONNX: canonical, or in the form that `runtime` likes best, in `precision`.

    What is written is compared with its source unless `verify` is False.
    Raises: BadModel, ExportFailed, BadInput, BadData, MissingRuntime, OutputExists, CannotWrite.
    """
    output = Path(output)
    files.claim(output, overwrite=overwrite)
    backend = registry.chosen(runtime)
    if targets and backend is None:
        backend = lowering.compiler_for(None, targets)
    calibration = calibration or CalibrationOptions()
    taken = source.read(
        str(model), options=network, image=image, calibration=calibration, verify=verify, progress=progress
    )
    with lowering.planner_for(backend, targets) as planner:
        done = lowering.lowered(
            taken.model,
            precision=precision,
            backend=backend,
            rewriting=rewrites or RewriteOptions(),
            calibration=calibration,
            io=io,
            planner=planner,
            targets=targets,
            check=taken.check,
            samples=taken.samples,
            progress=progress,
        )
    graph.save(done.model, output)
    if done.found is not None and done.found.choices:
        files.write_text(choices_path(output), search.to_json(done.found.choices))
    verified = taken.verified.joined(done.verified)
    warnings = (*taken.warnings, *done.warnings, *verified.warnings)
    return ExportResult(output, taken, done, precision, _name(backend), verified, warnings)


def _name(backend: Backend | None) -> str:
    return backend.name if backend else registry.AUTO


def choices_path(output: Path) -> Path:
    """OUT.rewrites.json: the choice of rewrites, replayable."""
    return output.with_suffix(".rewrites.json")
