"""Images are prepared once while a command runs, and what is fed is what the file holds."""

import io

import numpy as np
import pytest
from PIL import Image

from se_deploy import data
from se_deploy.data import images, prepared
from se_deploy.data.images import ImageSource, SourceImage
from se_deploy.schema.input_spec import InputSpec

PLAIN = {"name": "input", "channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3}
SPEC = InputSpec(height=8, width=8, **PLAIN)


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (10, 10), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def decoded(monkeypatch):
    """Count the images that are decoded."""
    found = []
    monkeypatch.setattr(images, "decoder", lambda file: found.append(1) or Image.open(file))
    return found


def source(content, spec=SPEC):
    return ImageSource((SourceImage("a.png", lambda: content),), spec)


def test_an_image_is_decoded_once_in_a_scope_and_each_time_outside(decoded):
    with data.kept():
        first = source(png(9)).fetch([0])["input"]
        again = source(png(9)).fetch([0])["input"]
        assert len(decoded) == 1
        np.testing.assert_array_equal(first, again)
    source(png(9)).fetch([0])
    source(png(9)).fetch([0])
    assert len(decoded) == 3


def test_what_is_fed_may_be_written_into():
    with data.kept():
        source(png(9)).fetch([0])["input"][:] = 77
        assert source(png(9)).fetch([0])["input"].max() < 77


def test_another_file_and_another_way_to_prepare_it_are_other_samples(decoded):
    with data.kept():
        red = source(png(200)).fetch([0])["input"]
        black = source(png(0)).fetch([0])["input"]
        small = source(png(200), InputSpec(height=4, width=4, **PLAIN)).fetch([0])["input"]
    assert not np.array_equal(red, black)
    assert small.shape == (1, 3, 4, 4)
    assert len(decoded) == 3


def test_no_more_is_kept_than_fits_and_the_first_stay(decoded, monkeypatch):
    monkeypatch.setattr(prepared, "MOST_BYTES", 3 * 8 * 8 * 4)
    with data.kept():
        for value in (1, 2, 1, 2):
            source(png(value)).fetch([0])
    assert len(decoded) == 3


def test_scopes_in_scopes_end_with_the_outermost(decoded):
    with data.kept():
        with data.kept():
            source(png(9)).fetch([0])
        source(png(9)).fetch([0])
    with data.kept():
        source(png(9)).fetch([0])
    assert len(decoded) == 2


def test_what_is_kept_cannot_be_written_into():
    with data.kept():
        kept = prepared.of(b"file", "how", lambda: np.zeros(3))
        with pytest.raises(ValueError, match="read-only"):
            kept[0] = 1
