"""Inputs on which tools are silently wrong, through the command line: right, or refused with the reason."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import case_graphs
import needs
import numpy as np
import onnx
import pytest
from PIL import Image

from se_deploy import graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.cli import main
from se_deploy.quantization import to_fp16
from se_deploy.quantization.fp16_rounding import rounded
from se_deploy.schema import input_spec

EXACT = OrtRuntime(threads=1, optimize=False)
REORDERED = {"rtol": 1e-4, "atol": 1e-5}  # the same FP32 sums in another order


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words):
    code = main([str(word) for word in words], standalone_mode=False)
    out, err = capsys.readouterr()
    return code or 0, out, err


def in_fp16(proto, path):
    """Write a graph in FP16 throughout, whatever overflows, as other tools do."""
    graph.save(to_fp16(graph.load(case_graphs.save(proto, path))).model, path)


def answers(path, feeds):
    with EXACT.open(graph.load(path)) as session:
        return session.run(feeds)


def equal(given, made, *shape, **others):
    feeds = {"x": np.random.default_rng(0).standard_normal(shape, np.float32), **others}
    want, got = answers(given, feeds), answers(made, feeds)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, **REORDERED)


def data(name, count, *shape):
    np.save(name, np.random.default_rng(1).standard_normal((count, *shape), np.float32))
    return name


@pytest.mark.parametrize(
    ("x", "sizes"), [("float[N,3,h,w] x", (16, 40)), ("float[N,3,16,16] x", (16,))], ids=["free", "fixed"]
)
@pytest.mark.parametrize("verb", ["export", pytest.param("build-engine", marks=needs.RTX)])
def test_a_sum_that_is_divided_by_ten_stays_what_it_is(folder, capsys, x, sizes, verb):
    given = case_graphs.save(case_graphs.sum_by_ten(x), folder / "net.onnx")
    shapes = ("--opt-shapes", "x:1x3x32x32") if "h" in x and verb == "build-engine" else ()
    code, out, _ = run(capsys, verb, given, "-o", "out.engine", "--json", "--no-rewrites", *shapes)
    assert code == 0
    verified = json.loads(out)["verified"]
    assert (verified["passed"], verified["taken_back"]) == (True, [])
    made = folder / ("out.engine" if verb == "export" else "out.engine.onnx")
    for size in sizes:
        equal(given, made, 2, 3, size, size)


def test_the_sizes_of_a_check_are_stated_and_never_one_pixel(folder, capsys):
    given = case_graphs.save(case_graphs.auto_pad(), folder / "net.onnx")
    code, out, _ = run(capsys, "export", given, "-o", "out.onnx", "--json")
    inputs = json.loads(out)["verified"]["inputs"]
    assert code == 0
    assert len({tuple(one["dims"][2:]) for one in inputs}) == 2
    assert len({one["dims"][0] for one in inputs}) == 2
    assert all(min(one["dims"][2:]) > 1 for one in inputs)
    equal(given, folder / "out.onnx", 2, 3, 21, 34)


@pytest.mark.parametrize("verb", ["export", pytest.param("build-engine", marks=needs.RTX)])
def test_a_sum_beyond_fp16_stays_in_fp32_or_becomes_a_mean(folder, capsys, verb):
    given = case_graphs.save(case_graphs.large_sum(), folder / "net.onnx")
    words = (verb, given, "--fp16", "-o", "out.engine", "--json", "--no-rewrites")
    code, out, _ = run(capsys, *words)
    found = json.loads(out)
    assert (code, found["verified"]["passed"]) == (0, True)
    made = graph.load(folder / ("out.engine" if verb == "export" else "out.engine.onnx"))
    sums = [node for node in made.graph if node.op_type == "ReduceSum"]
    assert all("'su' reaches" in kept["reason"] for kept in found["kept_fp32"])
    assert {node.name for node in sums} <= {kept["node"] for kept in found["kept_fp32"]}
    feeds = {"x": np.ones((1, 3, 224, 224), np.float32)}
    with EXACT.open(rounded(made)) as session:
        got = session.run(feeds)["y"]
    np.testing.assert_allclose(got, answers(given, feeds)["y"], rtol=1e-2, atol=1e-2)


def test_an_eps_that_fp16_has_not_stays_in_fp32_with_its_division(folder, capsys):
    given = case_graphs.save(case_graphs.tiny_eps(), folder / "net.onnx")
    code, out, _ = run(capsys, "export", given, "--fp16", "-o", "out.onnx", "--json")
    kept = json.loads(out)["kept_fp32"]
    assert code == 0
    assert any("eps" in one["reason"] and "0 in FP16" in one["reason"] for one in kept)
    feeds = {"x": np.zeros((1, 3, 16, 16), np.float32)}
    with EXACT.open(rounded(graph.load(folder / "out.onnx"))) as session:
        assert np.isfinite(session.run(feeds)["y"]).all()


def test_no_verdict_asks_for_the_flag_that_was_given(folder, capsys):
    given = case_graphs.save(case_graphs.tiny_eps(), folder / "net.onnx")
    code, out, _ = run(capsys, "build-engine", given, "--fp16", "-o", "out.engine", "--json", "--no-rewrites")
    reasons = [text for block in json.loads(out)["plan"]["blocks"] for text in block["reasons"]]
    assert code == 0
    assert any("the graph asks for float16" in text for text in reasons)
    assert not any("--fp16" in text for text in reasons)


def test_an_fp16_file_that_overflows_on_a_device_is_built_and_fails(folder, capsys):
    proto = case_graphs.large_sum()
    mean = next(node for node in proto.graph.node if node.output[0] == "p")
    proto.graph.node.remove(
        mean
    )  # its factor goes into the next convolution, so that a kernel writes the sum
    reader = next(node for node in proto.graph.node if "p" in node.input)
    reader.input[0] = "su"
    weights = next(one for one in proto.graph.initializer if one.name == reader.input[1])
    scaled = onnx.numpy_helper.to_array(weights) / np.float32(112 * 112)
    weights.CopyFrom(onnx.numpy_helper.from_array(scaled, weights.name))
    in_fp16(proto, folder / "half.onnx")
    with EXACT.open(graph.load(folder / "half.onnx")) as session:  # which rounds nothing between its kernels
        assert np.isfinite(session.run({"x": np.ones((1, 3, 224, 224), np.float32)})["y"]).all()
    code, out, err = run(capsys, "build-engine", "half.onnx", "-o", "out.engine", "--json")
    found = json.loads(out)["verified"]
    assert (code, found["passed"], [one["kind"] for one in found["inputs"]]) == (
        3,
        False,
        ["noise", "extremes"],
    )
    assert "not finite" in err
    code, out, _ = run(capsys, "build-engine", "half.onnx", "-o", "other.engine", "--no-verify", "--json")
    assert (code, json.loads(out)["verified"]["skipped"]) == (0, True)


@pytest.mark.parametrize("case", [case_graphs.dead_branch, case_graphs.taken_names])
def test_int8_of_awkward_graphs_is_written_finite_and_builds(folder, capsys, case):
    given = case_graphs.save(case(), folder / "net.onnx")
    code, out, err = run(
        capsys, "quantize", given, "--calib-data", data("x.npy", 32, 3, 16, 16), "-o", "int8.onnx", "--json"
    )
    assert (code, "RuntimeWarning" in err) == (0, False)
    result = json.loads(out)
    assert result["verified"]["passed"]
    if case is case_graphs.dead_branch:
        assert any(one["tensor"] == "d" and one["reason"] for one in result["ranges"])
    made = onnx.load("int8.onnx")
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer}
    quantizers = [n for n in made.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    scales = [stored[node.input[1]] for node in quantizers]
    assert scales
    assert all(np.isfinite(scale).all() and (scale > 0).all() and (scale <= 65504).all() for scale in scales)
    code, out, _ = run(capsys, "build-engine", "int8.onnx", "-o", "net.engine", "--json")
    assert (code, json.loads(out)["found_precision"]) == (0, "int8")


@pytest.mark.parametrize("inputs", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_exported_program_is_taken_with_its_inputs(folder, capsys, inputs):
    del folder
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.line = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Linear(7, 8)
            self.fc1, self.fc2 = torch.nn.Conv2d(8, 4, 1), torch.nn.Conv2d(4, 8, 1)

        def forward(self, image, meta=None):
            x = torch.relu(self.conv(image))
            x = x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
            return x.mean((2, 3)) + (0 if meta is None else self.line(meta))

    n = torch.export.Dim("n")
    examples = (torch.randn(2, 3, 16, 16), torch.randn(2, 7))[:inputs]
    program = torch.export.export(Net().eval(), examples, dynamic_shapes=({0: n}, {0: n})[:inputs])
    torch.export.save(program, "net.pt2")
    code, out, err = run(capsys, "export", "net.pt2", "-o", "net.onnx", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (len(result["blocks"]), result["verified"]["passed"]) == (1, True)
    assert len({one["name"] for one in result["verified"]["inputs"]}) == inputs


def test_training_mode_is_refused_by_name(folder, capsys):
    given = case_graphs.save(case_graphs.training_batch_norm(), folder / "net.onnx")
    code, out, _ = run(capsys, "export", given, "-o", "out.onnx", "--json")
    assert code == 1
    assert "BatchNormalization 'bn' is in training mode" in json.loads(out)["error"]["message"]
    assert not (folder / "out.onnx").exists()


def test_a_free_size_quantizes_without_a_hint_that_cannot_be_followed(folder, capsys):
    given = case_graphs.save(case_graphs.auto_pad(), folder / "net.onnx")
    calibration = data("calib.npy", 12, 3, 24, 24)
    code, out, err = run(capsys, "quantize", given, "--calib-data", calibration, "-o", "q.onnx", "--json")
    assert code == 0, err
    assert json.loads(out)["quantized"]


def test_a_latency_needs_a_size_that_somebody_named(folder, capsys):
    given = case_graphs.save(case_graphs.auto_pad(), folder / "net.onnx")
    quick = ("--duration-s", "0", "--iterations", "1", "--warmup-ms", "0", "--json")
    code, out, _ = run(capsys, "profile", given, *quick)
    error = json.loads(out)["error"]
    assert code == 1
    assert "size of input 'x'" in error["message"]
    assert "--input-size" in error["hint"]
    for flag in (("--input-size", "3x40x48"), ("--opt-shapes", "x:1x3x40x48")):
        code, out, _ = run(capsys, "profile", given, *quick, *flag)
        assert code == 0
        assert json.loads(out)["artifacts"][0]["shapes"] == {"x": [1, 3, 40, 48]}


def test_a_gate_beside_a_scalar_factor_is_one_block(folder, capsys):
    given = case_graphs.save(case_graphs.scalar_factor(), folder / "net.onnx")
    code, out, _ = run(capsys, "export", given, "-o", "out.onnx", "--json")
    assert code == 0
    assert [block["kind"] for block in json.loads(out)["blocks"]] == ["se"]
    equal(given, folder / "out.onnx", 2, 3, 16, 16, alpha=np.float32(0.7).reshape(()))


@pytest.mark.parametrize(
    "command", [("export", "-o", "out.onnx"), ("inspect",), ("build-engine", "-o", "e.engine")]
)
def test_a_file_that_asks_for_gigabytes_is_refused_by_node(folder, capsys, command):
    given = case_graphs.save(case_graphs.huge_range(), folder / "net.onnx")
    code, out, _ = run(capsys, command[0], given, *command[1:], "--json")
    assert code == 1
    assert "2,147,483,648 numbers" in json.loads(out)["error"]["message"]
    assert "Range" in json.loads(out)["error"]["message"]


def test_no_control_character_of_a_name_reaches_the_terminal_or_a_text_file(folder, capsys):
    given = case_graphs.save(case_graphs.escape_in_a_name(), folder / "net.onnx")
    calibration = data("calib.npy", 8, 3, 16, 16)
    commands = [
        ("export", given, "-o", "out.onnx"),
        ("export", given, "-o", "other.onnx", "-v", "--runtime", "onnxruntime"),
        ("inspect", given, "--plan", "--runtime", "onnxruntime", "--html", "page.html"),
        ("inspect", given, "--json"),
        ("parity", given, "out.onnx", "--data", calibration, "--junit", "j.xml"),
        ("parity", given, "out.onnx", "--data", calibration, "--atol", "m\x1b[31mred:1"),
        ("export", given, "-o", "out.onnx"),  # an error: it is there already
        ("inspect", "no\x1b[31mfile.onnx"),
    ]
    for command in commands:
        _, out, err = run(capsys, *command)
        assert "\x1b" not in out + err, command
    _, out, _ = run(capsys, "inspect", given)
    assert r"m\x1b[31mred" in out
    for path in (folder / "j.xml", folder / "page.html"):
        assert "\x1b" not in path.read_text("utf-8")
    ET.parse(folder / "j.xml")  # noqa: S314 - our own file


def test_a_batch_of_eight_answers_for_twenty_samples(folder, capsys):
    given = case_graphs.save(case_graphs.frozen_batch(), folder / "net.onnx")
    samples = data("twenty.npy", 20, 3, 16, 16)
    assert run(capsys, "export", given, "-o", "out.onnx")[0] == 0
    assert run(capsys, "quantize", given, "--calib-data", samples, "-o", "q.onnx")[0] == 0
    code, out, _ = run(capsys, "parity", given, "out.onnx", "q.onnx", "--data", samples, "--json")
    assert code == 0
    assert [one["samples"] for one in json.loads(out)["candidates"]] == [20, 20]


@pytest.mark.parametrize(("reference", "fed"), [(8, 8), ("N", 4)])
def test_fewer_samples_than_a_batch_are_the_batch_that_is_stated(folder, capsys, reference, fed):
    given = case_graphs.save(case_graphs.frozen_batch(reference), folder / "net.onnx")
    samples = data("four.npy", 4, 3, 16, 16)
    _, out, _ = run(capsys, "parity", given, given, "--data", samples, "--json")
    assert json.loads(out)["candidates"][0]["shapes"] == {"x": [fed, 3, 16, 16]}


@pytest.mark.parametrize(("reference", "candidate", "fed"), [(8, "N", 8), ("N", 8, 8), (8, 1, 1), (1, 8, 8)])
def test_padding_is_compared_with_nothing(folder, capsys, reference, candidate, fed):
    case_graphs.save(case_graphs.frozen_batch(reference), folder / "one.onnx")
    case_graphs.save(case_graphs.frozen_batch(candidate), folder / "other.onnx")
    samples = data("twenty.npy", 20, 3, 16, 16)
    code, out, _ = run(capsys, "parity", "one.onnx", "other.onnx", "--data", samples, "--json")
    (found,) = json.loads(out)["candidates"]
    assert code == 0
    assert (found["samples"], found["shapes"]) == (20, {"x": [fed, 3, 16, 16]})
    assert found["outputs"][0]["max_abs"] < 1e-6


QUICK = ("--duration-s", "0", "--iterations", "1", "--warmup-ms", "0")


def pictures(folder, count=8):
    """Write images of which each pixel is known, already of the network's size."""
    pixels = np.random.default_rng(2).integers(0, 256, (count, 32, 32, 3), np.uint8)
    folder.mkdir()
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{i}.png")
    return pixels


@pytest.fixture(params=["fixed", "free"])
def frames(request, folder):
    """Camera frames as 06 takes them: (the file, the flags that a free size needs, the pixels of pics/)."""
    free = request.param == "free"
    x = "uint8[N,h,w,3] img" if free else "uint8[N,32,32,3] img"
    given = case_graphs.save(case_graphs.frames(x), folder / "net.onnx")
    return given, ("--input-size", "3x32x32") if free else (), pictures(folder / "pics")


def taken(path):
    model = graph.load(Path(path))
    return (
        graph.dims(model.graph.inputs[0]),
        model.graph.inputs[0].dtype.name,
        input_spec.read(model.metadata_props),
    )


@pytest.mark.slow
@pytest.mark.parametrize("source", ["pictures", "arrays"])
def test_frames_are_quantized_built_compared_and_timed(folder, capsys, frames, source):
    given, size, pixels = frames
    np.save("frames.npy", pixels)
    calibration, plain = "pics" if source == "pictures" else "frames.npy", ("--no-rewrites",)
    commands = [
        ("quantize", given, "--calib-data", calibration, "-o", "q.onnx", *size),
        ("build-engine", given, "--int8", "--calib-data", calibration, "-o", "e.engine", *plain, *size),
        ("parity", given, "q.onnx", "e.engine", "--data", calibration, *size),
        ("profile", given, "q.onnx", *QUICK, *size),
    ]
    for command in commands:
        code, out, err = run(capsys, *command, "--json")
        assert code == 0, (command, err)
        found = json.loads(out)
        assert found.get("verified", {"passed": True})["passed"] is True
        if command[0] == "parity":
            assert [o["top1_agreement"] for c in found["candidates"] for o in c["outputs"]] == [1.0] * 4
            assert [c["samples"] for c in found["candidates"]] == [8, 8]
        if command[0] == "profile":
            assert found["artifacts"][0]["shapes"] == {"img": [1, 32, 32, 3]}
    for name in ("q.onnx", "e.engine.onnx"):
        dims, dtype, spec = taken(name)
        assert (dims, dtype) == ((None, 32, 32, 3), "UINT8")
        assert (spec.element, spec.layout, spec.dims) == ("uint8", "NHWC", (32, 32, 3))


def test_pictures_and_their_own_pixels_calibrate_alike(folder, capsys, frames):
    given, size, pixels = frames
    np.save("frames.npy", pixels)
    ranges = []
    for calibration in ("pics", "frames.npy"):
        words = ("quantize", given, "--calib-data", calibration, "-o", f"{calibration}.onnx", "--json", *size)
        code, out, _ = run(capsys, *words)
        assert code == 0
        ranges.append(json.loads(out)["ranges"])
    assert ranges[0] == ranges[1]


def test_frames_are_exported_in_both_precisions_and_predicted(folder, capsys, frames):
    given, size, pixels = frames
    want = answers(given, {"img": pixels[:1]})["prob"][0]
    for name, *flags in (("x.onnx",), ("h.onnx", "--fp16")):
        code, out, _ = run(capsys, "export", given, "-o", name, "--json", *flags, *size)
        assert (code, json.loads(out)["verified"]["passed"]) == (0, True)
        assert taken(name)[:2] == ((None, 32, 32, 3), "UINT8")
        code, out, _ = run(capsys, "predict", name, "pics/0.png", "--json")
        guesses = json.loads(out)["predictions"][0]["top"]
        assert code == 0
        for guess in guesses:
            assert guess["probability"] == pytest.approx(want[guess["index"]], abs=1e-2 if flags else 1e-6)


@pytest.mark.slow  # a run each; the single commands are above
def test_a_run_leads_frames_to_engines_that_keep_their_parity(folder, capsys, frames):
    given, size, _ = frames
    words = ("run", given, "--calib-data", "pics", "-o", "out", "--no-rewrites", "--json", *QUICK, *size)
    code, out, err = run(capsys, *words)
    assert code == 0, err
    found = json.loads(out)
    assert found["parity"]["passed"] is True
    assert found["network"]["input"]["element"] == "uint8"
    assert taken("out/model.int8.engine.onnx")[:2] == ((None, 32, 32, 3), "UINT8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "pics/0.png", "--mean", "0.5,0.5,0.5"), "the graph normalizes itself"),
        (("predict", "pics/0.png", "--input-size", "3x48x48"), "--input-size says 3x48x48"),
        (("quantize", "--calib-data", "floats.npy", "-o", "q.onnx"), "takes uint8"),
    ],
)
def test_what_would_spoil_frames_is_refused(folder, capsys, words, said):
    given = case_graphs.save(case_graphs.frames(), folder / "net.onnx")
    np.save("floats.npy", pictures(folder / "pics") / np.float32(255))
    code, out, _ = run(capsys, words[0], given, *words[1:], "--json")
    assert code == 1
    assert said in json.loads(out)["error"]["message"]


def test_a_free_size_of_frames_is_asked_for_channels_first(folder, capsys):
    given = case_graphs.save(case_graphs.frames("uint8[N,h,w,3] img"), folder / "net.onnx")
    pictures(folder / "pics")
    for words in (("profile", given), ("quantize", given, "--calib-data", "pics", "-o", "q.onnx")):
        code, out, _ = run(capsys, *words, "--json")
        hint = json.loads(out)["error"]["hint"]
        assert code == 1
        assert "--input-size 3x?x?" in hint or "--input-size CxHxW" in hint
        assert "--mean" not in hint


PREPARED = ("--input-size", "3x16x16", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


def test_baked_preprocessing_is_the_one_outside_in_every_precision(folder, capsys):
    given = case_graphs.save(case_graphs.frozen_batch("N"), folder / "net.onnx")
    pictures(folder / "pics")
    assert run(capsys, "export", given, "-o", "plain.onnx", *PREPARED)[0] == 0
    baked = ("export", given, *PREPARED, "--bake-preprocessing", "--json")
    code, out, _ = run(capsys, *baked, "-o", "baked.onnx")
    assert (code, json.loads(out)["verified"]["passed"], json.loads(out)["max_abs_error"]) == (0, True, 0.0)
    code, out, _ = run(capsys, *baked, "-o", "half.onnx", "--fp16", "--calib-data", "pics")
    assert (code, json.loads(out)["verified"]["passed"]) == (0, True)
    prepares = "it prepares uint8 frames"
    assert sum(kept["reason"].startswith(prepares) for kept in json.loads(out)["kept_fp32"]) == 5
    half = graph.load(folder / "half.onnx")
    assert {n.outputs[0].dtype.name for n in half.graph if n.op_type in {"Sub", "Div"}} == {"FLOAT"}
    for reference, others in (("plain.onnx", ("baked.onnx", "half.onnx")), ("baked.onnx", ("plain.onnx",))):
        code, out, _ = run(capsys, "parity", reference, *others, "--data", "pics", "--json")
        candidates = json.loads(out)["candidates"]
        assert code == 0
        assert candidates[0]["outputs"][0]["max_abs"] == 0.0
        assert all(one["passed"] for one in candidates)


@pytest.mark.slow  # a run; the single commands are above
def test_a_run_with_baked_preprocessing_is_compared_with_what_was_given(folder, capsys):
    given = case_graphs.save(case_graphs.frozen_batch("N"), folder / "net.onnx")
    pictures(folder / "pics")
    words = ("run", given, *PREPARED, "--bake-preprocessing", "--calib-data", "pics", "-o", "out")
    code, out, err = run(capsys, *words, "--no-rewrites", "--json", *QUICK)
    assert code == 0, err
    found = json.loads(out)
    assert found["parity"]["passed"] is True
    assert found["parity"]["reference"] == str(given)
    assert found["parity"]["candidates"][0]["outputs"][0]["max_abs"] == 0.0
    for name in ("model.onnx", "model.int8.onnx", "model.int8.engine.onnx"):
        dims, dtype, spec = taken(f"out/{name}")
        assert (dims, dtype, spec.element) == ((None, 16, 16, 3), "UINT8", "uint8")


NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 5)

    def forward(self, image):
        return self.fc(torch.relu(self.conv(image)).mean((2, 3)))
"""


@pytest.mark.slow
def test_a_run_of_a_network_compares_frames_with_what_pytorch_says_of_prepared_images(folder, capsys):
    (folder / "net.py").write_text(NETWORK)
    pictures(folder / "pics")
    words = ("run", "net.py:Net", *PREPARED, "--bake-preprocessing", "--fp16", "--data", "pics", "-o", "out")
    code, out, err = run(capsys, *words, "--no-rewrites", "--json", *QUICK)
    assert code == 0, err
    found = json.loads(out)
    assert found["export"]["verified"]["passed"] is True
    assert found["parity"]["passed"] is True
    assert taken("out/model.fp16.engine.onnx")[:2] == ((None, 16, 16, 3), "UINT8")


def test_a_layout_is_for_files_alone(folder, capsys):
    (folder / "net.py").write_text(NETWORK)
    code, out, _ = run(
        capsys, "export", "net.py:Net", *PREPARED, "--layout", "NHWC", "-o", "x.onnx", "--json"
    )
    assert code == 1
    assert "a network in PyTorch" in json.loads(out)["error"]["message"]


BATCHES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4,6,6] x) => (float[P,Q,R,S] y) <int64[4] two = {2, 4, -1, 6}> { %s }"""
TOGETHER = {
    "a mean over the batch": "m = ReduceMean<axes = [0]>(x) y = Sub(x, m)",
    "a fixed first axis": "y = Reshape(x, two)",
}


@pytest.mark.parametrize("body", TOGETHER.values(), ids=TOGETHER)
def test_answers_that_hang_together_in_a_batch_are_warned_of_by_every_command(folder, capsys, body):
    """A batch was held against the same batch, and nothing said that another one gives other answers."""
    onnx.save(onnx.parser.parse_model(BATCHES % body), "net.onnx")
    x = data("x.npy", 6, 4, 6, 6)
    for words in (("export", "net.onnx", "-o", "out.onnx"), ("parity", "net.onnx", "net.onnx", "--data", x)):
        code, out, err = run(capsys, *words, "--json")
        assert code == 0, err
        (warning,) = [text for text in json.loads(out)["warnings"] if "output 'y'" in text]
        assert "no row for each sample" in warning or "depends on the batch" in warning
        assert run(capsys, *words, "--json", "--strict", *(["--overwrite"] * (words[0] == "export")))[0] == 1
    onnx.save(onnx.parser.parse_model(BATCHES % "y = Neg(x)"), "plain.onnx")
    _, out, _ = run(capsys, "parity", "plain.onnx", "plain.onnx", "--data", x, "--json")
    assert json.loads(out)["warnings"] == []


def test_what_depends_on_padding_is_refused(folder, capsys):
    """A file frozen to four images and asked of one answered with the mean of four copies of it."""
    text = BATCHES.replace("N,4,6,6", "4,4,6,6") % "m = ReduceMean<axes = [0]>(x) y = Sub(x, m)"
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    x = data("x.npy", 6, 4, 6, 6)
    code, out, _ = run(capsys, "parity", "net.onnx", "net.onnx", "--data", x, "--json")
    assert code == 1
    error = json.loads(out)["error"]
    assert "would be answered with padding" in error["message"]
    assert "a multiple of 4" in error["hint"]
