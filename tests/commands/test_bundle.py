from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import case_graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import use_graphs
from bundle_files import contents, engine
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image

from se_deploy import data, files, graph, onnx_files
from se_deploy.backends import manifest as manifests
from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.cli.main import main
from se_deploy.commands import answers, bundle, predict
from se_deploy.deploy import on_device
from se_deploy.errors import BadArtifact, BadInput, CannotWrite, OutputExists
from se_deploy.options import ImageOptions
from se_deploy.schema import codec, input_spec


@pytest.fixture
def net(tmp_path):
    return use_graphs.save(tmp_path / "net.onnx")


def test_an_onnx_file_comes_with_all_that_explains_it(net, tmp_path):
    result = bundle.bundle(net, tmp_path / "out")
    found = contents(tmp_path / "out")
    names = {"net.onnx", "labels.txt", "input.json", "predict.py", "README.txt", "sha256sums.txt"}
    assert set(found) == set(result.files) == names
    assert found["net.onnx"].read_bytes() == net.read_bytes()
    assert found["labels.txt"].read_text() == "red\ngreen\nblue\n"
    spec = json.loads(found["input.json"].read_text())
    assert (spec["onnx"], spec["mean"], spec["height"]) == ("net.onnx", [0.5, 0.5, 0.5], 8)
    assert result.warnings == ()
    assert all(name in found["README.txt"].read_text() for name in names - {"README.txt"})


def test_an_engine_takes_its_manifest_and_its_onnx_along(tmp_path):
    path = engine(tmp_path / "in", targets=("sm86", "sm120"))
    bundle.bundle(path, tmp_path / "out")
    found = contents(tmp_path / "out")
    assert {"net.engine", "net.engine.json", "net.engine.onnx"} <= set(found)
    assert manifests.check(tmp_path / "out" / "net.engine").warnings == ()
    readme = found["README.txt"].read_text()
    assert "TensorRT-RTX 1.7.1 and a GPU of compute capability 8.6 or 12.0." in readme
    assert "--saveEngine=net.engine" in readme
    assert "--loadEngine=net.engine" in readme


def test_the_readme_of_a_tensorrt_engine_asks_for_its_exact_version(tmp_path):
    bundle.bundle(engine(tmp_path / "in", runtime="tensorrt"), tmp_path / "out")
    assert "TensorRT 10.3.0, exactly" in (tmp_path / "out" / "README.txt").read_text()


def test_the_checksums_are_those_of_sha256sum(net, tmp_path):
    out = tmp_path / "out"
    result = bundle.bundle(net, out)
    lines = dict(reversed(line.split("  ")) for line in (out / "sha256sums.txt").read_text().splitlines())
    assert lines == {name: files.sha256(out / name) for name in result.files if name != "sha256sums.txt"}
    if tool := shutil.which("sha256sum"):
        subprocess.run([tool, "-c", "sha256sums.txt"], cwd=out, check=True, capture_output=True)


def test_the_script_says_what_predict_says_without_this_package(net, tmp_path):
    out = tmp_path / "out"
    bundle.bundle(net, out)
    image = use_graphs.noise(tmp_path / "noise.png")
    hidden = "import sys; sys.modules['se_deploy'] = None; sys.argv = sys.argv[1:]; "
    run = "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", hidden + run, str(out / "predict.py"), str(image)],
        check=True,
        capture_output=True,
        text=True,
    )
    name, *rows = done.stdout.splitlines()
    assert name == str(image)
    guesses = predict.predict(net, [image]).predictions[0].top
    assert [row.split() for row in rows] == [[f"{g.probability:.4%}", str(g.index), g.label] for g in guesses]


def test_the_script_feeds_frames_and_reads_the_scores_behind_the_best_class(tmp_path):
    given = case_graphs.save(case_graphs.frames(), tmp_path / "net.onnx")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcde"))
    result = bundle.bundle(given, tmp_path / "out", image=ImageOptions(labels=labels))
    assert result.warnings == ()
    described = json.loads((tmp_path / "out" / "input.json").read_text())
    assert (described["element"], described["layout"], described["height"]) == ("uint8", "NHWC", 32)
    image = use_graphs.noise(tmp_path / "noise.png", size=(50, 40))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "out" / "predict.py"), str(image)],
        check=True,
        capture_output=True,
        text=True,
    )
    pixels = np.asarray(data.preprocess(Image.open(image), codec_spec(tmp_path / "out" / "net.onnx")))
    assert pixels.dtype == np.uint8
    with registry.graph_runtime(SessionOptions(exact=True)).open(graph.load(given)) as session:
        scores = session.run({"img": pixels[None]})["prob"][0]
    rows = [row.split() for row in done.stdout.splitlines()[1:]]
    assert [row[1:] for row in rows] == [[str(i), "abcde"[i]] for i in np.argsort(-scores)]
    assert rows[0][0] == f"{scores.max():.4%}"


def codec_spec(path):
    return input_spec.read(graph.load(path).metadata_props)


SPECS = (
    use_graphs.spec(height=456, width=456, interpolation="bicubic"),
    use_graphs.spec(height=24, width=17, crop=0.875, rounding="nearest", layout="NHWC"),
    use_graphs.spec(height=21, width=19, resize="squash", antialias=False),
    use_graphs.spec(height=33, width=32, resize="longest", rounding="nearest", interpolation="lanczos"),
    use_graphs.spec(height=40, width=40, crop=1.15, interpolation="nearest"),
    use_graphs.spec(height=12, width=12, resize_size=(13, 13)),
    use_graphs.spec(channels=1, mean=(0.5,), std=(0.3,), height=9, width=30),
    use_graphs.spec(channels=4, mean=(0.5,) * 4, std=(0.3,) * 4),
    input_spec.frames(use_graphs.spec(height=21, width=19, antialias=False), "NHWC"),
    input_spec.frames(use_graphs.spec(height=24, width=17, resize="longest")),
)

ON_DEVICE = """
import json, pathlib, runpy, sys
sys.modules["se_deploy"] = None
import numpy
from PIL import Image
folder, *paths = map(pathlib.Path, sys.argv[1:])
for each in folder.iterdir():
    spec = json.loads((each / "input.json").read_text())
    prepare = runpy.run_path(str(each / "predict.py"), run_name="on_device")["prepare"]
    numpy.savez(each / "made.npz", *[prepare(Image.open(path), spec) for path in paths])
"""


def test_the_device_prepares_images_bit_for_bit_as_the_package_does(net, tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for mode, size in (("RGB", (601, 397)), ("L", (37, 53)), ("RGBA", (9, 41)), ("I;16", (24, 11))):
        depth = {"RGB": (3,), "RGBA": (4,)}.get(mode, ())
        top, kind = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
        paths.append(tmp_path / f"{len(paths)}.png")
        Image.fromarray(rng.integers(0, top, (*size[::-1], *depth), kind)).save(paths[-1])
    for i, spec in enumerate(SPECS):
        bundle.bundle(use_graphs.save(tmp_path / "net.onnx", spec=spec), tmp_path / "out" / str(i))
    subprocess.run([sys.executable, "-c", ON_DEVICE, str(tmp_path / "out"), *map(str, paths)], check=True)
    for i, spec in enumerate(SPECS):
        made = np.load(tmp_path / "out" / str(i) / "made.npz")
        for path, one in zip(paths, made.values(), strict=True):
            with Image.open(path) as image:
                want = data.preprocess(image, spec)
            assert (one.dtype, one.tobytes()) == (want.dtype, want.tobytes()), (spec, path)


def test_the_script_reads_a_description_without_the_later_fields():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8))
    older = json.loads(codec.encode(use_graphs.SPEC))
    assert "rounding" not in older
    np.testing.assert_array_equal(on_device.prepare(image, older), data.preprocess(image, use_graphs.SPEC))


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9))
def test_the_script_computes_probabilities_as_the_package_does(scores):
    row = np.array(scores)
    np.testing.assert_array_equal(on_device.probabilities(row), answers.probabilities(row[None])[0])


def test_without_an_input_spec_it_is_said_and_flags_give_one(tmp_path):
    bare = use_graphs.save(tmp_path / "bare.onnx", spec=None)
    result = bundle.bundle(bare, tmp_path / "out")
    assert "--input-size" in result.warnings[0]
    served = bundle.bundle(bare, tmp_path / "models", triton=True).warnings[0]
    assert ("input.json" in result.warnings[0], "input.json" in served) == (True, False)
    assert not {"input.json", "predict.py", "labels.txt"} & set(result.files)
    spec = use_graphs.SPEC
    image = ImageOptions(mean=spec.mean, std=spec.std, size=spec.shape)
    result = bundle.bundle(bare, tmp_path / "with", image=image)
    assert result.warnings == ()
    written = input_spec.read(ir.load(tmp_path / "with" / "bare.onnx").metadata_props)
    assert written == use_graphs.spec(labels=())


def test_flags_reach_an_engine_s_manifest(tmp_path):
    labels = tmp_path / "names.txt"
    labels.write_text("a\nb\nc\n")
    bundle.bundle(engine(tmp_path / "in"), tmp_path / "out", image=ImageOptions(labels=labels))
    assert manifests.check(tmp_path / "out" / "net.engine").manifest.input.labels == ("a", "b", "c")
    assert (tmp_path / "out" / "labels.txt").read_text() == "a\nb\nc\n"


def test_weights_beside_the_onnx_file_are_taken_in(tmp_path):
    proto = onnx.load(use_graphs.save(tmp_path / "se.onnx", use_graphs.SE))
    (tmp_path / "in").mkdir()
    split = tmp_path / "in" / "split.onnx"
    onnx.save(proto, split, save_as_external_data=True, location="split.data", size_threshold=0)
    bundle.bundle(split, tmp_path / "out")
    assert not (tmp_path / "out" / "split.data").exists()
    image = use_graphs.noise(tmp_path / "n.png")
    want, got = (predict.predict(p, [image]) for p in (split, tmp_path / "out" / "split.onnx"))
    assert want.predictions == got.predictions


def test_weights_beside_the_file_that_a_constant_names_are_taken_in(tmp_path):
    proto = onnx.load(use_graphs.save(tmp_path / "se.onnx", use_graphs.SE))
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w0")
    proto.graph.initializer.remove(weight)
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w0"], value=weight))
    held = proto.graph.node[0].attribute[0].t
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w0.data").write_bytes(held.raw_data)
    onnx.external_data_helper.set_external_data(held, location="w0.data")
    held.ClearField("raw_data")
    split = tmp_path / "in" / "split.onnx"
    split.write_bytes(proto.SerializeToString())
    assert onnx_files.weight_files(split) == ("w0.data",)
    bundle.bundle(split, tmp_path / "out")
    image = use_graphs.noise(tmp_path / "n.png")
    want, got = (predict.predict(p, [image]) for p in (split, tmp_path / "out" / "split.onnx"))
    assert want.predictions == got.predictions


@pytest.mark.parametrize("location", ["net.data", "weights/net.data"])
def test_weights_beside_an_engine_s_onnx_file_go_along(tmp_path, location):
    path = engine(tmp_path / "in")
    beside = tmp_path / "in" / "net.engine.onnx"
    proto = onnx.load(beside)
    beside.unlink()
    (beside.parent / location).parent.mkdir(exist_ok=True)
    onnx.save(proto, beside, save_as_external_data=True, location=location, size_threshold=0)
    known = replace(manifests.read(path), onnx_sha256=files.sha256(beside))
    manifests.write(known, manifests.path_of(path))
    result = bundle.bundle(path, tmp_path / "out")
    assert location in result.files
    image = use_graphs.noise(tmp_path / "n.png")
    want, got = (predict.predict(folder / beside.name, [image]) for folder in (path.parent, tmp_path / "out"))
    assert want.predictions == got.predictions


def test_an_engine_without_its_onnx_is_bundled_with_a_warning(tmp_path):
    path = engine(tmp_path / "in")
    (tmp_path / "in" / "net.engine.onnx").unlink()
    result = bundle.bundle(path, tmp_path / "out")
    assert "net.engine.onnx" in result.warnings[0]
    assert "predict.py" not in result.files
    assert "--saveEngine" not in (tmp_path / "out" / "README.txt").read_text()


def test_labels_that_do_not_fit_are_a_warning(tmp_path):
    net = use_graphs.save(tmp_path / "net.onnx", spec=use_graphs.spec(labels=("one",)))
    assert "1 label fits no output" in bundle.bundle(net, tmp_path / "out").warnings[0]


def test_own_files_are_replaced_only_when_told_and_others_never(net, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    (out / "README.txt").write_text("mine")
    with pytest.raises(OutputExists, match=r"README\.txt"):
        bundle.bundle(net, out)
    assert set(contents(out)) == {"notes.md", "README.txt"}
    bundle.bundle(net, out, overwrite=True)
    assert (out / "notes.md").read_text() == "mine"
    assert "bundled by se-deploy" in (out / "README.txt").read_text()


def test_nothing_is_left_where_a_file_cannot_be_made(net, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle.shutil, "copyfile", full)
    with pytest.raises(CannotWrite, match="No space left"):
        bundle.bundle(net, out)
    assert contents(out) == {}


def test_a_file_where_the_folder_should_be_is_an_error(net):
    with pytest.raises(CannotWrite, match="is a file"):
        bundle.bundle(net, net)


def test_an_engine_that_is_not_its_manifest_s_is_not_bundled(tmp_path):
    path = engine(tmp_path / "in")
    path.write_bytes(b"vtrt" + bytes(3))
    with pytest.raises(BadArtifact, match="sha256"):
        bundle.bundle(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_artifact_is_refused(tmp_path):
    program = tmp_path / "net.pt2"
    program.touch()
    with pytest.raises(BadInput, match="neither an engine nor an ONNX"):
        bundle.bundle(program, tmp_path / "out")


def run(capsys, *args):
    code = main([str(a) for a in args], standalone_mode=False)
    out = capsys.readouterr()
    return code or 0, out.out, out.err


def test_the_command_prints_one_object(net, tmp_path, capsys):
    code, out, err = run(capsys, "bundle", net, "-o", tmp_path / "out", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["schema"], found["folder"], found["triton"]) == (
        "se-deploy/bundle/1",
        str(tmp_path / "out"),
        False,
    )
    assert {Path(name) for name in found["files"]} == {Path(n) for n in contents(tmp_path / "out")}
    code, out, _ = run(capsys, "bundle", net, "-o", tmp_path / "out", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (1, "OutputExists")
    code, out, _ = run(capsys, "bundle", net, "-o", tmp_path / "m", "--triton", "--name", "n")
    assert code == 0
    assert "n/config.pbtxt" in out


def test_usage_errors_exit_with_2(net, tmp_path, capsys):
    assert run(capsys, "bundle", tmp_path / "no.onnx", "-o", tmp_path / "out")[0] == 2
    assert run(capsys, "bundle", net)[0] == 2
    assert run(capsys, "bundle", net, "-o", tmp_path / "out", "--name", "x")[0] == 2
