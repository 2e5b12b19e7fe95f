"""What `calibration/` holds is what its manifest says, and what scripts/train_digits.py makes."""

import pytest

pytest.importorskip("torch")

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from se_deploy import data, files
from se_deploy.errors import BadInput
from se_deploy.frontend import zoo
from se_deploy.networks import NETWORKS
from se_deploy.shipped import shipped

ROOT = Path(__file__).parents[2]
CHECKPOINTS = [name for name, entry in NETWORKS.items() if entry.checkpoint]
PROMISED = 0.985  # accuracy on the held-out digits


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "scripts" / "train_digits.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_digits"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_digits"]


def read(name):
    network = zoo.load("se_deploy:se_resnet20")
    samples = data.read(shipped(name), (network.image,))
    return np.concatenate([batch["input"] for batch in samples.batches(250)]), samples.labels


def test_the_manifest_lists_every_file_with_its_hash():
    manifest = json.loads(shipped("manifest.json").read_text())
    folder = shipped("manifest.json").parent
    listed = {entry["file"] for entry in manifest["files"]}
    assert listed | {"manifest.json"} == {path.name for path in folder.iterdir()}
    for entry in manifest["files"]:
        assert entry["sha256"] == files.sha256(folder / entry["file"])
        assert entry["source"]
        assert entry["licence"]
        assert entry["picked"]


def test_a_file_that_does_not_ship_is_an_error():
    with pytest.raises(BadInput, match=r"weights\.pth"):
        shipped("weights.pth")


def test_calibration_and_held_out_digits_are_disjoint_and_balanced():
    calibration, labels = read("calibration-images-idx3-ubyte.gz")
    held_out, truth = read("heldout-images-idx3-ubyte.gz")
    assert calibration.shape == (128, 1, 32, 32)
    assert held_out.shape == (1000, 1, 32, 32)
    assert set(np.bincount(truth)) == {100}
    assert set(np.bincount(labels)) == {12, 13}
    seen = {image.tobytes() for image in calibration}
    assert not any(image.tobytes() in seen for image in held_out)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_as_good_as_it_says(name):
    path = shipped(NETWORKS[name].checkpoint)
    assert path.stat().st_size < (2_000_000 if name == "se_resnet20" else 600_000)
    network = zoo.load(f"se_deploy:{name}", checkpoint=path)
    images, truth = read("heldout-images-idx3-ubyte.gz")
    with torch.inference_mode():
        answers = network.module(torch.from_numpy(images)).argmax(1).numpy()
    accuracy = float((answers == truth).mean())
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert facts["network"] == name
    assert accuracy == pytest.approx(float(facts["accuracy"]), abs=0.0011)  # one digit may sit on the fence
    assert accuracy >= PROMISED


def test_the_split_is_stratified_disjoint_and_repeatable(script):
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), 500))
    images = np.arange(5000, dtype=np.uint32).view(np.uint8).reshape(5000, 4)  # each names itself
    digits = script.Digits(images, labels)
    first, again = script.split(digits, seed=1), script.split(digits, seed=1)
    train, held = ({row.tobytes() for row in part.images} for part in (first.train, first.held_out))
    assert (len(train), len(held), len(train & held)) == (4000, 1000, 0)
    assert {row.tobytes() for row in first.calibration.images} <= train
    assert set(np.bincount(first.held_out.labels)) == {100}
    np.testing.assert_array_equal(first.held_out.images, again.held_out.images)
    assert (script.split(digits, seed=2).held_out.images != first.held_out.images).any()


def test_idx_files_are_read_back_and_equal_digits_give_equal_bytes(script, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 32, 32), np.uint8)
    for name in ("a", "b"):
        script.write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", values)
    first, second = sorted(tmp_path.iterdir())
    assert first.read_bytes() == second.read_bytes()
    network = zoo.load("se_deploy:se_autoencoder")
    (batch,) = data.read(first, (network.image,)).batches(5)
    np.testing.assert_allclose(batch["input"][:, 0], values / 255, rtol=0, atol=1e-6)


def test_augmentation_keeps_the_range_and_fills_with_the_background(script):
    images = torch.full((16, 1, 32, 32), -0.5)
    moved = script.augment(images, torch.Generator().manual_seed(0), background=-0.5)
    torch.testing.assert_close(moved, images)
    images = torch.rand(16, 1, 32, 32)
    moved = script.augment(images, torch.Generator().manual_seed(0), background=0.0)
    assert moved.shape == images.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not torch.equal(moved, images)


def test_training_lowers_the_loss_and_repeats_itself(script):
    labels = torch.arange(64) % 4
    images = torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    for index, label in enumerate(labels.tolist()):
        images[index, :, 8 * label : 8 * label + 8] += 1
    examples = script.Examples(images, labels)
    recipe = script.Recipe(
        epochs=3, coarse=1, batch=16, rate=0.05, smoothing=0.0, cost_weight=1.0, background=0.0, seed=0
    )
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        network = NETWORKS["adaptive_se_resnet20"].build(width=4, num_classes=4)
        before = script.adaptive.cost(network).item()
        runs.append(script.train(network, examples, examples, recipe, "test"))
        assert script.adaptive.cost(network).item() < before
    assert runs[0] == runs[1]
    assert runs[0][-1].loss < runs[0][0].loss
