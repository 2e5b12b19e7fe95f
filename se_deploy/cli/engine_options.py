"""How an engine is built, as flags: one group, which docs/engine_options.md explains by runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli import options
from se_deploy.cli.parameters import defaulted, group, optional, repeated, switch
from se_deploy.cli.sections import Section
from se_deploy.cli.types import OUT_FILE, Bytes, Notation
from se_deploy.options import COMPATIBILITIES, FLOAT_TYPES, EngineFeatures, EngineOptions
from se_deploy.schema.files import ShapeRange

if TYPE_CHECKING:
    from se_deploy.cli.parameters import Given

Shape = tuple[int, ...]


class TensorFormat(Notation[tuple[str, str]]):
    """An input or output and how it lies in memory: input:HWC8."""

    name = "NAME:FORMAT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return (name, TensorRT's name of the format); the format stands behind the last colon."""
        if isinstance(value, tuple):
            return value
        name, _, form = str(value).rpartition(":")
        known = (
            "LINEAR",
            "HWC",
            "HWC8",
            "HWC16",
            "DHWC",
            "DHWC8",
            "CHW2",
            "CHW4",
            "CHW16",
            "CHW32",
            "CDHW32",
        )
        if not name or form.upper() not in known:
            self.fail(f"'{value}' is no NAME:FORMAT; the formats are {', '.join(known)}", param, ctx)
        return name, form.upper()


_workspace = optional("--workspace", Bytes(), "Memory that the compiler may use, as 2GiB.")
_timing_cache = optional("--timing-cache", OUT_FILE, "Cache that full TensorRT reads and writes.")
_tf32 = switch("--tf32", "Let FP32 layers round their inputs to TF32.")
_level = optional("--optimization-level", click.IntRange(0, 5), "How long to look for faster kernels; 3.")
_version_compatible = switch("--version-compatible", "Let newer TensorRT load the engine.")
_hardware = optional(
    "--hardware-compatibility", click.Choice(COMPATIBILITIES), "Let GPUs of other models load the engine."
)
_sparsity = switch("--sparsity", "Use kernels for weights that are 2:4 sparse.")
_refit = switch("--refit", "Let the engine take other weights later.")
_strip = switch("--strip-weights", "Leave weights out; they come from the ONNX file beside it when it loads.")
_streaming = switch("--weight-streaming", "Let weights stay in host memory.")
_dla = optional("--dla-core", click.IntRange(min=0), "Use this DLA core where it can, else the GPU.")
_io = defaulted("--io", click.Choice(FLOAT_TYPES), "fp32", "Type of inputs and outputs, with --fp16.")
_formats = repeated(
    "--io-format formats", TensorFormat(), "How an input or output lies in memory; repeatable."
)
_best_of = defaulted(
    "--best-of", click.IntRange(min=1), 1, "Build so many times, keep the fastest on the device."
)


def profiles(given: Given) -> list[dict[str, ShapeRange]]:
    """Join smallest, tuned and largest shapes by input; a missing one is the nearest that was given.

    The second time that an input is named is of the second optimization profile, and so on; one that is named
    less often has its last shape in the rest.
    """
    bounds = (options.min_shapes, options.opt_shapes, options.max_shapes)
    low, opt, high = ([*part.of(given)] for part in bounds)
    names = sorted({name for name, _ in (*low, *opt, *high)})
    most = max((len(_of(shapes, name)) for shapes in (low, opt, high) for name in names), default=1)
    return [{name: _profile(name, k, low, opt, high) for name in names} for k in range(most)]


def _of(shapes: list[tuple[str, Shape]], name: str) -> list[Shape]:
    return [shape for one, shape in shapes if one == name]


def _profile(name: str, k: int, *bounds: list[tuple[str, Shape]]) -> ShapeRange:
    low, opt, high = (
        given[min(k, len(given) - 1)] if (given := _of(shapes, name)) else None for shapes in bounds
    )
    best = opt or low or high or ()
    return ShapeRange(low or best, best, high or best)


def _engine(given: Given) -> EngineOptions:
    first, *more = profiles(given)
    return EngineOptions(
        first,
        _workspace.of(given),
        _timing_cache.of(given),
        tuple(more),
        _io.of(given),
        EngineFeatures(
            tf32=_tf32.of(given),
            optimization_level=_level.of(given),
            version_compatible=_version_compatible.of(given),
            hardware_compatibility=_hardware.of(given),
            sparsity=_sparsity.of(given),
            refit=_refit.of(given),
            strip_weights=_strip.of(given),
            weight_streaming=_streaming.of(given),
            dla_core=_dla.of(given),
            io_formats=dict(_formats.of(given)),
            plugins=options.plugins.of(given),
            best_of=_best_of.of(given),
        ),
    )


engine = group(
    "engine",
    _engine,
    options.min_shapes,
    options.opt_shapes,
    options.max_shapes,
    _workspace,
    _timing_cache,
    _tf32,
    _level,
    _version_compatible,
    _hardware,
    _sparsity,
    _refit,
    _strip,
    _streaming,
    _dla,
    _io,
    _formats,
    options.plugins,
    _best_of,
    section=Section.ENGINE,
)
