"""`--dry-run`: what a command would do, and whether it could; nothing is exported, built or written.

What a command refuses before its first long step is refused here too: outputs that exist, a network, a file,
data, a compiler or a cluster that is not there, flags that contradict each other.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import data, files, graph, se_blocks
from se_deploy.backends import registry
from se_deploy.commands import compilers, lowering, on_workers, reading, sampling, source
from se_deploy.commands.build_engine import files_of
from se_deploy.commands.export import choices_path, replays_its_own
from se_deploy.commands.run import require_samples
from se_deploy.commands.run_files import ENGINES, artifact_paths
from se_deploy.errors import counted
from se_deploy.options import DEFAULT_OPSET, ImageOptions, NetworkOptions, TargetOptions, target_options
from se_deploy.schema import input_spec, tool_version
from se_deploy.schema.results import DryRun

if TYPE_CHECKING:
    from collections.abc import Iterable

    from se_deploy.options import CalibrationOptions, Precision, RunOptions, TargetLike
    from se_deploy.schema.input_spec import InputSpec


@dataclasses.dataclass(frozen=True, slots=True)
class _Taken:
    """What a command would begin with."""

    text: str
    spec: InputSpec | None
    precision: Precision


def export(
    model: str,
    output: Path,
    *,
    precision: Precision,
    target: TargetLike | None = None,
    network: NetworkOptions,
    calibration: CalibrationOptions,
    verify: bool = True,
    on: str = on_workers.LOCAL,
    overwrite: bool = False,
) -> DryRun:
    """Return what `export` would do. Raises: as `export` does before it exports."""
    on_workers.require(on)
    to = target_options(target)
    _free([output], overwrite=overwrite)
    _free([choices_path(output)], overwrite=overwrite or replays_its_own(output, to))
    taken = _taken(model, network)
    lowering.destination(to)  # refuses what cannot be read or is not here
    steps = [taken.text, "write every SE block in its canonical form"]
    if to.targets or registry.chosen(to.runtime):
        steps += _rewriting(to)
    steps += _lowering(precision, taken, calibration)
    return _said("export", [*steps, _verifying(verify)], [output])


def quantize(
    model: Path,
    output: Path,
    *,
    target: TargetLike | None = None,
    image: ImageOptions,
    calibration: CalibrationOptions,
    verify: bool = True,
    on: str = on_workers.LOCAL,
    overwrite: bool = False,
) -> DryRun:
    """Return what `quantize` would do. Raises: as `quantize` does before it calibrates."""
    on_workers.require(on)
    _free([output], overwrite=overwrite)
    reading.load_fp32(model, image)  # refuses what is quantized or in FP16
    taken = _taken(str(model), NetworkOptions(image=image))
    to = lowering.destination(target_options(target))
    steps = [taken.text, *_lowering("int8", taken, calibration)]
    if to.backend is not None:
        steps.append(f"weigh INT8 against FP16 by the plans of {to.backend.title}")
    return _said("quantize", [*steps, _verifying(verify)], [output])


def build_engine(
    model: Path,
    output: Path,
    *,
    precision: Precision | None,
    target: TargetLike | None = None,
    image: ImageOptions,
    calibration: CalibrationOptions,
    verify: bool = True,
    on: str = on_workers.LOCAL,
    overwrite: bool = False,
) -> DryRun:
    """Return what `build-engine` would do. Raises: as `build-engine` does before it builds."""
    on_workers.require(on)
    writes = files_of(output)
    _free(writes, overwrite=overwrite)
    taken = _taken(str(model), NetworkOptions(image=image))
    steps = [taken.text]
    wanted = precision or taken.precision
    if taken.precision == "fp32":
        steps += _rewriting(target_options(target))
        steps += _lowering(wanted, taken, calibration)
    steps.append(_building(wanted, target_options(target)))
    return _said("build-engine", [*steps, _verifying(verify)], writes)


def run(
    model: str, folder: Path, *, calibration: CalibrationOptions, options: RunOptions, overwrite: bool = False
) -> DryRun:
    """Return what `run` would do. Raises: as `run` does before it exports."""
    require_samples(calibration, options)
    writes = artifact_paths(folder, options.precision)
    _free(writes, overwrite=overwrite)
    taken = _taken(model, options.network)
    steps = [taken.text, "write every SE block in its canonical form", _verifying(options.verify)]
    steps += _lowering(options.precision, taken, calibration)
    for precision in ENGINES[options.precision]:
        steps += [*_rewriting(options.target), _building(precision, options.target)]
    compared = options.data or calibration.data
    steps += [
        f"compare every artifact with {model} on {_samples(compared, taken.spec, None)}",
        f"time every artifact that runs here, {options.timing.duration_s:g} s each",
        "write the report",
    ]
    return _said("run", steps, writes)


def _said(command: str, steps: Iterable[str], writes: Iterable[Path]) -> DryRun:
    return DryRun(
        tool_version=tool_version(),
        warnings=(),
        command=command,
        steps=tuple(steps),
        writes=tuple(map(str, writes)),
    )


def _free(paths: Iterable[Path], *, overwrite: bool) -> None:
    for path in paths:
        files.refuse_taken(path, overwrite=overwrite)


def _taken(spec: str, options: NetworkOptions) -> _Taken:
    """Look at what a command begins with; a network is made, pretrained weights are not fetched."""
    if reading.is_onnx(spec):
        model = reading.load_onnx(Path(spec), options.image)
        blocks = len(se_blocks.detect(model).se)
        precision = reading.precision_of(model)
        text = (
            f"read {spec}: {counted(model.graph.num_nodes(), 'node')}, operator set {graph.opset(model)}, "
            f"{precision.upper()}, {counted(blocks, 'SE block')}"
        )
        return _Taken(text, input_spec.read(model.metadata_props), precision)
    network = source.load_network(spec, dataclasses.replace(options, pretrained=False))
    weights = "pretrained, fetched where they are not here" if options.pretrained else network.weights
    fed = ", ".join(str(one) for one in network.inputs)
    opset = options.opset or DEFAULT_OPSET
    text = f"export {spec} by PyTorch, operator set {opset}: inputs {fed}; weights {weights}"
    return _Taken(text, options.image.applied(network.image), "fp32")


def _rewriting(target: TargetOptions) -> list[str]:
    """Return the step that searches for rewrites; none where none are asked for."""
    if target.rewrites.names == ():
        return []
    if target.rewrites.replay is not None:
        return [f"apply the rewrites that {target.rewrites.replay} saved"]
    backend = compilers.compiler_for(registry.chosen(target.runtime), target.targets)
    return [f"search exact rewrites, with at most {target.rewrites.search_plans} plans of {backend.title}"]


def _lowering(precision: Precision, taken: _Taken, calibration: CalibrationOptions) -> list[str]:
    if precision == "fp32":
        return []
    if precision == "bf16":
        return ["lower to BF16"]
    seen = _samples(calibration.data, taken.spec, calibration)
    if precision == "fp16":
        made_up = "noise, black and white"
        return [f"lower to FP16, with ranges measured on {made_up if calibration.data is None else seen}"]
    sampling.require_data(calibration)
    return [f"quantize to INT8, calibrated on {seen}"]


def _building(precision: Precision, target: TargetOptions) -> str:
    backend = compilers.compiler_for(registry.chosen(target.runtime), target.targets)
    targets = ", ".join(one.called for one in target.targets) or "the targets that it builds for by default"
    return f"build the {precision.upper()} engine with {backend.title} for {targets}, and read its plan back"


def _samples(path: Path | None, spec: InputSpec | None, calibration: CalibrationOptions | None) -> str:
    """Return in words what data there is; images are looked at, as the command would. Raises: BadData."""
    if path is None:
        return "random numbers, which mean nothing"
    if spec is None:
        return f"the samples of {path}"
    found = data.read(
        path,
        [spec],
        limit=calibration.samples if calibration else None,
        skip_unreadable=calibration.skip_unreadable if calibration else False,
        seed=calibration.seed if calibration else 0,
    )
    return f"{counted(found.count, 'sample')} of {path}"


def _verifying(verify: bool) -> str:
    return "compare what was written with what was given" if verify else "compare nothing (--no-verify)"
