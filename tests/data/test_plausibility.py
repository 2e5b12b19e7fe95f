"""Data that was prepared in another way is warned of; data that was prepared right, and noise, are not."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from photographs import photographs
from PIL import Image

from se_deploy import data
from se_deploy.data import plausibility
from se_deploy.protocols import TensorSpec
from se_deploy.schema.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec

IMAGENET = InputSpec("x", 3, 32, 32, IMAGENET_MEAN, IMAGENET_STD)
HALF = InputSpec("x", 3, 32, 32, (0.5,) * 3, (0.5,) * 3)
PLAIN = InputSpec("x", 3, 32, 32, (0.0,) * 3, (1.0,) * 3)


def pixels(count=32):
    """Photograph-like images in [0, 1], (N, H, W, C), whose mean colour is ImageNet's."""
    (photograph, *_) = photographs().values()
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        left, top = rng.integers(0, 200, 2)
        made.append(
            np.asarray(photograph.crop((left, top, left + 200, top + 200)).resize((32, 32)), float) / 255
        )
    made = np.stack(made)
    made += np.array(IMAGENET_MEAN) - made.mean(axis=(0, 1, 2))
    made[:, :1, :2] = (0.0,), (1.0,)  # black and white somewhere, as in nearly every photograph
    return np.clip(made, 0, 1)


def doubts(values, spec):
    """What is said of (N, H, W, C) values."""
    array = np.moveaxis(values, -1, 1).astype(np.float32)
    return plausibility.array_doubts([array[:10], array[10:]], spec)


def prepared(spec):
    return (pixels() - np.array(spec.mean)) / np.array(spec.std)


@pytest.mark.parametrize("spec", [IMAGENET, HALF, PLAIN])
def test_data_prepared_as_the_network_wants_it_is_not_warned_of(spec):
    assert doubts(prepared(spec), spec) == ()


@pytest.mark.parametrize("spec", [IMAGENET, HALF, PLAIN])
def test_normal_noise_is_not_warned_of(spec):
    noise = np.random.default_rng(0).standard_normal((20, 32, 32, 3))
    assert doubts(noise * (0.5 if spec is HALF else 1), spec) == ()  # HALF's whole range is [-1, 1]


@pytest.mark.parametrize(
    ("spec", "values", "looks_like"),
    [
        (PLAIN, pixels() * 255, "bytes from 0 to 255"),
        (IMAGENET, pixels() * 255, "bytes from 0 to 255"),
        (IMAGENET, pixels(), "pixels before normalization"),
        (HALF, pixels(), "pixels before normalization"),
        (IMAGENET, pixels() * 2 - 1, "pixels scaled to [-1, 1]"),
        (HALF, prepared(IMAGENET), "beyond what images give"),
        (IMAGENET, pixels() * 255 - 123.7, "beyond what images give"),
        (IMAGENET, prepared(IMAGENET) * 0.2 - 1.7, "far from the 0"),
        (IMAGENET, (pixels()[..., ::-1] - IMAGENET_MEAN) / IMAGENET_STD, "opposite order: blue, green, red"),
    ],
)
def test_data_prepared_in_another_way_is_warned_of(spec, values, looks_like):
    (warning,) = doubts(values, spec)
    assert looks_like in warning


def test_few_images_have_a_colour_of_their_own():
    blue = ((pixels()[..., ::-1] - IMAGENET_MEAN) / IMAGENET_STD)[:15]
    assert doubts(blue, IMAGENET) == ()


def test_integers_are_not_judged():
    assert plausibility.array_doubts([np.zeros((2, 3, 4, 4), np.uint8)], IMAGENET) == ()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_arrays_on_disk_are_looked_at_in_the_network_s_layout(tmp_path, layout):
    spec = InputSpec("x", 3, 32, 32, IMAGENET_MEAN, IMAGENET_STD, layout=layout)
    values = pixels()[..., ::-1] if layout == "NHWC" else np.moveaxis(pixels()[..., ::-1], -1, 1)
    shape = (-1, 1, 1) if layout == "NCHW" else (-1,)
    values = (values - np.reshape(IMAGENET_MEAN, shape)) / np.reshape(IMAGENET_STD, shape)
    np.save(tmp_path / "x.npy", values.astype(np.float32))
    (warning,) = data.read(tmp_path / "x.npy", [spec]).warnings
    assert "blue, green, red" in warning
    tensor = TensorSpec("x", np.dtype(np.float32), (None, *values.shape[1:]))
    assert data.read(tmp_path / "x.npy", [tensor]).warnings == ()
    assert data.read(tmp_path / "x.npy", [tensor], image=spec).warnings == (warning,)


def test_a_mean_of_bytes_is_warned_of_with_images_too(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    bytes_ = InputSpec("x", 3, 8, 8, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    (warning,) = data.read(tmp_path, [bytes_]).warnings
    assert "divide both by 255" in warning
    assert data.read(tmp_path, [IMAGENET]).warnings == ()
