"""Inputs are regular files of a bounded size, and an error names the file and what to do."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from se_deploy import data, files, graph
from se_deploy.backends import manifest as manifests
from se_deploy.data import preprocessing
from se_deploy.errors import BadArtifact, BadData, BadInput, BadModel
from se_deploy.protocols import TensorSpec
from se_deploy.schema.input_spec import InputSpec

RGB = InputSpec("x", 3, 8, 8, (0.0,) * 3, (1.0,) * 3)
ROUNDED = 1.01  # a pixel's place is rounded otherwise, and with it one step of 255
MOVED = 0.05  # of the pixels: halfway between two, "nearest" takes the other one


@pytest.fixture
def pipe(tmp_path):
    """Make a pipe of a given name: who opens it to read waits for a writer."""

    def make(name):
        os.mkfifo(tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("name", "read", "error"),
    [
        ("a.onnx", graph.load, BadModel),
        ("a.npy", lambda path: data.read(path, [RGB]), BadData),
        ("a.npz", lambda path: data.read(path, [RGB]), BadData),
        ("a.tar", lambda path: data.read(path, [RGB]), BadData),
        ("a-ubyte", lambda path: data.read(path, [RGB]), BadData),
        ("a.txt", lambda path: data.read(path, [RGB]), BadData),
        ("a.png", lambda path: data.read(path, [RGB]), BadData),
        ("e.engine.json", lambda path: manifests.read(path.with_suffix("")), BadArtifact),
        ("a.bin", files.sha256, BadInput),
    ],
)
def test_a_pipe_is_refused_and_not_waited_for(pipe, name, read, error):
    with pytest.raises(error, match=f"{name}.*is a pipe, not a file"):
        read(pipe(name))


def test_a_pipe_among_images_can_be_skipped(pipe, tmp_path):
    pipe("b.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(BadData, match=r"b\.png.*a pipe"):
        data.read(tmp_path, [RGB])
    assert data.read(tmp_path, [RGB], skip_unreadable=True).count == 1


def test_a_device_is_refused():
    with pytest.raises(BadInput, match="'/dev/zero' is a device"):
        files.read_bytes(files.Path("/dev/zero"))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    with pytest.raises(BadInput, match="holds 11 bytes, at most 10 are read"):
        files.read_bytes(tmp_path / "a", most=10)
    assert files.read_bytes(tmp_path / "a", most=11) == bytes(11)


def test_an_image_is_measured_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("se_deploy.data.images.MOST_PIXELS", 63)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(BadData, match=r"a\.png.*8x8 pixels, at most 63"):
        data.read(tmp_path, [RGB])


@pytest.mark.parametrize("size", [(300, 2), (2, 300), (40, 30)])
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("rounding", ["down", "nearest"])
def test_only_what_the_crop_keeps_is_resized_and_is_the_same(monkeypatch, size, method, rounding):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    spec = InputSpec(
        "x", 3, 16, 24, (0.0,) * 3, (1.0,) * 3, interpolation=method, crop=0.9, rounding=rounding
    )
    whole = preprocessing.to_sample(Image.fromarray(noise), spec)
    monkeypatch.setattr(preprocessing, "_MOST_RESIZED", 0)
    part = preprocessing.to_sample(Image.fromarray(noise), spec)
    assert (np.abs(part - whole) * 255 > ROUNDED).mean() < MOVED


def test_an_input_of_no_images_size_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for spec in (
        InputSpec("x", 3, 2**40, 2**40, (0.0,) * 3, (1.0,) * 3),
        InputSpec("x", 3, 8, 8, (0.0,) * 3, (1.0,) * 3, crop=1e-300),
    ):
        with pytest.raises(BadData, match="no image is that large"):
            data.read(tmp_path, [spec])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_arrays_is_read_in_any_order(tmp_path, save):
    whole = np.arange(60, dtype=np.float32).reshape(20, 3)
    save(tmp_path / "a.npz", x=whole, labels=np.arange(20))
    samples = data.read(tmp_path / "a.npz", [TensorSpec("x", np.dtype(np.float32), (None, 3))])
    some = samples.take([19, 0, 7])
    np.testing.assert_array_equal(next(some.batches(3))["x"], whole[[19, 0, 7]])
    assert some.labels.tolist() == [19, 0, 7]
