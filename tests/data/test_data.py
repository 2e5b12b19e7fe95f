import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from se_deploy import data
from se_deploy.data import reading
from se_deploy.errors import BadData
from se_deploy.protocols import TensorSpec
from se_deploy.schema.input_spec import InputSpec, frames

RGB = InputSpec("x", 3, 8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
GRAY = InputSpec("x", 1, 4, 4, (0.0,), (1.0,))
VECTOR = TensorSpec("x", np.dtype(np.float32), (None, 3))
PIXEL = 1 / 255  # one step of an 8-bit image


def image(path, value=128, size=(8, 8), mode="RGB"):
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


def test_a_folder_of_classes_gives_images_and_labels(tmp_path):
    for name, value in (("cat", 0), ("dog", 255)):
        for i in range(2):
            image(tmp_path / name / f"{i}.png", value)
    samples = data.read(tmp_path, [RGB])
    assert samples.count == 4
    assert samples.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(all_of(samples)[:, 0, 0, 0], [-2, -2, 2, 2])
    assert all_of(samples).shape == (4, 3, 8, 8)


def test_class_folders_follow_the_networks_own_labels(tmp_path):
    spec = InputSpec("x", 3, 8, 8, RGB.mean, RGB.std, labels=("dog", "bird", "cat"))
    image(tmp_path / "cat" / "a.png")
    image(tmp_path / "dog" / "a.png")
    assert data.read(tmp_path, [spec]).labels.tolist() == [2, 0]


def test_folders_that_are_numbers_are_their_class(tmp_path):
    for name in ("10", "2"):
        image(tmp_path / name / "a.png")
    assert data.read(tmp_path, [RGB]).labels.tolist() == [10, 2]


def test_a_limit_keeps_every_class(tmp_path):
    for name in "abcd":
        for i in range(5):
            image(tmp_path / name / f"{i}.png")
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


def test_a_broken_image_is_named(tmp_path):
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


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "the file is empty"), (b"no image", "it is none of JPEG, PNG")]
)
def test_an_image_that_is_none_is_named_and_not_its_address(tmp_path, content, reason):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(BadData, match=rf"bad\.png.*{reason}") as e:
        data.read(tmp_path, [RGB])
    assert "0x" not in str(e.value)


def test_a_folder_whose_images_are_all_broken_is_refused(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(BadData, match="none of 1 image can"):
        data.read(tmp_path, [RGB], skip_unreadable=True)


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("hello")])
def test_what_holds_no_images_is_refused(tmp_path, make):
    path = tmp_path / "there"
    make(path)
    with pytest.raises(BadData, match="there"):
        data.read(path, [RGB])


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(BadData, match="does not exist"):
        data.read(tmp_path / "none", [RGB])


def test_images_without_an_input_spec_are_refused(tmp_path):
    image(tmp_path / "a.png")
    with pytest.raises(BadData, match="no input spec"):
        data.read(tmp_path, [TensorSpec("x", np.dtype(np.float32), (None, 3, 8, 8))])


@pytest.mark.parametrize("line", ["sub dir/a.png 7", "sub dir/a.png,7", "sub dir/a.png\t7"])
def test_a_list_has_paths_with_blanks_and_labels(tmp_path, line):
    image(tmp_path / "sub dir" / "a.png")
    (tmp_path / "list.txt").write_text(f"# comment\n{line}\n\n")
    samples = data.read(tmp_path / "list.txt", [RGB])
    assert samples.labels.tolist() == [7]


def test_a_list_without_labels(tmp_path):
    image(tmp_path / "a b.png")
    (tmp_path / "list.txt").write_text("a b.png\n")
    assert data.read(tmp_path / "list.txt", [RGB]).labels is None


def test_a_list_names_its_missing_file(tmp_path):
    (tmp_path / "list.txt").write_text("gone.png\n")
    with pytest.raises(BadData, match=r"gone\.png.*line 1"):
        data.read(tmp_path / "list.txt", [RGB])


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_images_and_their_labels(tmp_path, zipped):
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
    with pytest.raises(BadData, match="says it holds"):
        data.read(path, [VECTOR])


def test_an_array_of_bytes_is_fed_with_a_warning(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.uint8))
    assert "uint8" in data.read(tmp_path / "a.npy", [VECTOR]).warnings[0]


def test_the_hash_tells_samples_and_preparation_apart(tmp_path):
    for i in range(3):
        image(tmp_path / f"{i}.png", i)
    other = InputSpec("x", 3, 8, 8, (0.4, 0.5, 0.5), RGB.std)
    hashes = [
        data.read(tmp_path, [RGB]).sha256,
        data.read(tmp_path, [RGB], limit=2).sha256,
        data.read(tmp_path, [other]).sha256,
    ]
    image(tmp_path / "2.png", 77)
    hashes.append(data.read(tmp_path, [RGB]).sha256)
    assert len(set(hashes)) == 4


def test_split_holds_back_every_so_many(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(24, dtype=np.float32).reshape(8, 3))
    rest, held = data.read(tmp_path / "a.npy", [VECTOR]).split(4)
    assert rest.chosen == (0, 1, 2, 4, 5, 6)
    assert held.chosen == (3, 7)


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("count", [4, 5, 8, 11, 24])
def test_every_sample_of_a_whole_block_is_held_back_at_one_turn(tmp_path, count, block):
    np.save(tmp_path / "a.npy", np.arange(count * 3, dtype=np.float32).reshape(count, 3))
    samples = data.read(tmp_path / "a.npy", [VECTOR])
    turns = [samples.split(4, block, turn=turn) for turn in range(samples.parts(4, block))]
    assert turns[0] == samples.split(4, block)
    for rest, held in turns:
        assert sorted(rest.chosen + held.chosen) == list(range(count))
    assert sorted(p for _, held in turns for p in held.chosen) == list(range(count // block * block))


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (9, 31), (200, 100)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_every_image_becomes_the_inputs_size(size, resize, crop):
    spec = InputSpec("x", 3, 8, 6, RGB.mean, RGB.std, resize=resize, crop=crop)
    assert data.preprocess(Image.new("RGB", size), spec).shape == (3, 8, 6)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((4, 4), 65535, np.uint16), 1.0),
        (np.full((4, 4), 200, np.uint16), 1 / 255),  # dark, not 8-bit: 200 of 65,535, rounded to one level
        (np.full((4, 4), 257 * 128, np.uint16), 128 / 255),
        (np.full((4, 4), 255, np.int32), 1.0),
        (np.full((4, 4), 0.5, np.float32), 128 / 255),
        (np.full((4, 4), 255.0, np.float32), 1.0),
        (np.full((4, 4), -3.0, np.float32), 0.0),
        (np.full((4, 4), 128, np.uint8), 128 / 255),
    ],
)
def test_nhwc_and_images_of_every_depth(pixels, expected):
    spec = InputSpec("x", 1, 4, 4, (0.0,), (1.0,), layout="NHWC")
    sample = data.preprocess(Image.fromarray(pixels), spec)
    np.testing.assert_allclose(sample, np.full((4, 4, 1), expected), rtol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_grey_images_are_grey_in_every_channel(mode):
    grey = Image.new("L", (8, 8), 255)
    image = Image.fromarray(np.full((8, 8), 65535, np.uint16)) if mode == "I;16" else grey.convert(mode)
    np.testing.assert_allclose(data.preprocess(image, RGB), np.full((3, 8, 8), 2.0), atol=0.02)


def test_a_palette_with_transparency_gives_its_colours_and_no_warning(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "p.png", transparency=bytes([0, 0]))
    with Image.open(tmp_path / "p.png") as read:
        sample = data.preprocess(read, RGB)
    np.testing.assert_allclose(sample[:, 0, 0], [2, -2, -2])


CIFAR = InputSpec("x", 3, 32, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def cifar_pixels(count=4):
    return np.random.default_rng(0).integers(0, 256, (count, 3072)).astype(np.uint8)


@pytest.mark.parametrize("name", ["data_batch_1", "train"])
@pytest.mark.parametrize("whole_folder", [False, True])
def test_cifar(tmp_path, name, whole_folder):
    pixels, labels = cifar_pixels(), np.array([3, 1, 9, 0])
    path = tmp_path / f"{name}.bin"
    heads = [labels[:, None]] if name == "data_batch_1" else [labels[:, None] * 0 + 7, labels[:, None]]
    path.write_bytes(np.hstack([*heads, pixels]).astype(np.uint8).tobytes())
    samples = data.read(tmp_path if whole_folder else path, [CIFAR])
    assert samples.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(all_of(samples) * 255, pixels.reshape(4, 3, 32, 32), atol=PIXEL)


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("whole_folder", [False, True])
@pytest.mark.parametrize("name", ["data_batch_1", "train", "test_batch"])
def test_a_pickle_is_refused_and_not_run(tmp_path, capsys, name, whole_folder):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadData, match="pickle") as e:
        data.read(tmp_path if whole_folder else path, [CIFAR])
    assert "binary version" in e.value.hint
    assert not capsys.readouterr().out


def test_a_truncated_binary_cifar_is_refused(tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(b"\0" * 3000)
    with pytest.raises(BadData, match="CIFAR records"):
        data.read(tmp_path / "test_batch.bin", [CIFAR])


def shard(path, names, *, labels=True):
    with tarfile.open(path, "w") as archive:
        for n, name in enumerate(names):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (n * 50,) * 3).save(buffer, "PNG")
            files = [(f"{name}.png", buffer.getvalue())]
            files += [(f"{name}.cls", str(n).encode())] if labels else []
            for member, content in files:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("whole_folder", [False, True])
def test_webdataset_shards(tmp_path, whole_folder):
    shard(tmp_path / "a.tar", ["000", "sub/001"])
    samples = data.read(tmp_path if whole_folder else tmp_path / "a.tar", [RGB])
    assert samples.labels.tolist() == [0, 1]
    np.testing.assert_allclose(all_of(samples)[:, 0, 0, 0], (np.array([0, 50]) / 255 - 0.5) / 0.25, atol=1e-5)


def test_webdataset_without_labels_and_what_is_no_tar(tmp_path):
    shard(tmp_path / "a.tar", ["000"], labels=False)
    assert data.read(tmp_path / "a.tar", [RGB]).labels is None
    (tmp_path / "b.tar").write_bytes(b"no tar")
    with pytest.raises(BadData, match="no tar"):
        data.read(tmp_path / "b.tar", [RGB])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_frames_are_the_pixels_themselves(tmp_path, layout):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (batch,) = data.read(tmp_path, [frames(RGB, layout)]).batches(1)
    assert batch["x"].dtype == np.uint8
    np.testing.assert_array_equal(batch["x"][0], pixels if layout == "NHWC" else pixels.transpose(2, 0, 1))


def test_frames_between_two_grey_levels_are_rounded():
    two = Image.fromarray(np.array([[0, 255]], np.uint8))
    spec = frames(InputSpec("x", 1, 1, 4, (0.0,), (1.0,), "squash", antialias=False))
    assert data.preprocess(two, spec).ravel().tolist() == [0, 64, 191, 255]  # 63.75 and 191.25


BYTES = TensorSpec("x", np.dtype(np.uint8), (None, 3))


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_numbers_that_bytes_cannot_hold_are_refused(tmp_path, value):
    array = np.zeros((9, 3), np.float32)
    array[7, 1] = value
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadData, match=rf"holds {value:g}, the input 'x' takes uint8") as e:
        data.read(tmp_path / "a.npy", [BYTES])
    assert "from 0 to 255" in e.value.hint
    assert data.read(tmp_path / "a.npy", [BYTES], limit=1).count == 1  # that entry is not among the chosen


def test_whole_numbers_are_fed_as_bytes(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0.0, 7.0, 255.0]]))
    fed = all_of(data.read(tmp_path / "a.npy", [BYTES]))
    assert (fed.dtype, fed.tolist()) == (np.uint8, [[0, 7, 255]])


def test_random_bytes_take_their_whole_range():
    (batch,) = data.random([TensorSpec("x", np.dtype(np.uint8), (None, 4000))], count=1).batches(1)
    assert batch["x"].dtype == np.uint8
    assert (batch["x"].min(), batch["x"].max()) == (0, 255)


STATE = TensorSpec("state", np.dtype(np.float32), (2, 1, 5))
RATE = TensorSpec("rate", np.dtype(np.int64), ())


def test_states_and_scalars_are_fed_whole_one_sample_at_a_time(tmp_path):
    states = np.random.default_rng(0).standard_normal((4, 2, 1, 5)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=np.ones((4, 3)), state=states, rate=np.full(4, 16000))
    samples = data.read(tmp_path / "a.npz", [VECTOR, STATE, RATE])
    batches = list(samples.batches(3))
    assert [{k: v.shape for k, v in one.items()} for one in batches] == [
        {"x": (1, 3), "state": (2, 1, 5), "rate": ()}
    ] * 4
    np.testing.assert_array_equal(batches[2]["state"], states[2])
    assert batches[0]["rate"] == 16000


@pytest.mark.parametrize("shape", [(4, 2, 2, 5), (4, 2, 5), (4, 4, 2, 1, 5)])
def test_a_state_of_another_shape_is_refused(tmp_path, shape):
    np.savez(tmp_path / "a.npz", x=np.ones((4, 3)), state=np.zeros(shape, np.float32))
    with pytest.raises(BadData, match="'state' takes"):
        data.read(tmp_path / "a.npz", [VECTOR, STATE])
