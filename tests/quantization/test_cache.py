"""A cache is used for what it was made for, or refused with the file, the field and the reason."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from ptq_graphs import FAST, RUNTIME, dataset, network

from se_deploy import graph, quantization
from se_deploy.backends import registry
from se_deploy.errors import BadInput
from se_deploy.quantization import cache
from se_deploy.quantization.qdq import QuantParams
from se_deploy.schema.files import Stamp

STAMP = Stamp(
    onnx_sha256="a", data_sha256="b", samples=8, policy="portable", method="auto", options="()", version="1"
)
MADE = cache.Cache(
    "mse",
    {
        "x": QuantParams(0.5),
        "conv/a.b": QuantParams(0.25, np.float32([0.5, -1]), np.float32([1, 2]), residual=False),
    },
    {"x": cache.Moments((0.0,), (1.0,)), "conv/a.b": cache.Moments((0.25, 0.5), (1.0, 2.0))},
    {"conv": 0.125},
)


@pytest.fixture
def path(tmp_path):
    cache.write(tmp_path / "cache.json", STAMP, MADE)
    return tmp_path / "cache.json"


def changed(path, tensor="x", **fields):
    content = json.loads(path.read_text())
    content["tensors"][tensor] |= fields
    path.write_text(json.dumps(content))


def test_a_cache_comes_back_as_it_was_written(path):
    found = cache.read(path, STAMP)
    assert (found.method, found.noise, found.moments) == ("mse", MADE.noise, MADE.moments)
    for name, params in MADE.params.items():
        assert (found.params[name].low, found.params[name].high) == (params.low, params.high)
    np.testing.assert_array_equal(found.params["conv/a.b"].offset, MADE.params["conv/a.b"].offset)
    assert cache.read(path.with_name("gone.json"), STAMP) is None


def test_a_cache_of_an_earlier_version_is_read(path):
    content = json.loads(path.read_text())
    assert content.pop("float_tensors") == {}
    assert content.pop("folded") == []
    assert set(content) == {"schema", "stamp", "method", "noise", "tensors"}
    assert content["tensors"]["x"].pop("reason") is None
    assert content["tensors"]["x"].pop("beside") == []
    assert set(content["tensors"]["x"]) == {
        "scale", "low", "high", "offset", "divisor", "residual", "mean", "variance",
    }  # fmt: skip
    path.write_text(json.dumps(content))
    assert cache.read(path, STAMP).float_tensors == {}


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
        ({"offset": [1.0, 2.0]}, r"'tensors\.x': its offset has 2 values for 1 channel"),
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


def test_the_cache_is_readable_and_gives_the_same_file(tmp_path):
    kept = tmp_path / "cache.json"
    samples = dataset(tmp_path)
    options = dataclasses.replace(FAST, float_macs=0.4)
    once = quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)
    content = json.loads(kept.read_text())
    assert set(content["tensors"]) == {"x", "b", "e", "l"}
    assert content["stamp"]["data_sha256"] == samples.sha256
    twice = quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)
    assert graph.to_bytes(once.model) == graph.to_bytes(twice.model)


@pytest.mark.parametrize("field", ["data_sha256", "onnx_sha256", "method", "version", "policy"])
def test_a_cache_of_something_else_is_refused_with_the_difference(tmp_path, field):
    kept = tmp_path / "cache.json"
    samples = dataset(tmp_path)
    quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST, calib_cache=kept)
    content = json.loads(kept.read_text())
    content["stamp"][field] = "another"
    kept.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=f"{field} is another"):
        quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST, calib_cache=kept)


@pytest.mark.parametrize("content", ["", "[]", '{"stamp": {}}', "no json"])
def test_what_is_no_cache_is_refused(tmp_path, content):
    kept = tmp_path / "cache.json"
    kept.write_text(content)
    with pytest.raises(BadInput, match="a calibration cache"):
        quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=FAST, calib_cache=kept)


@functools.cache
def cache_of_a_run():
    """What quantizing the network with its data keeps."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "cache.json"
        quantization.quantize(
            network(), dataset(Path(folder)), runtime=RUNTIME, options=FAST, calib_cache=kept
        )
        return kept.read_text()


def with_cache(tmp_path, change):
    """Quantize with a cache of an earlier run that `change` has edited."""
    kept, samples = tmp_path / "cache.json", dataset(tmp_path)
    content = json.loads(cache_of_a_run())
    change(content)
    kept.write_text(json.dumps(content))
    return quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST, calib_cache=kept)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", 0), ("scale", -0.1), ("scale", 65505), ("scale", float("nan")), ("scale", float("inf")),
        ("scale", None), ("scale", "0.1"), ("mean", [float("inf")] * 8), ("variance", [-1.0] * 8),
        ("divisor", [0.0] * 8), ("offset", [float("nan")] * 8), ("low", 1e9), ("offset", [0.0] * 7),
        ("variance", [0.0]),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_with_file_field_and_reason(tmp_path, field, value):
    with pytest.raises(BadInput) as refused:
        with_cache(tmp_path, lambda content: content["tensors"]["b"].update({field: value}))
    assert "cache.json" in refused.value.message
    assert "tensors.b" in refused.value.message
    assert field in refused.value.message
    assert "delete the cache" in refused.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", 1e-30), ("scale", 5e-8), ("mean", [1e30] * 8), ("variance", [1e30] * 8), ("low", -1e30),
        ("offset", [1e30] * 8), ("divisor", [1e30] * 8), ("beside", [{"tensor": "b", "scale": 1e-30,
        "readers": []}]),
    ],
)  # fmt: skip
def test_what_no_scale_of_half_precision_holds_is_refused(tmp_path, field, value):
    with pytest.raises(BadInput, match=rf"cache\.json', a calibration cache: 'tensors\.b\.{field}"):
        with_cache(tmp_path, lambda content: content["tensors"]["b"].update({field: value}))


def test_a_method_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"'method' is \"guess\""):
        with_cache(tmp_path, lambda content: content.update(method="guess"))


def test_a_tensor_that_adds_read_has_no_offset(path):
    changed(path, "conv/a.b", residual=True)
    with pytest.raises(BadInput, match=r"'tensors\.conv/a\.b': it is residual"):
        cache.read(path, STAMP)


@pytest.mark.parametrize(
    ("tensor", "reader", "said"),
    [
        ("nothing", None, r"tensors\.b\.beside\[0\] names 'nothing', which the graph does not"),
        ("b", "nobody", r"tensors\.b\.beside\[0\] reads 'b' in 'nobody', which the graph does not"),
    ],
)
def test_a_pair_that_does_not_fit_the_graph_is_refused(tmp_path, tensor, reader, said):
    pair = {"tensor": tensor, "scale": 0.1, "readers": [] if reader is None else [reader]}
    with pytest.raises(BadInput, match=said):
        with_cache(tmp_path, lambda content: content["tensors"]["b"].update(beside=[pair]))


def test_factors_that_leave_no_scale_for_weights_are_refused(tmp_path):
    kept, samples = tmp_path / "cache.json", dataset(tmp_path)
    options = dataclasses.replace(FAST, policy=registry.policy("tensorrt"))
    quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)
    content = json.loads(kept.read_text())
    for entry in content["folded"]:
        entry["divisor"] = [1e-30] * len(entry["divisor"])
    kept.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="its factors do not fit the graph: "):
        quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)


def test_a_cache_without_a_tensor_that_a_layer_reads_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"tensors\.e is missing"):
        with_cache(tmp_path, lambda content: content["tensors"].pop("e"))


def test_a_cache_of_other_channels_is_refused(tmp_path):
    def shorten(content):
        entry = content["tensors"]["e"]
        for field in ("mean", "variance", "offset", "divisor"):
            entry[field] = entry[field] and entry[field][:3]

    with pytest.raises(BadInput, match=r"tensors\.e has 3 channels, not 8"):
        with_cache(tmp_path, shorten)


def test_a_cache_without_the_noise_of_a_layer_is_refused(tmp_path):
    options = dataclasses.replace(FAST, float_macs=0.4)
    kept, samples = tmp_path / "cache.json", dataset(tmp_path)
    quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)
    content = json.loads(kept.read_text())
    node, _ = content["noise"].popitem()
    kept.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=f"noise.{node} is missing"):
        quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)


def test_factors_in_the_weights_come_back_from_the_cache(tmp_path):
    kept, samples = tmp_path / "cache.json", dataset(tmp_path)
    options = dataclasses.replace(FAST, policy=registry.policy("tensorrt"))
    once = quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)
    folded = json.loads(kept.read_text())["folded"]
    assert {tensor for entry in folded for tensor in entry["tensors"]} & {"b", "e"}
    twice = quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)
    assert graph.to_bytes(once.model) == graph.to_bytes(twice.model)


def test_factors_that_do_not_fit_the_graph_are_refused(tmp_path):
    kept, samples = tmp_path / "cache.json", dataset(tmp_path)
    options = dataclasses.replace(FAST, policy=registry.policy("tensorrt"))
    quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)
    content = json.loads(kept.read_text())
    content["folded"][0]["divisor"].append(1.0)
    kept.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="do not fit the graph"):
        quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=kept)
