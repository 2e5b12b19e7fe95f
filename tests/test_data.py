import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from se_deploy import data
from se_deploy.data import reading
from se_deploy.errors import BadData
from se_deploy.inputs import InputSpec
from se_deploy.protocols import TensorSpec

RGB = InputSpec("x", 3, 8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
GRAY = InputSpec("x", 1, 4, 4, (0.0,), (1.0,))
VECTOR = TensorSpec("x", np.dtype(np.float32), (None, 3))
PIXEL = 1 / 255  # one step of an 8-bit picture


def picture(path, value=128, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path)
    return path


def idx(path, array, *, zipped=False):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def all_of(samples, size=2):
    return np.concatenate([batch["x"] for batch in samples.batches(size)])


def test_a_folder_of_classes_gives_pictures_and_labels(tmp_path):
    for name, value in (("cat", 0), ("dog", 255)):
        for i in range(2):
            picture(tmp_path / name / f"{i}.png", value)
    samples = data.read(tmp_path, [RGB])
    assert samples.count == 4
    assert samples.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(all_of(samples)[:, 0, 0, 0], [-2, -2, 2, 2])
    assert all_of(samples).shape == (4, 3, 8, 8)


def test_class_folders_follow_the_networks_own_labels(tmp_path):
    spec = InputSpec("x", 3, 8, 8, RGB.mean, RGB.std, labels=("dog", "bird", "cat"))
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "dog" / "a.png")
    assert data.read(tmp_path, [spec]).labels.tolist() == [2, 0]


def test_folders_that_are_numbers_are_their_class(tmp_path):
    for name in ("10", "2"):
        picture(tmp_path / name / "a.png")
    assert data.read(tmp_path, [RGB]).labels.tolist() == [10, 2]


def test_a_limit_keeps_every_class(tmp_path):
    for name in "abcd":
        for i in range(5):
            picture(tmp_path / name / f"{i}.png")
    assert data.read(tmp_path, [RGB], limit=4).labels.tolist() == [0, 1, 2, 3]


@given(count=st.integers(1, 300), limit=st.integers(1, 300), seed=st.integers(0, 5))
@hypothesis_settings(deadline=None, max_examples=60)
def test_picks_are_distinct_ascending_and_one_of_each_stretch(count, limit, seed):
    chosen = reading.pick(count, limit, seed)
    assert len(chosen) == min(count, limit)
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < count
    assert chosen == reading.pick(count, limit, seed)


def test_a_broken_picture_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadData, match=r"bad\.png"):
        data.read(tmp_path, [RGB])
    samples = data.read(tmp_path, [RGB], skip_unreadable=True)
    assert samples.count == 1
    assert "1 of 2" in samples.warnings[0]
    assert "bad.png" in samples.warnings[0]


def test_a_folder_whose_pictures_are_all_broken_is_refused(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadData, match="none of the 1"):
        data.read(tmp_path, [RGB], skip_unreadable=True)


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("hello")])
def test_what_holds_no_pictures_is_refused(tmp_path, make):
    path = tmp_path / "there"
    make(path)
    with pytest.raises(BadData, match="there"):
        data.read(path, [RGB])


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(BadData, match="does not exist"):
        data.read(tmp_path / "none", [RGB])


def test_pictures_without_an_input_spec_are_refused(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(BadData, match="no input spec"):
        data.read(tmp_path, [TensorSpec("x", np.dtype(np.float32), (None, 3, 8, 8))])


@pytest.mark.parametrize("line", ["sub dir/a.png 7", "sub dir/a.png,7", "sub dir/a.png\t7"])
def test_a_list_has_paths_with_blanks_and_labels(tmp_path, line):
    picture(tmp_path / "sub dir" / "a.png")
    (tmp_path / "list.txt").write_text(f"# comment\n{line}\n\n")
    samples = data.read(tmp_path / "list.txt", [RGB])
    assert samples.labels.tolist() == [7]


def test_a_list_without_labels(tmp_path):
    picture(tmp_path / "a b.png")
    (tmp_path / "list.txt").write_text("a b.png\n")
    assert data.read(tmp_path / "list.txt", [RGB]).labels is None


def test_a_list_names_its_missing_file(tmp_path):
    (tmp_path / "list.txt").write_text("gone.png\n")
    with pytest.raises(BadData, match=r"gone\.png.*line 1"):
        data.read(tmp_path / "list.txt", [RGB])


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_pictures_and_their_labels(tmp_path, zipped):
    end = ".gz" if zipped else ""
    pixels = np.arange(3 * 16).reshape(3, 4, 4)
    path = idx(tmp_path / f"train-images-idx3-ubyte{end}", pixels, zipped=zipped)
    idx(tmp_path / f"train-labels-idx1-ubyte{end}", np.array([3, 1, 2]), zipped=zipped)
    samples = data.read(path, [GRAY])
    assert samples.labels.tolist() == [3, 1, 2]
    np.testing.assert_allclose(all_of(samples)[:, 0] * 255, pixels, atol=PIXEL)
    assert data.read(path, [GRAY], limit=2).labels.tolist() == [3, 1]


def test_idx_labels_that_do_not_fit_are_refused(tmp_path):
    path = idx(tmp_path / "images-idx3-ubyte", np.zeros((3, 4, 4)))
    idx(tmp_path / "labels-idx1-ubyte", np.zeros(2))
    with pytest.raises(BadData, match="labels"):
        data.read(path, [GRAY])


@pytest.mark.parametrize("cut", [2, 10, 40])
def test_a_truncated_idx_is_refused(tmp_path, cut):
    path = idx(tmp_path / "images-idx3-ubyte", np.zeros((3, 4, 4)))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadData, match="images-idx3-ubyte"):
        data.read(path, [GRAY])


@pytest.mark.parametrize("save", [np.save, np.savez, lambda p, a: np.savez_compressed(p, x=a)])
def test_arrays_are_fed_as_they_are(tmp_path, save):
    array = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, array)
    samples = data.read(path, [VECTOR])
    assert [len(batch["x"]) for batch in samples.batches(2)] == [2, 2, 1]
    np.testing.assert_array_equal(all_of(samples), array)


def test_several_inputs_and_labels_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((4, 3)), y=np.zeros((4, 2)), labels=np.arange(4))
    samples = data.read(tmp_path / "a.npz", [VECTOR, TensorSpec("y", np.dtype(np.float32), (None, 2))])
    assert samples.labels.tolist() == [0, 1, 2, 3]
    assert {k: v.dtype for k, v in next(samples.batches(4)).items()} == {"x": np.float32, "y": np.float32}


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((4, 2), np.float32), "takes"),
        (np.ones(3, np.float32), "takes"),
        (np.array([[1, 2, 3], [1, np.nan, 3]], np.float32), "entry 1"),
        (np.array([[1, np.inf, 3]], np.float32), "infinity"),
        (np.array([["a", "b", "c"]]), "not numbers"),
        (np.zeros((0, 3), np.float32), "same number"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadData, match=reason):
        data.read(tmp_path / "a.npy", [VECTOR])


def test_a_pickled_array_is_never_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(BadData, match="pickled"):
        data.read(tmp_path / "a.npy", [VECTOR])


def test_a_truncated_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    path = tmp_path / "a.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BadData, match="middle of entry 3"):
        data.read(path, [VECTOR])


def test_an_array_of_bytes_is_fed_with_a_warning(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.uint8))
    assert "uint8" in data.read(tmp_path / "a.npy", [VECTOR]).warnings[0]


def test_the_hash_tells_samples_and_preparation_apart(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    other = InputSpec("x", 3, 8, 8, (0.4, 0.5, 0.5), RGB.std)
    hashes = [
        data.read(tmp_path, [RGB]).sha256,
        data.read(tmp_path, [RGB], limit=2).sha256,
        data.read(tmp_path, [other]).sha256,
    ]
    picture(tmp_path / "2.png", 77)
    hashes.append(data.read(tmp_path, [RGB]).sha256)
    assert len(set(hashes)) == 4


def test_split_holds_back_every_so_many(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(24, dtype=np.float32).reshape(8, 3))
    rest, held = data.read(tmp_path / "a.npy", [VECTOR]).split(4)
    assert rest.chosen == (0, 1, 2, 4, 5, 6)
    assert held.chosen == (3, 7)


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (9, 31), (200, 100)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_every_picture_becomes_the_inputs_size(size, resize, crop):
    spec = InputSpec("x", 3, 8, 6, RGB.mean, RGB.std, resize=resize, crop=crop)
    assert data.preprocess(Image.new("RGB", size), spec).shape == (3, 8, 6)


def test_nhwc_and_wide_pictures():
    spec = InputSpec("x", 1, 4, 4, (0.0,), (1.0,), layout="NHWC")
    wide = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    np.testing.assert_allclose(data.preprocess(wide, spec), np.ones((4, 4, 1)))
