"""Samples that are copies of others are counted once: from whatever they are read."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from recordings import record

from se_deploy import data
from se_deploy.protocols import TensorSpec
from se_deploy.schema.input_spec import InputSpec

IMAGES = InputSpec("x", 3, 8, 8, (0.0,) * 3, (1.0,) * 3)
COUNT = 6


def tensor(*dims, name="x"):
    return TensorSpec(name, np.dtype(np.float32), (None, *dims))


def noise(number, *shape):
    return np.random.default_rng(number).standard_normal(shape).astype(np.float32)


def picture(number, path):
    pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def pictures(folder, numbers):
    for place, number in enumerate(numbers):
        picture(number, folder / "photos" / f"{place}.png")
    return data.read(folder / "photos", [IMAGES])


def one_array(folder, numbers):
    np.save(folder / "x.npy", np.stack([noise(n, 3, 4) for n in numbers]))
    return data.read(folder / "x.npy", [tensor(3, 4)])


def two_arrays(folder, numbers):
    """Inputs of which the first is always the same."""
    state = np.ones((len(numbers), 2), np.float32)
    np.savez(folder / "x.npz", a=state, b=np.stack([noise(n, 3) for n in numbers]))
    return data.read(folder / "x.npz", [tensor(2, name="a"), tensor(3, name="b")])


def array_files(folder, numbers):
    (folder / "arrays").mkdir()
    for place, number in enumerate(numbers):
        np.save(folder / "arrays" / f"{place}.npy", noise(number, 5))
    return data.read(folder / "arrays", [tensor(5)])


def sounds(folder, numbers):
    (folder / "sounds").mkdir()
    for place, number in enumerate(numbers):
        record(folder / "sounds" / f"{place}.wav", (noise(number, 50) * 1000).astype(np.int16))
    return data.read(folder / "sounds", [tensor(None)])


def clips(folder, numbers):
    """The first frame is the same in all."""
    for place, number in enumerate(numbers):
        for frame in range(2):
            (folder / "clips").mkdir(exist_ok=True)
            picture(number * frame, folder / "clips" / f"clip{place}" / f"{frame}.png")
    return data.read(folder / "clips", [tensor(3, 2, 9, 9)])


READERS = [pictures, one_array, two_arrays, array_files, sounds, clips]


@pytest.mark.parametrize("read", READERS)
def test_every_reader_tells_copies(tmp_path, read):
    samples = read(tmp_path, [1, 2, 1, 1, 2, 1])
    assert samples.count == COUNT
    assert len(set(samples.each)) == 2
    assert samples.each[0] == samples.each[2] != samples.each[1]
    (said,) = data.copy_doubts(samples)
    assert "only 2 of 6 samples differ" in said


@pytest.mark.parametrize("read", READERS)
def test_samples_that_differ_are_not_warned_of(tmp_path, read):
    samples = read(tmp_path, range(1, COUNT + 1))
    assert data.copy_doubts(samples) == ()
    assert data.held_doubts(*samples.split(3)) == ()


def test_a_name_a_label_or_a_folder_makes_no_other_sample(tmp_path):
    picture(1, tmp_path / "all" / "first.png")
    for name in ("one", "two"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        shutil.copy(tmp_path / "all" / "first.png", tmp_path / "classes" / name / f"{name}.png")
    samples = data.read(tmp_path / "classes", [IMAGES])
    assert len(set(samples.each)) == 1
    assert data.copy_doubts(samples) == (
        "all 2 samples are copies of one: what is measured on them is known of one sample",
    )


def test_a_copy_among_many_is_nothing_to_speak_of(tmp_path):
    assert data.copy_doubts(one_array(tmp_path, [*range(20), 0, 1])) == ()
    assert len(data.copy_doubts(one_array(tmp_path, [*range(20), 0, 1, 2]))) == 1


def test_copies_held_back_are_told_by_the_samples_that_they_evaluate(tmp_path):
    samples = one_array(tmp_path, [1, 2, 3, 1, 4, 5, 6, 7])
    chosen, held = samples.split(4)
    assert (chosen.each, held.each) == (samples.take([0, 1, 2, 4, 5, 6]).each, samples.take([3, 7]).each)
    (said,) = data.held_doubts(chosen, held)
    assert said.startswith("1 of 2 samples held back is a copy of samples that were calibrated on")
    twins = one_array(tmp_path, [1, 2, 3, 9, 4, 5, 6, 9])  # copies of one another alone
    assert data.held_doubts(*twins.split(4)) == ()


def test_noise_and_one_sample_are_no_copies(tmp_path):
    assert data.copy_doubts(data.random([tensor(3)], count=8)) == ()
    assert data.copy_doubts(one_array(tmp_path, [1])) == ()
