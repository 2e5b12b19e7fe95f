"""Recordings, folders of arrays and folders of frames: their axes, their sizes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from recordings import record

from se_deploy import data
from se_deploy.errors import BadData
from se_deploy.protocols import TensorSpec

RAW = TensorSpec("wave", np.dtype(np.float32), (None, None))
FEATS = TensorSpec("feats", np.dtype(np.float32), (None, 4, None))
CLIP = TensorSpec("clip", np.dtype(np.float32), (None, 3, 4, 6, 8))


def first(samples):
    return next(samples.batches(samples.count))


@pytest.mark.parametrize(
    ("width", "low", "high"),
    [(1, 0, 255), (2, -(2**15), 2**15 - 1), (3, -(2**23), 2**23 - 1), (4, -(2**31), 2**31 - 1)],
)
def test_every_width_of_pcm_lies_between_minus_one_and_one(tmp_path, width, low, high):
    middle = (low + high + 1) // 2
    record(tmp_path / "a.wav", [low, middle, middle + (high - middle + 1) // 2, high], width=width)
    (got,) = first(data.read(tmp_path / "a.wav", [RAW]))["wave"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [-1, 0, 0.5, 1], atol=2.0 ** (1 - 8 * width))
    assert got.max() <= 1


def test_channels_are_an_axis_of_their_own(tmp_path):
    record(tmp_path / "a.wav", np.array([[0, 100], [200, 300], [400, 500]]))
    stereo = TensorSpec("wave", np.dtype(np.float16), (None, 2, None))
    got = first(data.read(tmp_path, [stereo]))["wave"]
    assert (got.shape, got.dtype) == ((1, 2, 3), np.float16)
    np.testing.assert_allclose(got[0] * 2**15, [[0, 200, 400], [100, 300, 500]])
    with pytest.raises(BadData, match=r"'a.wav' has 2 channels, the input 'wave' takes 1: \(N, \?\)"):
        data.read(tmp_path, [RAW])


def test_recordings_of_any_length_come_in_order_and_none_is_lost(tmp_path):
    lengths = [5, 5, 7, 5, 5, 5]
    for i, length in enumerate(lengths):
        record(tmp_path / f"{i}.wav", np.full(length, i))
    samples = data.read(tmp_path, [RAW])
    batches = [one["wave"] for one in samples.batches(2)]
    assert [one.shape for one in batches] == [(2, 5), (1, 7), (2, 5), (1, 5)]
    seen = [round(float(row[0] * 2**15)) for one in batches for row in one]
    assert seen == [0, 1, 2, 3, 4, 5]
    assert [one["wave"].shape for one in samples.take([2, 0, 1]).batches(3)] == [(1, 7), (2, 5)]


@pytest.mark.parametrize(
    "dims", [(None, 80, None), (None, None, 80), (None, 1, 80, None), (None, 80)], ids=str
)
def test_a_network_of_features_says_so(tmp_path, dims):
    record(tmp_path / "a.wav", np.zeros(100))
    spec = TensorSpec("feats", np.dtype(np.float32), dims)
    text = "takes 80: " if len(dims) == 2 else "no waveform"
    with pytest.raises(BadData, match=text) as found:
        data.read(tmp_path, [spec])
    assert ("features" in found.value.hint) == (len(dims) > 2)


def test_what_is_no_usable_recording_is_named(tmp_path):
    record(tmp_path / "ok" / "a.wav", np.zeros(8))
    record(tmp_path / "ok" / "b.wav", np.zeros(8), rate=8000)
    with pytest.raises(BadData, match=r"'b.wav' has 8000 frames a second, 'a.wav' 16000"):
        data.read(tmp_path / "ok", [RAW])
    whole = record(tmp_path / "cut.wav", np.zeros(800)).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:300])
    with pytest.raises(BadData, match=r"'cut.wav' ends before its 800 frames"):
        data.read(tmp_path / "cut.wav", [RAW])
    floats = bytearray(whole)
    floats[20] = 3  # the format's number: floating point
    (tmp_path / "float.wav").write_bytes(floats)
    with pytest.raises(BadData, match=r"'float.wav' is no PCM WAV file: unknown format: 3"):
        data.read(tmp_path / "float.wav", [RAW])
    (tmp_path / "none.wav").write_bytes(b"")
    with pytest.raises(BadData, match=r"'none.wav' is no PCM WAV file: it is cut off"):
        data.read(tmp_path / "none.wav", [RAW])
    with pytest.raises(BadData, match="holds no sound"):
        data.read(record(tmp_path / "empty.wav", np.zeros((0, 1))), [RAW])
    with pytest.raises(BadData, match="holds recordings, the network has 2 inputs"):
        data.read(tmp_path / "ok", [RAW, FEATS])


def test_a_file_a_sample_of_any_length(tmp_path):
    shapes = [(4, 5), (1, 4, 5), (4, 9)]  # with and without the batch's own axis
    for i, shape in enumerate(shapes):
        np.save(tmp_path / f"{i}.npy", np.full(shape, i, np.float64))
    samples = data.read(tmp_path, [FEATS])
    batches = [one["feats"] for one in samples.batches(8)]
    assert [one.shape for one in batches] == [(2, 4, 5), (1, 4, 9)]
    assert batches[0].dtype == np.float32
    assert [row.mean() for one in batches for row in one] == [0, 1, 2]
    assert data.read(tmp_path, [FEATS], limit=2).count == 2
    before = samples.sha256
    np.save(tmp_path / "2.npy", np.full((4, 9), 2.5))
    assert data.read(tmp_path, [FEATS]).sha256 != before


def test_a_folder_for_each_input(tmp_path):
    lengths = TensorSpec("lengths", np.dtype(np.int64), (None,))
    for i in (1, 2, 3):
        for name, value in (("feats", np.full((4, 10 * i), i, np.float32)), ("lengths", np.array(10 * i))):
            (tmp_path / name).mkdir(exist_ok=True)
            np.save(tmp_path / name / f"{i}.npy", value)
    for feeds in data.read(tmp_path, [FEATS, lengths]).batches(4):
        assert feeds["feats"].shape == (1, 4, feeds["lengths"][0])
    (tmp_path / "lengths" / "2.npy").unlink()
    with pytest.raises(BadData, match=r"has no 'lengths/2.npy'"):
        data.read(tmp_path, [FEATS, lengths])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((5, 4), np.float32),
            r"of shape \(5, 4\), one sample of the input 'feats' is float32 \(4, \?\)",
        ),
        (np.zeros((2, 4, 5), np.float32), r"of shape \(2, 4, 5\)"),
        (np.full((4, 5), np.nan), "holds NaN or infinity"),
        (np.array([["a"] * 5] * 4), "holds <U1"),
    ],
)
def test_a_file_that_is_no_sample_is_named(tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(BadData, match=message) as found:
        data.read(tmp_path, [FEATS])
    assert "bad.npy" in found.value.message


def test_a_cut_file_and_a_mixture_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 50)))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(BadData, match="says it holds"):
        data.read(tmp_path, [FEATS])
    record(tmp_path / "b.wav", np.zeros(8))
    with pytest.raises(BadData, match=r"holds both \.npy and WAV files"):
        data.read(tmp_path, [FEATS])


def film(folder, grays, size=(8, 6)):
    folder.mkdir(parents=True)
    for i, gray in enumerate(grays):
        Image.new("RGB", size, (gray, 0, 255 - gray)).save(folder / f"frame{i}.png")


def test_frames_become_a_clip_in_the_order_of_their_numbers(tmp_path):
    film(tmp_path / "b", range(0, 120, 10))  # twelve frames: frame2 before frame10
    film(tmp_path / "a", [7] * 4)
    samples = data.read(tmp_path, [CLIP])
    got = first(samples)["clip"]
    assert (got.shape, got.dtype) == ((2, 3, 4, 6, 8), np.float32)
    np.testing.assert_allclose(got[0, 0], 7 / 255, rtol=1e-6)
    np.testing.assert_allclose(got[1, 0, :, 0, 0] * 255, [10, 40, 70, 100], rtol=1e-5)  # evenly spaced
    np.testing.assert_allclose(got[1, 2], 1 - got[1, 0], atol=1e-6)
    (warning,) = samples.warnings
    assert warning.startswith("the frames for 'clip' are fed as pixels in [0, 1]: give prepared .npy")


def test_clips_of_free_sizes_keep_their_own(tmp_path):
    film(tmp_path / "a", range(5), (8, 6))
    film(tmp_path / "b", range(3), (10, 4))
    spec = TensorSpec("clip", np.dtype(np.uint8), (None, 3, None, None, None))
    samples = data.read(tmp_path, [spec])
    assert [one["clip"].shape for one in samples.batches(2)] == [(1, 3, 5, 6, 8), (1, 3, 3, 4, 10)]
    assert [one["clip"][0, 0, :, 0, 0].tolist() for one in samples.batches(2)] == [[0, 1, 2, 3, 4], [0, 1, 2]]
    assert samples.warnings == ()  # bytes are fed as they are stored


def test_what_is_no_clip_is_named(tmp_path):
    film(tmp_path / "short", range(3))
    with pytest.raises(BadData, match="the clip 'short' has 3 frames, the input 'clip' takes 4"):
        data.read(tmp_path, [CLIP])
    other = TensorSpec("clip", np.dtype(np.float32), (None, 8, 3, 6, 8))
    with pytest.raises(BadData, match=r"takes \(N, 8, 3, 6, 8\); clips are fed as \(N, C, T, H, W\)"):
        data.read(tmp_path, [other])
    film(tmp_path / "long", range(4))
    (tmp_path / "short" / "frame3.png").write_bytes(b"no image")
    with pytest.raises(BadData, match=r"'short/frame3\.png' cannot be read"):
        data.read(tmp_path, [CLIP])
