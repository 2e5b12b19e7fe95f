from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from se_deploy.errors import BadInput, BadModel
from se_deploy.options import ImageOptions, read_labels
from se_deploy.schema import input_spec

SPEC = input_spec.InputSpec(
    "x", 3, 32, 48, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "squash", 0.9, labels=("a", "b")
)


def test_the_spec_survives_the_metadata():
    metadata = {}
    input_spec.write(metadata, SPEC)
    assert input_spec.read(metadata) == SPEC
    assert input_spec.read({}) is None


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}', '{"mean": 3}'])
def test_foreign_metadata_is_named(text):
    with pytest.raises(BadModel, match=r"se_deploy\.input"):
        input_spec.read({input_spec.METADATA_KEY: text})


def test_flags_replace_single_fields():
    changed = ImageOptions(mean=(0.0, 0.0, 0.0), crop=0.5).applied(SPEC)
    assert changed is not None
    assert (changed.mean, changed.crop, changed.std) == ((0.0, 0.0, 0.0), 0.5, SPEC.std)


def test_without_a_spec_the_size_is_needed():
    assert ImageOptions(mean=(0.5,)).applied(None) is None
    made = ImageOptions(size=(1, 8, 8), mean=(0.5,)).applied(None)
    assert made is not None
    assert (made.shape, made.mean, made.std) == ((1, 8, 8), (0.5,), (1.0,))


def test_a_mean_of_the_wrong_length_is_refused():
    with pytest.raises(BadInput, match="--mean has 1 value for 3 channels"):
        ImageOptions(mean=(0.5,)).applied(SPEC)


def test_labels_are_lines_or_json(tmp_path):
    (tmp_path / "l.txt").write_text("cat\ndog\n")
    (tmp_path / "l.json").write_text('["cat", "dog"]')
    assert read_labels(tmp_path / "l.txt") == read_labels(tmp_path / "l.json") == ("cat", "dog")
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(BadInput, match=r"bad\.json"):
        read_labels(tmp_path / "bad.json")


def spec_text(**fields):
    metadata = {}
    input_spec.write(metadata, SPEC)
    return json.dumps({**json.loads(metadata[input_spec.METADATA_KEY]), **fields})


def test_keys_of_the_contract_are_always_written_and_later_ones_where_they_say_something():
    plain = input_spec.InputSpec("x", 1, 8, 8, (0.0,), (1.0,))
    metadata = {}
    input_spec.write(metadata, plain)
    assert set(json.loads(metadata[input_spec.METADATA_KEY])) == {
        "name", "channels", "height", "width", "mean", "std", "resize", "crop", "interpolation", "layout",
        "labels",
    }  # fmt: skip
    input_spec.write(metadata, replace(plain, antialias=False))
    assert json.loads(metadata[input_spec.METADATA_KEY])["antialias"] is False


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"channels": 0}, "'channels' is 0"),
        ({"resize": "stretch"}, "'resize' is \"stretch\": invalid enum value 'stretch'"),
        ({"std": [1.0, 0.0, 1.0]}, r"'std\[1\]' is 0.0: expected `float` > 0.0"),
        ({"mean": [0.5]}, "its mean is no finite number for each of 3 channels"),
        ({"antialias": False, "interpolation": "bicubic"}, "only bilinear exists without antialiasing"),
        ({"crop": float("nan")}, "'crop' is NaN"),
        ({"resize_size": [8]}, "'resize_size': expected `array` of length 2"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(fields, said):
    with pytest.raises(BadModel, match=said):
        input_spec.read({input_spec.METADATA_KEY: spec_text(**fields)})


def test_a_key_of_a_newer_version_is_no_obstacle():
    assert input_spec.read({input_spec.METADATA_KEY: spec_text(colour="sRGB")}) == SPEC


def test_an_older_file_is_read_as_it_was_written():
    text = (
        '{"name": "x", "channels": 1, "height": 4, "width": 5, "mean": [0.5], "std": [1], '
        '"resize": "squash", "crop": 0.9, "interpolation": "bicubic", "layout": "NHWC", "labels": ["a"]}'
    )
    assert input_spec.read({input_spec.METADATA_KEY: text}) == input_spec.InputSpec(
        "x", 1, 4, 5, (0.5,), (1,), "squash", 0.9, "bicubic", "NHWC", ("a",)
    )


def test_flags_decide_what_is_resized_to():
    spec = replace(SPEC, resize_size=(40, 60))
    assert ImageOptions(crop=0.5).applied(spec).resize_size is None
    assert ImageOptions(resize="shortest").applied(spec).resize_size is None
    assert ImageOptions(mean=(0.0,) * 3).applied(spec).resize_size == (40, 60)


def test_another_size_is_the_flag_s():
    spec = replace(SPEC, resize_size=(40, 60))
    sized = ImageOptions(size=(1, 64, 96)).applied(spec)
    assert (sized.shape, sized.resize_size, sized.crop) == ((1, 64, 96), None, SPEC.crop)
    assert sized.mean == (pytest.approx(0.2),)
    assert ImageOptions(size=spec.shape).applied(spec) == spec


def test_another_filter_is_one_of_pillow_s_and_antialiases():
    spec = ImageOptions(interpolation="bicubic").applied(replace(SPEC, antialias=False))
    assert (spec.interpolation, spec.antialias) == ("bicubic", True)
    assert ImageOptions(crop=0.5).applied(replace(SPEC, antialias=False)).antialias is False


@pytest.mark.parametrize("std", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (float("nan"),) * 3])
def test_a_deviation_that_cannot_be_divided_by_is_refused(std):
    with pytest.raises(BadInput, match="is not above 0"):
        ImageOptions(std=std).applied(SPEC)


FRAMES = input_spec.frames(SPEC, "NHWC")


def test_frames_say_in_their_mean_and_std_that_pixels_stay_as_they_are():
    assert (FRAMES.element, FRAMES.dims, FRAMES.labels) == ("uint8", (32, 48, 3), SPEC.labels)
    black, white = (((pixel - FRAMES.mean[0]) / FRAMES.std[0]) for pixel in (0.0, 1.0))
    assert (black, white) == (0.0, 255.0)
    metadata = {}
    input_spec.write(metadata, FRAMES)
    assert input_spec.read(metadata) == FRAMES
    assert "element" not in spec_text()


def test_frames_that_are_normalized_outside_are_refused():
    with pytest.raises(BadModel, match="their mean is 0 and their std 1/255"):
        input_spec.read({input_spec.METADATA_KEY: spec_text(element="uint8")})
    for flags in (ImageOptions(mean=(0.5,) * 3), ImageOptions(std=(0.5,) * 3)):
        with pytest.raises(BadInput, match="the graph normalizes itself"):
            flags.applied(FRAMES)


@pytest.mark.parametrize("size", [(3, 8, 9), (1, 8, 9), (4, 8, 9)])
def test_frames_of_another_size_are_frames(size):
    sized = ImageOptions(size=size).applied(FRAMES)
    assert (sized.shape, sized.element) == (size, "uint8")
    assert (sized.mean, sized.std) == ((0.0,) * size[0], (input_spec.RAW_STD,) * size[0])


def test_the_layout_of_a_flag_replaces_that_of_the_spec():
    assert ImageOptions(layout="NHWC").applied(SPEC).dims == (32, 48, 3)
    assert ImageOptions(layout="NCHW").applied(FRAMES).dims == (3, 32, 48)
