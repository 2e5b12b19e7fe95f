"""The bundle's runner, as a process of its own on a device that is none: see fake_device."""

import json
from pathlib import Path

import fake_device
import numpy as np
import pytest
import use_graphs
from msgspec.structs import replace

from se_deploy.backends import manifest as manifests
from se_deploy.commands import bundle, predict
from se_deploy.data import preprocessing
from se_deploy.schema.files import EngineFeatures, ShapeRange

pytestmark = fake_device.CC


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return fake_device.make(tmp_path_factory.mktemp("machine") / "device")


def bundled(folder, *, name="net", runtime="tensorrt", data=b"a plan", **fields):
    """Bundle an engine whose ONNX file is the colour network; give the bundle's folder."""
    onnx = use_graphs.save(folder / f"{name}.engine.onnx", spec=fields.get("input", use_graphs.SPEC))
    path = folder / f"{name}.engine"
    path.write_bytes(b"vtrt" + bytes(64) if runtime == "tensorrt-rtx" else data)
    manifests.write(use_graphs.manifest(path, onnx, runtime=runtime, **fields), manifests.path_of(path))
    bundle.bundle(path, folder / "out", overwrite=True)
    return folder / "out"


@pytest.fixture
def out(tmp_path):
    return bundled(tmp_path)


def images(folder):
    """Images of several sizes, the first with a single answer."""
    return [
        use_graphs.image(folder / "red.png"),
        use_graphs.noise(folder / "small.png", seed=1, size=(7, 5)),
        use_graphs.noise(folder / "large.png", seed=2, size=(301, 77)),
    ]


def test_it_is_short_enough_to_be_read_and_prepares_images_as_the_package_does(out):
    assert len((out / "run_engine.py").read_text().splitlines()) <= 150
    assert (out / "preprocessing.py").read_bytes() == Path(preprocessing.__file__).read_bytes()


def test_it_says_what_predict_says(out, tmp_path, environment):
    paths = images(tmp_path)
    done = fake_device.run(out / "run_engine.py", "--json", *paths, environment=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["engine"], said["runtime"], said["version"]) == ("net.engine", "tensorrt", "10.3.0")
    wanted = predict.predict(out / "net.engine.onnx", paths).predictions
    assert [one["image"] for one in said["predictions"]] == list(map(str, paths))
    for one, want in zip(said["predictions"], wanted, strict=True):
        assert [(g["index"], g["label"]) for g in one["top"]] == [(g.index, g.label) for g in want.top]
        np.testing.assert_allclose(
            [g["probability"] for g in one["top"]], [g.probability for g in want.top], rtol=1e-5
        )


@pytest.mark.slow
def test_people_read_a_table(out, tmp_path, environment):
    red = images(tmp_path)[0]
    done = fake_device.run(out / "run_engine.py", red, environment=environment)
    title, name, first, *_ = done.stdout.splitlines()
    assert title == "net.engine: tensorrt 10.3.0, as its manifest says"
    assert name == str(red)
    assert first.split()[1:] == ["0", "red"]


@pytest.mark.slow
def test_it_feeds_the_smallest_batch_that_the_engine_takes(tmp_path, environment):
    shapes = {"x": ShapeRange((3, 3, 8, 8), (3, 3, 8, 8), (4, 3, 8, 8))}
    out = bundled(tmp_path, shapes=shapes)
    done = fake_device.run(out / "run_engine.py", images(tmp_path)[0], environment=environment)
    assert done.stdout.splitlines()[2].split()[1:] == ["0", "red"], done.stderr


@pytest.mark.slow
def test_arrays_go_in_and_come_out(out, tmp_path, environment):
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    words = ("--arrays", tmp_path / "in.npz", tmp_path / "out.npz")
    done = fake_device.run(out / "run_engine.py", *words, environment=environment)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], 4 * x.mean((2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gain", [np.float32(0.5), np.array(-3.0)])  # of the engine's type, and of another
def test_a_scalar_goes_in_as_a_scalar(tmp_path, environment, gain):
    out = bundled(tmp_path, data=b"a plan with a scalar")
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    np.savez(tmp_path / "in.npz", x=x, gain=gain)
    words = ("--arrays", tmp_path / "in.npz", tmp_path / "out.npz")
    done = fake_device.run(out / "run_engine.py", *words, environment=environment)
    assert done.returncode == 0, done.stderr
    wanted = gain * 4 * x.mean((2, 3))
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_rtx_engine_is_loaded_by_its_own_module(tmp_path):
    environment = fake_device.make(tmp_path / "device", module="tensorrt_rtx", version="1.7.1")
    out = bundled(tmp_path, runtime="tensorrt-rtx")
    done = fake_device.run(out / "run_engine.py", images(tmp_path)[0], environment=environment)
    assert done.stdout.splitlines()[2].split()[1:] == ["0", "red"], done.stderr


@pytest.mark.slow
def test_without_images_only_the_manifest_is_checked(out, environment):
    done = fake_device.run(out / "run_engine.py", environment={**environment, "LD_LIBRARY_PATH": ""})
    assert (done.returncode, done.stdout) == (0, "net.engine: tensorrt 10.3.0, as its manifest says\n")


@pytest.mark.slow
def test_a_version_compatible_engine_runs_in_another_version(tmp_path, environment):
    features = EngineFeatures(version_compatible=True)
    out = bundled(tmp_path, data=b"a plan with a lean runtime", version="10.0.1", features=features)
    done = fake_device.run(out / "run_engine.py", images(tmp_path)[0], environment=environment)
    assert done.stdout.splitlines()[2].split()[1:] == ["0", "red"], done.stderr


@pytest.mark.parametrize(
    "features",
    [
        EngineFeatures(strip_weights=True),
        EngineFeatures(plugins={"lib.so": "0" * 64}),
        EngineFeatures(io_formats={"x": "CHW4"}),
        EngineFeatures(dla_core=0),
    ],
)
def test_an_engine_that_takes_more_than_its_file_gets_no_script(tmp_path, features):
    assert not (bundled(tmp_path, features=features) / "run_engine.py").exists()


def broken_engine(out):
    (out / "net.engine").write_bytes(b"a plan, changed")


def missing_engine(out):
    (out / "net.engine").unlink()


def missing_manifest(out):
    (out / "net.engine.json").unlink()


def other_version(out):
    described = manifests.read(out / "net.engine")
    manifests.write(replace(described, version="10.7.0"), out / "net.engine.json")


def edited_manifest(out):
    path = out / "net.engine.json"
    path.write_text(path.read_text().replace("10.3.0", "10.7.0"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (broken_engine, "net.engine is not here, or not what its manifest describes"),
        (missing_engine, "net.engine is not here"),
        (missing_manifest, "no manifest of an engine"),
        (edited_manifest, "was changed since it was written"),
        (other_version, "it is of version 10.7.0, here is 10.3.0"),
    ],
)
def test_what_does_not_agree_is_refused_before_anything_is_loaded(out, tmp_path, environment, damage, said):
    damage(out)
    environment = {**environment, "LD_LIBRARY_PATH": ""}  # loading would end in an error of CUDA's
    done = fake_device.run(out / "run_engine.py", images(tmp_path)[0], environment=environment)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_cuda_refuses_ends_it(out, tmp_path, environment):
    full = {**environment, "FAKE_DEVICE_BYTES": "8"}
    done = fake_device.run(out / "run_engine.py", images(tmp_path)[0], environment=full)
    assert (done.returncode, done.stderr) == (1, "CUDA failed with error 2\n")


@pytest.mark.slow
def test_shapes_outside_the_engines_range_are_refused(out, tmp_path, environment):
    np.savez(tmp_path / "in.npz", x=np.zeros((5, 3, 8, 8), np.float32))
    words = ("--arrays", tmp_path / "in.npz", tmp_path / "out.npz")
    done = fake_device.run(out / "run_engine.py", *words, environment=environment)
    assert "outside the range" in done.stderr
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("net", "it's \u00e9 [0]*")])
def test_a_folder_that_held_another_bundle_runs_the_engine_of_the_last(tmp_path, environment, names):
    for name in names:
        out = bundled(tmp_path, name=name)
    assert len(list(out.glob("*.engine"))) == 2
    done = fake_device.run(out / "run_engine.py", "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engine"] == f"{names[-1]}.engine"


def test_what_an_earlier_bundle_said_of_images_is_not_said_of_the_next(tmp_path, environment):
    bundled(tmp_path)
    (tmp_path / "out" / "notes.json").write_text("[]")  # somebody's own
    out = bundled(tmp_path, name="other", input=None)
    assert not {"input.json", "labels.txt", "predict.py"} & {path.name for path in out.iterdir()}
    assert (out / "notes.json").exists()
    readme = (out / "README.txt").read_text()
    assert "IMAGE.jpg" not in readme
    assert "python3 run_engine.py --arrays IN.npz OUT.npz" in readme
    done = fake_device.run(out / "run_engine.py", images(tmp_path)[0], environment=environment)
    assert (done.returncode, "no input.json" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_an_engine_of_two_inputs_says_that_it_takes_no_image(tmp_path, environment):
    out = bundled(tmp_path, data=b"a plan with a scalar")
    done = fake_device.run(out / "run_engine.py", images(tmp_path)[0], environment=environment)
    assert (done.returncode, "--arrays takes arrays" in done.stderr) == (1, True)
