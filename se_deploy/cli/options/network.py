"""The network: its weights, its inputs and their sizes, what an image is to it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from se_deploy.cli.options.data import seed
from se_deploy.cli.parameters import defaulted, group, optional, repeated, switch
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE, Batch, Declared, Dims, Floats, KeyValue, NamedDims, NumberRange
from se_deploy.options import DEFAULT_OPSET, INTERPOLATIONS, LAYOUTS, RESIZES, ImageOptions, NetworkOptions
from se_deploy.signature import Feeding

if TYPE_CHECKING:
    from se_deploy.cli.parameters import Given

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
_crop = optional("--crop", NumberRange(0, 1, min_open=True), "Fraction that the crop keeps.")
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
    batch = _batch.of(given)
    typed = click.get_current_context().get_parameter_source("batch") is ParameterSource.COMMANDLINE
    return dataclasses.replace(
        _weights(given), opset=_opset.of(given), batch=batch, free_batch=typed and batch is None
    )


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
