"""What stands in for an FP16 engine rounds where its plan rounds, and what overflows there fails."""

import json

import numpy as np
import pytest
import use_graphs
from layer_graphs import model_of, weights
from msgspec.structs import replace

from se_deploy import graph
from se_deploy.backends import manifest as manifests
from se_deploy.cli import main
from se_deploy.commands import artifacts, fp16
from se_deploy.quantization import to_fp16
from se_deploy.schema.common import PlanLayer
from se_deploy.verification import Probe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A squeeze that is a sum beyond 65,504, its FP16 form by force, an engine of that, and no GPU."""
    model = model_of(
        "r = Clip(x, low, high) s = ReduceSum(r, axes) p = Mul(s, inv) q = Conv(p, w1) a = Relu(q) "
        "e = Conv(a, w2) g = Sigmoid(e) y = Mul(r, g)",
        [("low", np.float32(0)), ("high", np.float32(6)), ("axes", np.array([2, 3])),
         ("inv", np.float32(1 / 112 / 112)), ("w1", weights(2, 4, 1, 1)), ("w2", weights(4, 2, 1, 1))],
        inputs="float[N,4,112,112] x", output="float[N,4,112,112] y",
    )  # fmt: skip
    graph.save(model, tmp_path / "net.onnx")
    graph.save(to_fp16(model).model, tmp_path / "half.onnx")
    (tmp_path / "net.engine").write_bytes(b"vtrt" + bytes(64))
    (tmp_path / "net.engine.onnx").write_bytes((tmp_path / "half.onnx").read_bytes())
    np.save(tmp_path / "x.npy", np.full((2, 4, 112, 112), 6, np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def planned(folder, *groups):
    """Write the engine's manifest with a plan of one kernel for each group of tensors' makers."""
    model = graph.load(folder / "half.onnx")
    names = {node.outputs[0].name: node.name for node in model.graph}
    layers = [
        PlanLayer(
            name=f"k{i}",
            kind="kgen",
            inputs=(),
            outputs=(("float16", (-1, 4, 112, 112)),),
            onnx_nodes=tuple(names[tensor] for tensor in group),
        )
        for i, group in enumerate(groups)
    ]
    made = use_graphs.manifest(folder / "net.engine", folder / "net.engine.onnx")
    made = replace(made, precision="fp16", plan=replace(made.plan, layers=tuple(layers), blocks=()))
    manifests.write(made, manifests.path_of(folder / "net.engine"))


def parity(capsys, candidate):
    code = main(["parity", "net.onnx", candidate, "--data", "x.npy", "--json"], standalone_mode=False)
    (found,) = json.loads(capsys.readouterr().out)["candidates"]
    return code, found


REST = (("q", "a"), ("e", "g"), ("y_fp16", "y"))


def test_an_fp16_file_is_rounded_at_every_fp16_tensor(folder, capsys):
    code, found = parity(capsys, "half.onnx")
    assert (code, found["passed"], found["evaluated"]) == (3, False, "onnxruntime")
    assert found["rounding"] == "rounded at every FP16 tensor"
    where = found["first_divergence"]
    assert (where["tensor"], where["op_type"], bool(where["node"])) == ("s", "ReduceSum", True)


def test_a_sum_that_stays_within_a_kernel_is_right(folder, capsys):
    planned(folder, ("x_fp16",), ("r",), ("s", "p"), *REST)
    code, found = parity(capsys, "net.engine")
    assert (code or 0, found["passed"], found["evaluated"]) == (0, True, "plan-rounded")
    assert "rounded at the plan's kernel boundaries" in found["checked_as"]
    assert found["rounding"] == "rounded at the plan's kernel boundaries"


def test_a_sum_that_a_kernel_writes_overflows(folder, capsys):
    planned(folder, ("x_fp16",), ("r", "s"), ("p",), *REST)
    code, found = parity(capsys, "net.engine")
    assert (code, found["passed"], found["evaluated"]) == (3, False, "plan-rounded")


def test_a_plan_without_nodes_rounds_every_tensor(folder, capsys):
    planned(folder, (), ())
    _, found = parity(capsys, "net.engine")
    assert found["evaluated"] == "onnxruntime"
    assert "the plan names no node" in found["rounding"]


def test_an_fp32_file_is_run_as_it_is(folder, capsys):
    _, found = parity(capsys, "net.onnx")
    assert (found["evaluated"], found["rounding"]) == ("onnxruntime", None)


def test_commands_keep_an_overflowing_sum_in_fp32_and_say_so(folder, capsys):
    code = main(["export", "net.onnx", "--fp16", "-o", "out.onnx", "--json"], standalone_mode=False)
    made = json.loads(capsys.readouterr().out)
    assert (code or 0, made["verified"]["passed"]) == (0, True)
    assert made["rounding"] == "rounded at every FP16 tensor"
    assert "real data" in made["unchecked"][0]
    assert any("not checked" in warning for warning in made["warnings"])
    words = ["export", "net.onnx", "--fp16", "-o", "seen.onnx", "--calib-data", "x.npy", "--json"]
    main(words, standalone_mode=False)
    made = json.loads(capsys.readouterr().out)
    assert made["unchecked"] == []
    assert any("'s' reaches 75,264" in one["reason"] for one in made["kept_fp32"])
    assert parity(capsys, "seen.onnx")[1]["passed"]


def test_what_is_timed_is_the_file_itself(folder):
    with artifacts.opened("half.onnx") as one:
        assert one.rounding is None


def test_the_table_says_where_an_fp16_file_is_rounded(folder, capsys):
    main(["parity", "net.onnx", "half.onnx", "--data", "x.npy"], standalone_mode=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "half.onnx: rounded at every FP16 tensor" in said


def test_a_frozen_graph_gives_the_ranges_of_all_rows_of_a_probe():
    body, constants = "y = Mul(x, k)", [("k", np.float32(3))]
    free = model_of(body, constants, inputs="float[N,4] x", output="float[N,4] y")
    frozen = model_of(body, constants, inputs="float[2,4] x", output="float[2,4] y")
    rows = np.array([[1, 2, 3, 4], [0, 0, 0, 0], [5, 0, 0, -6]], np.float32)
    probes = (Probe("data", {"x": rows}),)
    assert fp16.ranges(frozen, probes=probes).largest == fp16.ranges(free, probes=probes).largest
    assert fp16.ranges(frozen, probes=probes).largest["y"] == 18
