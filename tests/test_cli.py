"""The contract of the command line: exit codes, one paragraph per error, no half-written files, JSON keys."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import click
import needs
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from PIL import Image

from se_deploy.cli import main
from se_deploy.cli.main import COMMANDS
from se_deploy.cli.main import commands as group
from se_deploy.errors import BadInput
from se_deploy.schema.files import ShapeRange

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,16,16] input) => (float[N,4] output) {
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(input, w, b)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f1 = Conv(p, w1, b1)
    a = Relu(f1)
    f2 = Conv(a, w2, b2)
    s = Sigmoid(f2)
    y = Mul(r, s)
    q = GlobalAveragePool(y)
    v = Flatten(q)
    output = Gemm(v, h, k)
}"""
WEIGHTS = {
    "w": (8, 3, 3, 3), "b": (8,), "w1": (2, 8, 1, 1), "b1": (2,), "w2": (8, 2, 1, 1), "b2": (8,),
    "h": (8, 4), "k": (4,),
}  # fmt: skip


@pytest.fixture
def net(tmp_path, monkeypatch):
    """An ONNX file with one SE block, in the working directory."""
    monkeypatch.chdir(tmp_path)
    proto = parser.parse_model(NET)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path


@pytest.fixture
def photos(net):
    folder = net / "photos"
    folder.mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def run(capsys, *words):
    code = main([str(w) for w in words], standalone_mode=False)
    out, err = capsys.readouterr()
    return code or 0, out, err


def refused(capsys, *words):
    """Run a command that must end in exit code 1, and give its paragraph."""
    before = set(Path().iterdir())
    code, out, err = run(capsys, *words)
    assert code == 1, err
    assert "\nerror: " in f"\n{err}"  # behind the steps that were done
    assert "hint: " in err
    assert "Traceback" not in out + err
    assert set(Path().iterdir()) == before, "a file was left behind"
    return err


def test_export_writes_the_contract(net, capsys):
    code, out, _ = run(capsys, "export", "net.onnx", "-o", "out/made.onnx", "--json", "-q")
    assert code == 0
    result = json.loads(out)
    assert result["schema"] == "se-deploy/export/1"
    assert result["onnx"] == "made.onnx"
    assert {"blocks", "rejected", "plans", "nodes_before", "nodes_after", "rewrites", "max_abs_error"} <= set(
        result
    )
    block = result["blocks"][0]
    assert (block["kind"], block["channels"], block["reduced"], block["ratio"]) == ("se", 8, 2, 4.0)
    assert (net / "out" / "made.onnx").is_file()


def test_free_sizes_of_a_file_are_settled_by_input_size(net, capsys):
    proto = onnx.load(net / "net.onnx")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    for dim in (dims[0], dims[2], dims[3]):
        dim.dim_value = -1  # as Paddle2ONNX writes what is free
    onnx.save(proto, net / "free.onnx")
    code, out, _ = run(capsys, "export", "free.onnx", "-o", "out.onnx", "--input-size", "3x24x20", "--json")
    assert code == 0
    assert json.loads(out)["blocks"]
    made = onnx.load(net / "out.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in made] == [0, 3, 24, 20]


@pytest.mark.parametrize("size", ["3x24x20", "4x16x16", "3x16"])
@pytest.mark.parametrize("words", [("export", "-o", "o.onnx"), ("inspect", "--plan"), ("profile",)])
def test_a_size_that_does_not_fit_a_file_is_refused(net, capsys, words, size):
    command, *rest = words
    assert f"--input-size {size} does not fit" in refused(
        capsys, command, "net.onnx", *rest, "--input-size", size
    )


def test_an_existing_output_needs_overwrite(net, capsys):
    (net / "made.onnx").write_text("mine")
    assert "--overwrite" in refused(capsys, "export", "net.onnx", "-o", "made.onnx")
    assert (net / "made.onnx").read_text() == "mine"
    assert run(capsys, "export", "net.onnx", "-o", "made.onnx", "--overwrite", "-q")[0] == 0


def test_inspect_names_the_block_of_the_file_given(net, capsys):
    code, out, _ = run(capsys, "inspect", "net.onnx", "--json")
    block = json.loads(out)["blocks"][0]
    assert code == 0
    assert (block["output"], block["squeeze_input"], block["params"]) == ("y", "r", 16 + 2 + 16 + 8)


@needs.RTX
def test_gate_fused_exits_with_three_and_still_reports(net, capsys):
    code, out, err = run(
        capsys, "inspect", "net.onnx", "--runtime", "tensorrt-rtx", "--gate", "fused", "--json"
    )
    plan = json.loads(out)["plans"][0]
    assert code == (3 if plan["blocks"][0]["verdict"] != "fused" else 0)
    assert plan["blocks"][0]["verdict"] == "split"
    assert "failed: " in err


@needs.RTX
def test_quantize_build_and_parity_on_photographs(net, photos, capsys):
    spec = ["--input-size", "3x16x16", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    code, out, _ = run(
        capsys, "quantize", "net.onnx", "--calib-data", photos, "-o", "net.int8.onnx", *spec, "--json"
    )
    result = json.loads(out)
    assert code == 0
    assert result["macs_int8_fraction"] >= 0.95
    assert set(result["sqnr_db"]) == {"output"}
    code, out, _ = run(
        capsys,
        "build-engine",
        "net.onnx",
        "--fp16",
        "-o",
        "net.engine",
        "--search-plans",
        "4",
        *spec,
        "--json",
    )
    built = json.loads(out)
    assert code == 0
    assert (built["requested_precision"], built["found_precision"]) == ("fp16", "fp16")
    assert built["rounding"] == "rounded at the plan's kernel boundaries"
    assert (net / built["engine"]).read_bytes()[:4] == b"vtrt"
    assert (net / built["manifest"]).is_file()
    code, out, err = run(
        capsys, "parity", "net.onnx", "net.int8.onnx", "net.engine", "--data", photos, *spec, "--json",
        "--junit", "verdict.xml", "--min-top1", "0",
    )  # fmt: skip
    judged = json.loads(out)
    assert code == 0, err
    assert [c["preset"] for c in judged["candidates"]] == ["int8", "fp16"]
    assert [c["evaluated"] for c in judged["candidates"]] == ["onnxruntime", "plan-rounded"]
    assert "not run" in judged["candidates"][1]["checked_as"]
    assert "rounded at the plan's kernel boundaries" in judged["candidates"][1]["checked_as"]
    assert "testsuite" in (net / "verdict.xml").read_text()


def test_parity_always_judges(net, capsys):
    run(capsys, "export", "net.onnx", "--fp16", "-o", "half.onnx", "-q")
    np.save("x.npy", np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32))
    words = ["parity", "net.onnx", "half.onnx", "--data", "x.npy", "--json"]
    assert run(capsys, *words)[0] == 0
    code, out, err = run(capsys, *words, "--preset", "fp32")
    assert code == 3
    assert not json.loads(out)["passed"]
    assert json.loads(out)["candidates"][0]["first_divergence"] is not None
    assert "largest error" in err


def test_profile_on_the_cpu(net, capsys):
    code, out, _ = run(
        capsys, "profile", "net.onnx", "--warmup-ms", "1", "--duration-s", "0.05", "--json", "--threads", "1"
    )
    artifact = json.loads(out)["artifacts"][0]
    assert code == 0
    assert artifact["p50_ms"] <= artifact["p90_ms"] <= artifact["p99_ms"]
    assert artifact["samples"] >= 10


@pytest.mark.parametrize("content", [b"", b"junk"], ids=["empty", "junk"])
def test_what_is_no_onnx_is_refused(net, capsys, content):
    (net / "bad.onnx").write_bytes(content)
    assert "bad.onnx" in refused(capsys, "export", "bad.onnx", "-o", "out.onnx")


def test_a_truncated_onnx_is_refused(net, capsys):
    data = (net / "net.onnx").read_bytes()
    (net / "cut.onnx").write_bytes(data[: len(data) // 2])
    assert "cut.onnx" in refused(capsys, "quantize", "cut.onnx", "--calib-data", "net.onnx", "-o", "out.onnx")


@needs.RTX
def test_int8_without_data_is_refused(net, capsys):
    assert "--calib-data" in refused(capsys, "build-engine", "net.onnx", "--int8", "-o", "net.engine")


def test_a_folder_without_images_is_refused(net, capsys):
    (net / "empty").mkdir()
    err = refused(
        capsys, "quantize", "net.onnx", "--calib-data", "empty", "-o", "o.onnx", "--input-size", "3x16x16"
    )
    assert "empty" in err


def test_one_unreadable_image_is_named_or_counted(net, photos, capsys):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8junk")
    words = ["quantize", "net.onnx", "--calib-data", photos, "-o", "o.onnx", "--input-size", "3x16x16"]
    assert "broken.jpg" in refused(capsys, *words)
    code, _, err = run(capsys, *words, "--skip-unreadable")
    assert code == 0
    assert "1 of 9 images" in err


@pytest.mark.parametrize("bad", ["nan", "shape"])
def test_calibration_arrays_must_fit(net, capsys, bad):
    array = np.zeros((4, 3, 16, 16) if bad == "nan" else (4, 1, 16, 16), np.float32)
    array[0] = np.nan if bad == "nan" else 0
    np.save("x.npy", array)
    assert "x.npy" in refused(capsys, "quantize", "net.onnx", "--calib-data", "x.npy", "-o", "o.onnx")


def test_an_unknown_specification_is_refused(net, capsys):
    refused(capsys, "export", "timm:no_such_network", "-o", "o.onnx")


@needs.TORCH
def test_a_pickle_is_never_executed(net, capsys):
    (net / "w.pth").write_bytes(pickle.dumps(print))
    err = refused(capsys, "export", "se_deploy:se_resnet20", "--checkpoint", "w.pth", "-o", "o.onnx")
    assert "never executed" in err


def test_an_output_that_cannot_be_written_is_refused_before_any_work(net, capsys):
    (net / "file").touch()
    assert "file" in refused(capsys, "export", "net.onnx", "-o", "file/made.onnx")


def test_errors_are_one_json_object_too(net, capsys):
    code, out, _ = run(capsys, "export", "timm:no_such_network", "-o", "o.onnx", "--json")
    assert code == 1
    assert set(json.loads(out)["error"]) == {"kind", "message", "hint"}


@pytest.mark.parametrize(
    "words",
    [
        ["export", "absent.onnx", "-o", "o.onnx"],
        ["export", "net.onnx"],
        ["export", "net.onnx", "-o", "o.onnx", "--batch", "many"],
        ["export", "net.onnx", "-o", "o.onnx", "--fp16", "--precision", "int8"],
        ["export", "net.onnx", "-o", "o.onnx", "--rewrites", "a", "--no-rewrites"],
        ["export", "net.onnx", "-o", "o.onnx", "--gate", "latency"],
        ["export", "net.onnx", "-o", "o.onnx", "--fp16", "--int8"],
        ["build-engine", "net.onnx", "-o", "o.onnx", "--keep", "110%"],
        ["export", "net.onnx", "-o", "o.onnx", "--input", "feats"],
        ["quantize", "net.onnx", "-o", "o.onnx", "--calib-data", "absent"],
        ["nonsense"],
    ],
)
def test_usage_errors_exit_with_two(net, capsys, words):
    assert run(capsys, *words)[0] == 2
    assert not (net / "o.onnx").exists()


def test_strict_turns_a_warning_into_an_error(net, capsys):
    words = ["quantize", "net.onnx", "-o", "o.onnx", "--allow-random-calibration", "--calib-samples", "8"]
    assert run(capsys, *words)[0] == 0
    code, _, err = run(capsys, *words, "--overwrite", "--strict")
    assert code == 1
    assert "mean nothing" in err


SIGNAL = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv1d(8, 4, 3, padding=1), torch.nn.Linear(4, 3)

    def forward(self, feats):
        return self.head(torch.relu(self.conv(feats)).mean(-1))
"""


@pytest.mark.parametrize(
    ("flags", "dims"),
    [
        (["--input", "feats:Nx8xT", "--opt-shapes", "feats:1x8x40"], ["N", 8, "T"]),
        pytest.param(["--input-size", "8x40"], ["batch", 8, 40], marks=pytest.mark.slow),
    ],
    ids=["declared", "sized"],
)
@needs.TORCH
def test_a_network_that_takes_no_image_is_exported(net, capsys, flags, dims):
    (net / "signal.py").write_text(SIGNAL)
    code, out, err = run(capsys, "export", "signal.py:Net", "-o", "o.onnx", *flags, "--json")
    assert code == 0, err
    assert json.loads(out)["verified"]["passed"]
    made = onnx.load(net / "o.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in made][1:] == dims[1:]
    assert made[0].dim_value == 0, "the batch is free"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build-engine", "net.onnx", "-o", "o.engine", "--target", "sm8x"], "sm8x"),
        (["inspect", "net.onnx", "--target", "warp-drive"], "warp-drive"),
    ],
)
def test_a_target_that_there_is_not_is_refused_before_any_work(net, capsys, words, said):
    assert said in refused(capsys, *words)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_parameters_are_the_parts_that_it_lists(name):
    """Click passes values by keyword, which no type checker sees."""
    command = group.get_command(None, name)
    assert list(inspect.signature(command.callback).parameters) == [part.keyword for part in command.parts]


def test_a_group_reaches_the_command_as_one_value(net, capsys, monkeypatch):
    taken = {}

    def stop(model, output, **given):
        taken.update(given)
        raise BadInput("seen", hint="enough")

    monkeypatch.setattr("se_deploy.commands.build_engine.build_engine", stop)
    words = "--target sm86 --target orin-nano --no-rewrites --workspace 2GiB --keep 10% --int8"
    shapes = "--min-shapes input:1x3x16x16 --max-shapes input:8x3x16x16"
    run(capsys, "build-engine", "net.onnx", "-o", "o.engine", *words.split(), *shapes.split())
    target, engine = taken["target"], taken["engine"]
    assert [(one.name, one.called) for one in target.targets] == [("sm86", "sm86"), ("sm87", "orin-nano")]
    assert target.rewrites.names == ()
    assert engine.workspace_bytes == 2**31
    small, large = (1, 3, 16, 16), (8, 3, 16, 16)
    assert engine.shapes == {"input": ShapeRange(small, small, large)}
    assert (taken["calibration"].keep_fraction, taken["precision"]) == (0.1, "int8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "se-deploy" in out.partition("Example")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_in_a_sentence(name):
    command = group.get_command(None, name)
    texts = {option.opts[0]: option.help for option in command.params if isinstance(option, click.Option)}
    assert [flag for flag, text in texts.items() if not (text and text[0].isupper())] == []
    ends = [flag for flag, text in texts.items() if not text.endswith((".", "..."))]
    assert ends == []


def test_version_and_module_entry():
    done = subprocess.run(
        [sys.executable, "-c", "from se_deploy.cli import main; main(['--version'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("se-deploy ")


def test_an_interrupted_command_leaves_nothing(net, photos):
    """Ctrl-C while it works: exit code 130 and no file, whole or half."""
    before = set(net.iterdir())
    words = [
        "quantize",
        "net.onnx",
        "-o",
        "o.onnx",
        "--calib-data",
        "photos",
        "--input-size",
        "3x16x16",
        "-v",
    ]
    # A shell that starts us in the background has SIGINT ignored, and a child would inherit that.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    running = subprocess.Popen(
        [sys.executable, "-c", f"{listen}; from se_deploy.cli import main; main({words!r})"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "..." in running.stderr.readline()  # the first step has begun
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert set(net.iterdir()) == before


def test_what_numpy_warns_of_never_reaches_the_terminal():
    code = (
        "from se_deploy.cli import main\n"
        "main(['--version'], standalone_mode=False)\n"
        "import warnings, numpy as np\n"
        "np.float32(1) / np.float32(0)\n"
        "warnings.warn('a network warns of itself')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_an_interrupt_is_of_the_command_that_it_reached(tmp_path):
    cli = importlib.import_module("se_deploy.cli.main")
    with pytest.raises(KeyboardInterrupt):
        cli._interrupt(signal.SIGINT, None)
    words = ["export", "se_deploy:nothing", "-o", str(tmp_path / "x.onnx")]
    assert main(words, standalone_mode=False) == 1
