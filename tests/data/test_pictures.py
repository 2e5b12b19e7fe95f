import io

import numpy as np
import pytest
from PIL import Image

from se_deploy.data import pictures, preprocessing
from se_deploy.schema.input_spec import InputSpec, frames

SPEC = InputSpec("image", 3, 20, 30, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def read(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("spec", [SPEC, frames(SPEC, "NHWC"), InputSpec("x", 1, 20, 30, (0.1,), (0.3,))])
def test_what_was_fed_is_the_picture_again(spec):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 30, spec.channels), dtype=np.uint8).squeeze()
    fed = preprocessing.to_sample(Image.fromarray(pixels), spec)
    assert (read(pictures.thumbnail(fed, spec)) == pixels).all()


def test_large_ones_are_small_and_others_are_none():
    spec = InputSpec("image", 3, 480, 640, (0.0,) * 3, (1.0,) * 3)
    assert read(pictures.thumbnail(np.zeros((3, 480, 640), np.float32), spec)).shape == (72, 96, 3)
    assert pictures.thumbnail(np.zeros((3, 8, 8), np.float32), spec) is None
    assert pictures.thumbnail(np.full((3, 20, 30), np.nan, np.float32), SPEC) is not None
