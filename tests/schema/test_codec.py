"""What a file may hold: refused with its name, the field, and the value that is there."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping

import pytest
from msgspec import Struct

from se_deploy import schema
from se_deploy.errors import BadData
from se_deploy.schema.files import LARGEST_SCALE, Scale


class Inner(Struct, frozen=True):
    scale: Scale
    dims: tuple[int, ...] = ()


class Outer(Struct, frozen=True, tag_field="schema", tag="test/1"):
    inner: Mapping[str, Inner]
    pairs: tuple[tuple[str, int], ...] = ()


def read(text):
    return schema.decode(text, Outer, what="'f.json', a test", error=BadData, hint="write it again")


def outer(**fields):
    return json.dumps(
        {"schema": "test/1", "inner": {"fine": {"scale": 1}, "a.b/c": {"scale": 2.0}}, **fields}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'f.json', a test, is no JSON"),
        ("{", "'f.json', a test, is no JSON"),
        ("[]", "expected `object`, got `array`"),
        ("{}", "it has no 'schema'"),
        ('{"schema": "test/2", "inner": {}}', "'schema' is \"test/2\": invalid value 'test/2'"),
        (
            outer(inner={"fine": {"scale": 1}, "a.b/c": {"scale": 0}}),
            "'inner.a.b/c.scale' is 0: expected `float` > 0.0",
        ),
        (
            outer(inner={"x": {"scale": 1, "dims": [1, "2"]}}),
            "'inner.x.dims[1]' is \"2\": expected `int`, got `str`",
        ),
        (outer(inner={"x": {"dims": []}}), "'inner.x': object missing required field `scale`"),
        (outer(pairs=[["a", 1], ["b"]]), "'pairs[1]': expected `array` of length 2, got 1"),
    ],
)
def test_a_refusal_names_the_file_the_field_and_the_value(text, said):
    with pytest.raises(BadData, match=r"f\.json") as refused:
        read(text)
    assert said in refused.value.message
    assert refused.value.hint == "write it again"


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 65_505.0, None, "1", True])
def test_a_scale_is_a_positive_number_that_fp16_holds(scale):
    with pytest.raises(BadData, match=r"'inner\.x\.scale' is "):
        read(outer(inner={"x": {"scale": scale}}))


@pytest.mark.parametrize("scale", [5e-324, 1, LARGEST_SCALE])
def test_the_ends_of_the_range_are_in_it(scale):
    assert read(outer(inner={"x": {"scale": scale}})).inner["x"].scale == scale


def test_keys_of_a_newer_version_are_ignored():
    assert read(outer(new={"a": 1})) == read(outer())


def test_a_name_of_any_letters_comes_back():
    value = Outer({"\N{CAT FACE}\udc80": Inner(0.1)}, (("ü", 1),))
    text = schema.encode(value)
    assert text.isascii()
    assert read(text) == value


def test_no_number_that_json_lacks_is_written():
    with pytest.raises(ValueError, match="JSON"):
        schema.encode(Outer({"x": Inner(math.nan)}))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(BadData, match=r"gone\.json', a test, cannot be read: No such file"):
        schema.load(tmp_path / "gone.json", Outer, what="a test", error=BadData, hint="write it")


def test_the_types_cost_no_heavy_import():
    heavy = {"numpy", "onnx", "onnx_ir", "torch", "onnxruntime", "rich", "jinja2"}
    code = f"import sys, se_deploy.schema; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
