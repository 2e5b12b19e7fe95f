"""Options that several commands share: single flags, and groups that reach a command as one dataclass."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from se_deploy.cli.output import Reporter
from se_deploy.cli.parameters import (
    IGNORED,
    count,
    defaulted,
    group,
    on_off,
    optional,
    repeated,
    required,
    switch,
)
from se_deploy.cli.sections import Section
from se_deploy.cli.types import (
    IN_FILE,
    IN_PATH,
    OUT_DIR,
    OUT_FILE,
    Batch,
    Declared,
    Dims,
    Floats,
    KeyValue,
    KindOfOutput,
    Limit,
    NamedDims,
    Pattern,
    PolicyName,
    RewriteNames,
    RuntimeName,
    Share,
    TargetName,
)
from se_deploy.options import (
    DEFAULT_OPSET,
    DEVICES,
    INTERPOLATIONS,
    LAYOUTS,
    METHODS,
    OUTPUT_KINDS,
    PRECISIONS,
    RESIZES,
    SEARCH_PLANS,
    CalibrationOptions,
    HostOptions,
    ImageOptions,
    Limits,
    NetworkOptions,
    RewriteOptions,
    SampleOptions,
    TargetOptions,
    TimingOptions,
)
from se_deploy.signature import Feeding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from se_deploy.cli.parameters import Given, Part
    from se_deploy.options import Precision
    from se_deploy.schema.common import OutputKind

_DATA = "images, .npy/.npz, WAV files, folders of frames, ..."

output_onnx = required("-o --output", OUT_FILE, "ONNX file to write.", section=Section.OUTPUT)
output_engine = required("-o --output", OUT_FILE, "Engine to write.", section=Section.OUTPUT)
output_folder = required("-o --output", OUT_DIR, "Folder to fill.", section=Section.OUTPUT)
_KINDS = f"What an output is, where the guess is wrong: one of {', '.join(OUTPUT_KINDS)}."
_output_kinds = repeated("--output", KindOfOutput(), _KINDS, section=Section.LIMITS)
kinds = group("kinds", lambda given: by_name(_output_kinds.of(given)), _output_kinds)


def by_name(typed: Iterable[tuple[str, OutputKind]]) -> dict[str, OutputKind]:
    """Return the kinds of outputs by name. Raises: click.UsageError where one has two."""
    found: dict[str, OutputKind] = {}
    for name, kind in typed:
        if found.setdefault(name, kind) != kind:
            raise click.UsageError(f"--output takes '{name}' as {found[name]} and as {kind}")
    return found


output_page = optional(
    "-o --output", OUT_FILE, "Write the comparison as one HTML page.", section=Section.OUTPUT
)
demo_folder = defaulted("-o --output", OUT_DIR, Path("out"), "Folder to fill.", section=Section.OUTPUT)
overwrite = switch("--overwrite", "Replace output files that exist.", section=Section.OUTPUT)
verify = on_off(
    "--verify/--no-verify",
    "Compare what is written with what was given; without it the result says so.",
    section=Section.OUTPUT,
)
dry_run = switch(
    "--dry-run", "Check the arguments, say what would be done, and write nothing.", section=Section.OUTPUT
)
junit = optional("--junit", OUT_FILE, "Write the verdicts as JUnit XML.", section=Section.OUTPUT)
seed = defaulted("--seed", click.INT, 0, "Seed of everything random.", section=Section.DATA)
_require_benefit = switch(
    "--require-benefit", "Exit with 3 where INT8 is not planned to be cheaper than FP16."
)
threads = defaulted(
    "--threads", click.IntRange(min=0), 0, "CPU threads; 0: the runtime's own choice.", section=Section.HOST
)
samples = optional(
    "--samples", click.IntRange(min=1), "Largest number of samples to use.", section=Section.DATA
)
skip_unreadable = switch(
    "--skip-unreadable", "Count unreadable files in a warning instead of failing.", section=Section.DATA
)

_verbose = count("-v --verbose", "Print each step on stderr.")
_json = switch("--json as_json", "Print one JSON object on stdout.")
_quiet = switch("-q --quiet", "Print nothing but errors on stderr.")
_strict = switch("--strict", "Treat every warning as an error and every verdict as a gate.")


def reporter(*gates: str, benefit: bool = False) -> Part[Reporter]:
    """Return --json, -v, -q, --strict, and --gate where the command has verdicts to gate on.

    `benefit` adds --require-benefit, the gate on whether INT8 pays.
    """
    gate = repeated("--gate gates", click.Choice(gates), "Exit with 3 where this verdict fails.")

    def make(given: Given) -> Reporter:
        asked = [*(gate.of(given) if gates else ())]
        if benefit and _require_benefit.of(given):
            asked.append("benefit")
        return Reporter(
            as_json=_json.of(given),
            verbose=_verbose.of(given),
            quiet=_quiet.of(given),
            strict=_strict.of(given),
            gates=frozenset("fusion" if name == "fused" else name for name in asked),
            ignored=cast("tuple[str, ...]", given[IGNORED]),
        )

    own = [*([gate] if gates else []), *([_require_benefit] if benefit else [])]
    return group("reporter", make, *own, _json, _verbose, _quiet, _strict, section=Section.REPORTING)


_device = defaulted("--device", click.Choice(DEVICES), "cpu", "Where PyTorch and ONNX Runtime run.")


plugins = repeated(
    "--plugin plugins", IN_FILE, "Shared library with operators that an engine has; repeatable."
)


def _host(given: Given) -> HostOptions:
    return HostOptions(threads.of(given), _device.of(given), plugins.of(given))


host = group("host", _host, threads, _device, plugins, section=Section.HOST)


def _host_cpu(given: Given) -> HostOptions:
    return HostOptions(threads.of(given))


host_cpu = group("host", _host_cpu, threads, section=Section.HOST)
"""Of a command that runs on the CPU only."""

host_engine = group(
    "host",
    lambda given: HostOptions(threads.of(given), plugins=plugins.of(given)),
    threads,
    plugins,
    section=Section.HOST,
)
"""Of a command that runs on the CPU, or an engine on its GPU."""

min_shapes = repeated("--min-shapes", NamedDims(), "Smallest shape of an input.", section=Section.INPUT)
opt_shapes = repeated(
    "--opt-shapes", NamedDims(), "Shape of an input to tune, plan and time for.", section=Section.INPUT
)
max_shapes = repeated("--max-shapes", NamedDims(), "Largest shape of an input.", section=Section.INPUT)


def tuned(given: Given) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input that --opt-shapes names; of several, as for profiles, the first."""
    return dict(reversed(opt_shapes.of(given)))


_checkpoint = optional("--checkpoint", IN_FILE, "Weights: safetensors or a .pth state dict.")
_model_args = repeated("--model-arg model_args", KeyValue(), "Argument of the network's constructor.")
_pretrained = switch("--pretrained", "Let timm or torchvision load its own weights.")
_input_size = optional("--input-size", Dims(), "Size of the input, as 3x224x224.", section=Section.INPUT)
_inputs = repeated(
    "--input inputs",
    Declared(),
    "An input's sizes, free ones by name (N is the batch); repeatable.",
    section=Section.INPUT,
)
_example = optional(
    "--example", IN_FILE, "Example arrays by input name (.npz) to export with.", section=Section.INPUT
)
_opset = optional(
    "--opset",
    click.IntRange(11, 26),
    f"Operator set to write; default: {DEFAULT_OPSET}, or that of the ONNX file.",
    section=Section.OUTPUT,
)
_batch = defaulted("--batch", Batch(), "dynamic", "Batch size to freeze, or dynamic.", section=Section.INPUT)


_mean = optional("--mean", Floats(), "Mean of pixels in [0, 1], per channel, to subtract.")
_std = optional("--std", Floats(), "Standard deviation of pixels, per channel, to divide by.")
_resize = optional("--resize", click.Choice(RESIZES), "How an image gets its size.")
_crop = optional("--crop", click.FloatRange(0, 1, min_open=True), "Fraction that the crop keeps.")
_interpolation = optional("--interpolation", click.Choice(INTERPOLATIONS), "Filter of the resize, Pillow's.")
_layout = optional(
    "--layout",
    click.Choice(LAYOUTS),
    "Order of the image's dimensions, overrules the graph.",
    section=Section.IMAGE,
)
_labels = optional("--labels", IN_FILE, "Class names, one a line, or a JSON list.", section=Section.IMAGE)


def _image(given: Given) -> ImageOptions:
    return ImageOptions(
        mean=_mean.of(given),
        std=_std.of(given),
        resize=_resize.of(given),
        crop=_crop.of(given),
        labels=_labels.of(given),
        size=_input_size.of(given),
        interpolation=_interpolation.of(given),
        inputs=_inputs.of(given),
        layout=_layout.of(given),
    )


image = group(
    "image",
    _image,
    _mean,
    _std,
    _resize,
    _crop,
    _interpolation,
    _layout,
    _labels,
    _input_size,
    _inputs,
    section=Section.IMAGE,
)


def _weights(given: Given) -> NetworkOptions:
    return NetworkOptions(
        checkpoint=_checkpoint.of(given),
        model_args=dict(_model_args.of(given)),
        pretrained=_pretrained.of(given),
        input_size=_input_size.of(given),
        feeding=Feeding(_inputs.of(given), _example.of(given), tuned(given)),
        seed=seed.of(given),
    )


def _exported(given: Given) -> NetworkOptions:
    return dataclasses.replace(_weights(given), opset=_opset.of(given), batch=_batch.of(given))


_weight_flags = (
    _checkpoint, _model_args, _pretrained, _input_size, _inputs, _example, opt_shapes, seed,
)  # fmt: skip

of_export = (_opset, _batch)
"""Flags of the graph that is written: parity and profile take them, and they have no effect there."""

_bake = switch(
    "--bake-preprocessing",
    "Put layout, scale, mean and std into the graph: it then takes uint8 NHWC frames.",
    section=Section.IMAGE,
)

written_network = group(
    "network",
    lambda given: dataclasses.replace(
        _exported(given), image=_image(given), bake_preprocessing=_bake.of(given)
    ),
    *_weight_flags,
    _opset,
    _batch,
    image,
    _bake,
    section=Section.NETWORK,
)
"""Of a command that writes the network as ONNX."""

fed_network = group(
    "network",
    lambda given: dataclasses.replace(_weights(given), image=_image(given)),
    *_weight_flags,
    image,
    section=Section.NETWORK,
)
"""Of a command that feeds data to a network and writes none."""


def _sizes_only(given: Given) -> ImageOptions:
    return ImageOptions(size=_input_size.of(given), inputs=_inputs.of(given), layout=_layout.of(given))


timed_network = group(
    "network",
    lambda given: dataclasses.replace(_weights(given), image=_sizes_only(given)),
    *_weight_flags,
    _layout,
    section=Section.NETWORK,
)
"""Of a command that feeds random numbers: of an image it needs the size only."""

_precision = optional("--precision", click.Choice(PRECISIONS), "Precision of weights and activations.")
_fp16 = switch("--fp16", "Short for --precision fp16.")
_bf16 = switch("--bf16", "Short for --precision bf16: as fast as FP16, without its overflow, less exact.")
_int8 = switch("--int8", "Short for --precision int8.")


def _chosen(given: Given) -> Precision | None:
    """Join --precision with its short forms. Raises: click.UsageError where they contradict."""
    asked: dict[Precision, str] = {}
    if (named := _precision.of(given)) is not None:
        asked[named] = f"--precision {named}"
    if _fp16.of(given):
        asked.setdefault("fp16", "--fp16")
    if _bf16.of(given):
        asked.setdefault("bf16", "--bf16")
    if _int8.of(given):
        asked.setdefault("int8", "--int8")
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(asked.values())} contradict each other")
    return next(iter(asked), None)


precision = group("precision", _chosen, _precision, _fp16, _bf16, _int8, section=Section.PRECISION)

_runtime = defaulted("--runtime", RuntimeName(), "auto", "Runtime to serve.")
_targets = repeated(
    "--target targets",
    TargetName(),
    "Compute capability (sm86) or device (orin-nano) to build for; repeatable.",
)


_rewrites = optional("--rewrites", RewriteNames(), "Apply these exact rewrites only, unmeasured ones too.")
_no_rewrites = switch("--no-rewrites", "Leave the canonical form as it is.")
_search_plans = defaulted(
    "--search-plans",
    click.IntRange(min=0),
    SEARCH_PLANS,
    "Plans that the search for the cheapest form may ask for.",
)
_replay = optional("--replay", IN_FILE, "Apply the choices that an earlier search saved.")
_search_seconds = optional("--search-seconds", click.FloatRange(min=0), "End the search early.")


def _rewriting(given: Given) -> RewriteOptions:
    asked = {
        "--no-rewrites": _no_rewrites.of(given),
        "--rewrites": _rewrites.of(given),
        "--replay": _replay.of(given),
    }
    named = [flag for flag, value in asked.items() if value]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} contradict each other")
    names = _rewrites.of(given)
    if names:
        from se_deploy.passes import rewrites

        rewrites.check(names)
    return RewriteOptions(
        names=() if _no_rewrites.of(given) else names,
        search_plans=_search_plans.of(given),
        search_seconds=_search_seconds.of(given),
        replay=_replay.of(given),
    )


def _planned(given: Given, rewrites: RewriteOptions | None = None) -> TargetOptions:
    sizes = tuned(given)
    return TargetOptions(_runtime.of(given), _targets.of(given), rewrites or RewriteOptions(), sizes)


target = group("target", _planned, _runtime, _targets, opt_shapes, section=Section.TARGET)

rewritten_target = group(
    "target",
    lambda given: TargetOptions(_runtime.of(given), _targets.of(given), _rewriting(given)),
    _runtime,
    _targets,
    _rewrites,
    _no_rewrites,
    _search_plans,
    _replay,
    _search_seconds,
    section=Section.TARGET,
)
"""Of a command that rewrites the graph for the target."""

exported_target = group(
    "target",
    lambda given: _planned(given, _rewriting(given)),
    _runtime,
    _targets,
    opt_shapes,
    _rewrites,
    _no_rewrites,
    _search_plans,
    _replay,
    _search_seconds,
    section=Section.TARGET,
)
"""The same for a network whose sizes may be free."""

_calib_data = optional("--calib-data", IN_PATH, f"Samples to calibrate on: {_DATA}")
_calib_samples = optional("--calib-samples", click.IntRange(min=1), "Largest number of them to use.")
_calib_method = optional(
    "--calib-method",
    click.Choice(METHODS),
    "How ranges are clipped; default: the best on samples held back.",
)
_calib_cache = optional("--calib-cache", OUT_FILE, "Ranges as JSON, reused where everything matches.")
_exclude_nodes = optional("--exclude-nodes", Pattern(), "Keep matching nodes out of INT8.")
_allow_random = switch("--allow-random-calibration", "Without data, calibrate on noise; a warning says so.")
_policy = optional("--policy", PolicyName(), "Named placement of Q/DQ nodes; default: the target's.")
_min_sqnr = optional("--min-sqnr", click.FLOAT, "Keep layers in FP16, cheapest first, to reach this many dB.")
_max_drop = optional(
    "--max-drop", click.FLOAT, "Keep layers in FP16 until top-1 drops by at most this many points."
)
_keep = optional("--keep", Share(), "Share of the multiply-accumulates to keep in FP16, as 10%.")

_reconstruct = optional(
    "--reconstruct",
    click.FloatRange(min=0, min_open=True),
    "Seconds to train roundings in, block by block; needs PyTorch.",
    metavar="SECONDS",
)


def _calibration(given: Given) -> CalibrationOptions:
    return CalibrationOptions(
        data=_calib_data.of(given),
        samples=_calib_samples.of(given),
        method=_calib_method.of(given),
        cache=_calib_cache.of(given),
        exclude_nodes=_exclude_nodes.of(given),
        skip_unreadable=skip_unreadable.of(given),
        allow_random=_allow_random.of(given),
        policy=_policy.of(given),
        min_sqnr_db=_min_sqnr.of(given),
        max_drop_points=_max_drop.of(given),
        keep_fraction=_keep.of(given),
        reconstruct_s=_reconstruct.of(given),
        seed=seed.of(given),
    )


calibration = group(
    "calibration",
    _calibration,
    _calib_data,
    _calib_samples,
    _calib_method,
    _calib_cache,
    _exclude_nodes,
    skip_unreadable,
    _allow_random,
    _policy,
    _min_sqnr,
    _max_drop,
    _keep,
    _reconstruct,
    seed,
    section=Section.CALIBRATION,
)

_warmup_ms = defaulted("--warmup-ms", click.FloatRange(min=0), 200.0, "Untimed calls before the timed ones.")
_duration_s = defaulted("--duration-s", click.FloatRange(min=0), 3.0, "Seconds to time, at least.")
_iterations = defaulted("--iterations", click.IntRange(min=1), 10, "Calls to time, at least.")


def _timing(given: Given) -> TimingOptions:
    return TimingOptions(_warmup_ms.of(given), _duration_s.of(given), _iterations.of(given))


timing = group("timing", _timing, _warmup_ms, _duration_s, _iterations, section=Section.TIMING)

sized_timing = group(
    "timing",
    lambda given: dataclasses.replace(_timing(given), sizes=tuned(given)),
    opt_shapes,
    _warmup_ms,
    _duration_s,
    _iterations,
    section=Section.TIMING,
)
"""Of a command that times files whose sizes may be free."""


def _sampled(given: Given) -> SampleOptions:
    return SampleOptions(samples.of(given), skip_unreadable.of(given), seed.of(given))


sampled = group("samples", _sampled, samples, skip_unreadable, seed, section=Section.DATA)

_preset = optional("--preset", click.Choice(PRECISIONS), "Tolerances by precision.")
_atol = repeated("--atol", Limit(), "Largest absolute error.")
_rtol = repeated("--rtol", Limit(), "Largest error over the output's range.")
_min_cosine = optional("--min-cosine", click.FLOAT, "Smallest cosine between outputs.")
_min_top1 = optional("--min-top1", click.FLOAT, "Smallest share of equal answers, between 0 and 1.")
_min_iou = optional("--min-iou", click.FLOAT, "Smallest IoU of masks and of boxes, between 0 and 1.")


def _limits(given: Given) -> Limits:
    return Limits(
        preset=_preset.of(given),
        atol=_atol.of(given),
        rtol=_rtol.of(given),
        min_cosine=_min_cosine.of(given),
        min_top1=_min_top1.of(given),
        min_iou=_min_iou.of(given),
    )


limits = group(
    "limits", _limits, _preset, _atol, _rtol, _min_cosine, _min_top1, _min_iou, section=Section.LIMITS
)
