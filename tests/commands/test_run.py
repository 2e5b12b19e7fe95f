"""`run` and `demo` from end to end, on real files."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import needs
import numpy as np
import onnx
import pytest
import torch_nets
from onnx import numpy_helper
from PIL import Image
from test_cli import NET, WEIGHTS
from test_cli import run as call

from se_deploy.cli import main
from se_deploy.commands.run_result import RunResult
from se_deploy.schema import input_spec

KEYS = {
    "schema", "tool_version", "warnings", "report", "artifacts", "export", "inspect", "quantize",
    "build-engine", "build-engines", "parity", "profile", "verdicts", "recommendation",
}  # fmt: skip
QUICK = ["--search-plans", "3", "--warmup-ms", "1", "--duration-s", "0.05", "--threads", "1"]
ONLY_FP16 = ["--fp16", "--data", "photos", "--json", "--no-rewrites", *QUICK[2:]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with an ONNX file that carries its input spec, and two classes of photographs."""
    folder = tmp_path_factory.mktemp("work")
    proto = onnx.parser.parse_model(NET)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    metadata = {}
    input_spec.write(metadata, input_spec.InputSpec("input", 3, 16, 16, (0.5,) * 3, (0.25,) * 3))
    proto.metadata_props.add(key=input_spec.METADATA_KEY, value=metadata[input_spec.METADATA_KEY])
    onnx.save(proto, folder / "net.onnx")
    for kind in ("cat", "dog"):
        (folder / "photos" / kind).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / kind / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def made(files):
    """The folder after `run` on it, and the object that it printed."""
    out = io.StringIO()
    words = ["run", "net.onnx", "--calib-data", "photos", "-o", "out", "--json", "-q", *QUICK]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(files)
        assert not main(words, standalone_mode=False)
    return files, json.loads(out.getvalue())


@needs.RTX
def test_run_leaves_artifacts_and_a_report(made):
    files, result = made
    assert set(result) >= KEYS
    assert result["schema"] == "se-deploy/run/1"
    folder = files / "out"
    assert json.loads((folder / "report.json").read_text()) == result
    for path in result["artifacts"].values():
        assert (folder / path).is_file()
    for name in ("fp16", "int8"):
        assert (folder / f"model.{name}.engine").read_bytes()[:4] == b"vtrt"
        built = result["build-engines"][name]
        assert (built["requested_precision"], built["found_precision"]) == (name, name)
    assert {c["path"] for c in result["parity"]["candidates"]} >= {"model.onnx", "model.int8.engine"}
    assert any("not run" in c["checked_as"] for c in result["parity"]["candidates"] if c["checked_as"])
    assert "<svg" in (folder / "report.html").read_text()
    assert str(files) not in json.dumps(result)


@needs.RTX
def test_both_forms_of_int8_are_planned_by_the_compiler_of_the_engine(made):
    files, result = made
    deployed, portable = result["build-engines"]["int8"]["worth"], result["quantize"]["worth"]
    assert deployed["int8_kernels"] == result["build-engines"]["int8"]["plan"]["kernels"]
    assert portable["int8_bytes"] > 0
    assert portable["int8_kernels"] != deployed["int8_kernels"], "offsets and factors cost kernels"
    assert "tensorrt-rtx" in portable["reason"]
    assert result["quantize"]["worth_unknown"] is None
    assert "Bytes per image</th>" in (files / "out" / "report.html").read_text()


@needs.RTX
def test_an_engine_is_inspected_without_a_gpu(made, capsys):
    files, _ = made
    code, out, _ = call(capsys, "inspect", files / "out" / "model.fp16.engine", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["manifest"]["precision"] == "fp16"
    assert len(result["blocks"]) == len(result["plans"][0]["blocks"]) == 1
    engine = files / "tampered.engine"
    engine.write_bytes((files / "out" / "model.fp16.engine").read_bytes() + b"x")
    manifest = (files / "out" / "model.fp16.engine.json").read_text()
    (files / "tampered.engine.json").write_text(manifest)
    code, _, err = call(capsys, "inspect", engine)
    assert code == 1
    assert "tampered.engine" in err


@needs.RTX
def test_runs_side_by_side(made, capsys, tmp_path):
    files, _ = made
    words = ["report", files / "out", files / "out", "-o", tmp_path / "both.html", "--json"]
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert len(json.loads(out)["runs"]) == 2
    assert "<html" in (tmp_path / "both.html").read_text()
    code, _, err = call(capsys, "report", tmp_path)
    assert code == 1
    assert "report.json" in err


@needs.RTX
def test_fp16_alone_needs_no_calibration(files, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(files)
    words = ["run", "net.onnx", *ONLY_FP16, "-o", tmp_path]
    code, out, err = call(capsys, *words)
    assert code == 0, err
    result = json.loads(out)
    assert list(result["build-engines"]) == ["fp16"]
    assert result["quantize"] is None
    assert not (tmp_path / "model.int8.onnx").exists()


MISTAKES = {
    "'image', which is no input or output of the network": ["--fp16", "--io-format", "image:HWC8"],
    "names 'image', which is no input": ["--fp16", "--min-shapes", "image:1x3x8x8"],
    "--dla-core: TensorRT-RTX": ["--fp16", "--dla-core", "0"],
    "--io fp16 is for FP32 files": ["--io", "fp16"],
}


@needs.RTX
@pytest.mark.parametrize("network", [["net.onnx"], ["net.py:Clip", "--input", "clip:Nx3x4x8x8"]])
@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_in_how_engines_are_built_is_found_before_the_export(
    files, capsys, tmp_path, network, said
):
    (files / "net.py").write_text(torch_nets.NETS)
    asked = ["run", files / network[0], *network[1:], "--allow-random-calibration", *MISTAKES[said]]
    code, out, err = call(capsys, *asked, "--runtime", "tensorrt-rtx", "-o", tmp_path / "out", "-v", "--json")
    assert code == 1
    assert said in json.loads(out)["error"]["message"]
    assert "canonical form" not in err, "it began"
    assert "the source's answers" not in err, "the export is done"
    assert not list((tmp_path / "out").iterdir())


def test_files_that_exist_are_kept(files, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(files)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "model.onnx").write_text("mine too")
    code, _, err = call(capsys, "run", "net.onnx", "--calib-data", "photos", "-o", tmp_path, *QUICK)
    assert code == 1
    assert "--overwrite" in err
    assert (tmp_path / "model.onnx").read_text() == "mine too"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "model.onnx"]


@pytest.mark.slow
def test_demo_keeps_the_answers(tmp_path, capsys):
    code, out, err = call(capsys, "demo", "-o", tmp_path / "out", "--json", "--duration-s", "0.2")
    assert code == 0, err
    result = json.loads(out)
    assert set(result) >= KEYS
    assert result["schema"] == "se-deploy/demo/1"
    assert len(result["export"]["blocks"]) == 9
    accuracy = {c["path"]: c["accuracy"] for c in result["parity"]["candidates"]}
    reference = result["parity"]["reference_accuracy"]
    assert reference >= 0.985
    assert all(c["samples"] == 1000 for c in result["parity"]["candidates"])
    for path in ("model.int8.onnx", "model.int8.engine"):
        assert abs(accuracy[path] - reference) <= 0.003 + 1e-9, path
    assert result["verdicts"]["parity"]
    assert result["verdicts"]["precision"]


class Candidate:
    """What a recommendation asks of an engine: its verdicts and whether INT8 pays."""

    def __init__(self, name, *, precision=(), worth=None):
        self.engine, self.precision_failures = Path(f"model.{name}.engine"), precision
        self.fusion_failures, self.worth = (f"{name} splits",), worth


def recommendation(*, int8_pays, failing=(), precision=()):
    """The recommendation, and the plan that the fusion verdict is of."""
    worth = SimpleNamespace(worth_it=int8_pays, reason="INT8 moves less" if int8_pays else "INT8 moves more")
    candidates = [
        SimpleNamespace(path=f"model.{name}.engine", failures=("cosine is low",) if name in failing else ())
        for name in ("fp16", "int8")
    ]
    result = RunResult(
        folder=Path("out"), verb="run", command="", date="", export=None, inspection=None, quantize=None,
        engines={
            "fp16": Candidate("fp16", precision=("runs in fp32",) if "fp16" in precision else ()),
            "int8": Candidate("int8", worth=worth),
        },
        parity=SimpleNamespace(candidates=candidates), profile=SimpleNamespace(artifacts=()), warnings=(),
    )  # fmt: skip
    return result.recommendation, result.failures["fusion"]


@pytest.mark.parametrize(
    ("given", "words", "plan"),
    [
        ({"int8_pays": True}, "deploy the INT8 engine: INT8 moves less", "int8"),
        ({"int8_pays": False}, "deploy the FP16 engine: INT8 moves more", "fp16"),
        (
            {"int8_pays": True, "failing": ["int8"]},
            "deploy the FP16 engine: the INT8 engine is planned to be cheaper, but fails: cosine is low",
            "fp16",
        ),
        (
            {"int8_pays": False, "failing": ["fp16"]},
            "deploy the INT8 engine: the FP16 engine is planned to be cheaper, but fails: cosine is low",
            "int8",
        ),
        ({"int8_pays": False, "precision": ["fp16"]}, "but fails: runs in fp32", "int8"),
        (
            {"int8_pays": True, "failing": ["fp16", "int8"]},
            "deploy none of these engines: FP16: cosine",
            "fp16",
        ),
    ],
)
def test_no_recommendation_contradicts_a_verdict(given, words, plan):
    text, fusion = recommendation(**given)
    assert words in text
    assert fusion == (f"{plan} splits",), "the fusion verdict is of the plan that is deployed"


@needs.RTX
def test_an_earlier_run_s_engines_do_not_pass_for_this_one_s(files, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(files)
    stale = [tmp_path / name for name in ("model.int8.engine", "model.int8.engine.json", "model.int8.onnx")]
    for path in (*stale, tmp_path / "model.notes.txt"):
        path.write_text("earlier")
    words = ["run", "net.onnx", *ONLY_FP16, "-o", tmp_path]
    code, out, _ = call(capsys, *words)
    assert (code, json.loads(out)["error"]["kind"]) == (1, "OutputExists")
    code, out, err = call(capsys, *words, "--overwrite")
    assert code == 0, err
    listed = set(json.loads(out)["artifacts"].values())
    assert listed == {
        "model.onnx", "model.fp16.onnx",
        "model.fp16.engine", "model.fp16.engine.json", "model.fp16.engine.onnx",
    }  # fmt: skip
    assert not any(path.exists() for path in stale)
    assert (tmp_path / "model.notes.txt").exists(), "files of others are kept"


@needs.RTX
def test_a_file_in_another_precision_is_refused_or_said_so(made, capsys, monkeypatch):
    files, _ = made
    monkeypatch.chdir(files / "out")
    for words, expected in (
        (["model.fp16.onnx", "--int8", "--calib-data", "../photos"], "in FP16 already"),
        (["model.int8.onnx", "--fp16"], "quantized already"),
        (["model.fp16.onnx", "--precision", "fp32"], "in FP16 already"),
    ):
        code, _, err = call(capsys, "build-engine", *words, "-o", "again.engine")
        assert (code, expected in err) == (1, True), err
        assert not Path("again.engine").exists()
    code, out, _ = call(
        capsys, "build-engine", "model.int8.onnx", "--calib-data", "../photos", "-o", "again.engine", "--json"
    )
    result = json.loads(out)
    assert code == 0
    assert any("was not used" in text for text in result["warnings"])
    assert result["worth"]["fp16_bytes"] != result["worth"]["int8_bytes"], "the FP16 form holds no Q/DQ"


def test_the_classes_of_random_weights_are_not_judged(files, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(files)
    flipped = onnx.load("net.onnx")
    flipped.metadata_props.add(key="se_deploy.weights", value="random, seed 0")
    onnx.save(flipped, tmp_path / "random.onnx")
    for name in ("net.onnx", tmp_path / "random.onnx"):
        words = ["parity", name, name, "--data", "photos", "--json"]
        code, out, _ = call(capsys, *words)
        warned = any("top-1 agreement is not judged" in text for text in json.loads(out)["warnings"])
        assert (code, warned) == (0, name != "net.onnx")
