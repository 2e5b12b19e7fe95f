"""A cache is used for what it was made for, or refused with the file, the field and the reason."""

from __future__ import annotations

import json

import numpy as np
import pytest

from se_deploy.errors import BadInput
from se_deploy.quantization import cache
from se_deploy.quantization.qdq import QuantParams
from se_deploy.schema.files import Stamp

STAMP = Stamp(
    onnx_sha256="a", data_sha256="b", samples=8, policy="portable", method="auto", options="()", version="1"
)
MADE = cache.Cache(
    STAMP,
    "mse",
    {
        "x": QuantParams(0.5),
        "conv/a.b": QuantParams(0.25, np.float32([0.5, -1]), np.float32([1, 2]), residual=False),
    },
    {"x": ([0.0], [1.0]), "conv/a.b": ([0.25, 0.5], [1.0, 2.0])},
    {"conv": 0.125},
)


@pytest.fixture
def path(tmp_path):
    cache.write(tmp_path / "cache.json", MADE)
    return tmp_path / "cache.json"


def changed(path, tensor="x", **fields):
    content = json.loads(path.read_text())
    content["tensors"][tensor] |= fields
    path.write_text(json.dumps(content))


def test_a_cache_comes_back_as_it_was_written(path):
    found = cache.read(path, STAMP)
    assert (found.stamp, found.method, found.noise, found.moments) == (STAMP, "mse", MADE.noise, MADE.moments)
    for name, params in MADE.params.items():
        assert (found.params[name].low, found.params[name].high) == (params.low, params.high)
    np.testing.assert_array_equal(found.params["conv/a.b"].offset, MADE.params["conv/a.b"].offset)
    assert cache.read(path.with_name("gone.json"), STAMP) is None


def test_a_cache_of_an_earlier_version_has_the_same_keys(path):
    content = json.loads(path.read_text())
    assert set(content) == {"schema", "stamp", "method", "noise", "tensors"}
    assert set(content["tensors"]["x"]) == {
        "scale", "low", "high", "offset", "divisor", "residual", "mean", "variance",
    }  # fmt: skip


@pytest.mark.parametrize("scale", [0.0, -0.5, float("nan"), float("inf"), 65_505.0, None, "0.5"])
def test_a_wrong_scale_is_refused_with_its_tensor(path, scale):
    changed(path, "conv/a.b", scale=scale)
    with pytest.raises(BadInput, match=r"cache\.json', a calibration cache: 'tensors\.conv/a\.b\.scale' is"):
        cache.read(path, STAMP)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"divisor": [0.0]}, r"'tensors\.x\.divisor\[0\]' is 0.0: expected `float` > 0.0"),
        ({"variance": [-1.0]}, r"'tensors\.x\.variance\[0\]'"),
        ({"offset": [1.0, 2.0]}, r"'tensors\.x': its offset has 2 values for 1 channels"),
        ({"residual": 1}, r"'tensors\.x\.residual' is 1"),
    ],
)
def test_a_wrong_field_is_refused_with_its_reason(path, fields, said):
    changed(path, **fields)
    with pytest.raises(BadInput, match=said):
        cache.read(path, STAMP)


def test_a_cache_for_other_data_says_what_differs(path):
    other = Stamp(**{name: getattr(STAMP, name) for name in STAMP.__struct_fields__} | {"samples": 9})
    with pytest.raises(BadInput, match="does not fit: samples is 8, not 9"):
        cache.read(path, other)
