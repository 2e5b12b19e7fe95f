"""Every figure that depends on a size states it, and none is made for a size that nobody named."""

from __future__ import annotations

import json

import case_graphs
import needs
import numpy as np
import pytest
from layer_graphs import model_of

from se_deploy import graph
from se_deploy.cli import main
from se_deploy.commands import shapes
from se_deploy.errors import BadInput
from se_deploy.plan import Kernel, Plan, PlanTensor
from se_deploy.protocols import TensorSpec
from se_deploy.schema.input_spec import InputSpec

F32 = np.dtype(np.float32)
IMAGE = InputSpec(name="x", channels=3, height=40, width=24, mean=(0.5,) * 3, std=(0.5,) * 3)


def spec(*dims, name="x"):
    return TensorSpec(name, F32, dims)


@pytest.mark.parametrize(
    ("inputs", "options", "found"),
    [
        ([spec(None, 3, 8, 8)], {}, {"x": (1, 3, 8, 8)}),
        ([spec(None, 3, 8, 8)], {"batch": 4}, {"x": (4, 3, 8, 8)}),
        ([spec(4, 3, 8, 8)], {"batch": 1}, {"x": (4, 3, 8, 8)}),
        ([spec(None, 3, None, None)], {"image": IMAGE}, {"x": (1, 3, 40, 24)}),
        ([spec(None, 3, None, None)], {"named": {"x": (2, 3, 16, 32)}}, {"x": (2, 3, 16, 32)}),
        ([spec(None, 3, None, None)], {"image": IMAGE, "named": {"x": (1, 3, 9, 9)}}, {"x": (1, 3, 9, 9)}),
        ([spec(None, 3, 8, 8), spec(name="a")], {}, {"x": (1, 3, 8, 8), "a": ()}),
    ],
)
def test_sizes_are_the_users_then_the_files_then_the_input_specs(inputs, options, found):
    assert shapes.settled(inputs, "a plan", **options) == found


@pytest.mark.parametrize(
    ("inputs", "named", "message"),
    [
        ([spec(None, 3, None, None)], {}, "a plan depends on the size of input 'x'"),
        ([spec(None, 80, None)], {}, "depends on the size of input 'x'"),
        ([spec(None, 3, 8, 8)], {"z": (1, 3, 8, 8)}, "names 'z', which is no input"),
        ([spec(None, 3, 8, 8)], {"x": (1, 3, 9, 9)}, "it takes"),
        ([spec(None, 3, 8, 8)], {"x": (3, 8, 8)}, "it takes"),
    ],
)
def test_what_nobody_named_and_what_does_not_fit_is_refused(inputs, named, message):
    with pytest.raises(BadInput, match=message):
        shapes.settled(inputs, "a plan", named=named)


@pytest.fixture
def free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return case_graphs.save(case_graphs.auto_pad(), tmp_path / "free.onnx")


def run(capsys, *words):
    code = main([str(word) for word in words], standalone_mode=False)
    return code or 0, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "--plan"),
        pytest.param(("build-engine", "-o", "a.engine"), marks=needs.RTX),
        pytest.param(("export", "--runtime", "tensorrt-rtx", "-o", "a.onnx"), marks=needs.RTX),
    ],
)
def test_a_figure_for_a_free_size_asks_for_it(free, capsys, command):
    code, result = run(capsys, command[0], free, *command[1:], "--json")
    assert code == 1
    assert "size of input 'x'" in result["error"]["message"]
    flags = [word for word in result["error"]["hint"].split() if word.startswith("--")]
    assert flags == ["--input-size", "--opt-shapes"]
    for flag in flags:  # the command has every flag that its hint names
        with pytest.raises(SystemExit) as left:
            main([command[0], "--help"])
        assert left.value.code == 0
        assert flag in capsys.readouterr().out


def test_planned_bytes_are_those_of_the_size_that_was_named(free, capsys):
    plans = {}
    for flag in (("--input-size", "3x40x48"), ("--opt-shapes", "x:4x3x40x48"), ("--input-size", "3x80x48")):
        code, result = run(capsys, "inspect", free, "--plan", "--runtime", "onnxruntime", "--json", *flag)
        assert code == 0
        plans[flag] = result["plans"][0]
    one, four, twice = plans.values()
    assert (one["shapes"], four["shapes"]) == ({"x": [1, 3, 40, 48]}, {"x": [4, 3, 40, 48]})
    assert one["activation_bytes"] == four["activation_bytes"]  # per image
    assert 1.9 < twice["activation_bytes"] / one["activation_bytes"] < 2.1


def test_a_frozen_batch_is_counted_per_image(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    counted = []
    for batch in (8, "N"):
        path = case_graphs.save(case_graphs.frozen_batch(batch), tmp_path / "net.onnx")
        _, result = run(capsys, "inspect", path, "--plan", "--runtime", "onnxruntime", "--json")
        plan = result["plans"][0]
        counted.append((plan["activation_bytes"], plan["blocks"][0]["activation_bytes"]))
    assert counted[0] == counted[1]


@needs.RTX
def test_an_engine_for_free_sizes_is_counted_at_the_shape_it_is_tuned_for(free, capsys):
    ranges = ("--min-shapes", "x:1x3x32x32", "--opt-shapes", "x:2x3x64x48", "--max-shapes", "x:8x3x96x96")
    _, ranged = run(capsys, "build-engine", free, "--no-rewrites", "-o", "a.engine", "--json", *ranges)
    _, fixed = run(
        capsys, "build-engine", free, "--no-rewrites", "-o", "b.engine", "--json", "--input-size", "3x64x48"
    )
    assert ranged["plan"]["shapes"] == {"x": [2, 3, 64, 48]}
    assert fixed["plan"]["shapes"] == {"x": [1, 3, 64, 48]}
    assert not any("planned bytes leave out" in warning for warning in ranged["warnings"])
    tensors = [t for layer in ranged["plan"]["layers"] for t in (*layer["inputs"], *layer["outputs"])]
    assert tensors
    assert all(min(dims[1:], default=1) > 0 for _, dims in tensors)
    # Two more copies, which the compiler makes where sizes are free; as 1x1 it would be a thousandth.
    assert 1 < ranged["plan"]["activation_bytes"] / fixed["plan"]["activation_bytes"] < 2
    assert any(one["dims"][2:] == [64, 48] for one in ranged["verified"]["inputs"])


def test_an_engine_for_one_batch_is_counted_per_image(free, capsys):
    counted, kernels = [], 0
    for batch in (1, 4):
        size = ("--opt-shapes", f"x:{batch}x3x64x48")
        words = ("--no-rewrites", "-o", f"{batch}.engine", "--json", *size)
        _, built = run(capsys, "build-engine", free, *words)
        assert built["plan"]["shapes"] == {"x": [batch, 3, 64, 48]}
        counted.append(built["plan"]["activation_bytes"])
        kernels = built["plan"]["kernels"]
    assert abs(counted[0] - counted[1]) <= kernels  # each kernel's bytes are rounded up


def test_multiply_accumulates_are_those_of_the_planned_size(free):
    model = graph.load(free)
    x = PlanTensor("x", "float32", (1, 3, 8, 8))
    plan = Plan("any", "1", "any", (Kernel("k", "k", (x,), (x,), ()),))
    small, large = (
        sum(shapes.macs(model, plan.per_image({"x": (2, 3, side, side)}, 1)).values()) for side in (32, 64)
    )
    gates = 2 * case_graphs.CHANNELS * case_graphs.REDUCED + case_graphs.CHANNELS * case_graphs.CLASSES
    assert large - gates == 4 * (small - gates)
    assert small - gates == 16 * 16 * 9 * (3 * case_graphs.CHANNELS + case_graphs.CHANNELS**2)


HEADS = """a = Reshape(x, apart) q = Transpose<perm = [0, 2, 1, 3]>(a) h = Reshape(q, beside)
t = Transpose<perm = [0, 2, 1]>(h) s = MatMul(h, t) y = Softmax<axis = 2>(s)"""


@pytest.mark.parametrize(("batch", "size"), [("N", None), (1, None), (3, None), ("N", 6)])
def test_an_attention_whose_heads_lie_along_the_batch_is_counted_for_all_of_them(batch, size):
    """(N * 2, 6, 4) times (N * 2, 4, 6): what lay beside the batch was taken for a part of it."""
    rows = size or 6
    model = model_of(
        HEADS,
        [("apart", np.array([-1, 6, 2, 4])), ("beside", np.array([-1, 6, 4]))],
        inputs=f"float[{batch},{'T' if size else rows},8] x",
        output="float[P,Q,R] y",
    )
    x = PlanTensor("x", "float32", (1, rows, 8))
    plan = Plan("any", "1", "any", (Kernel("k", "k", (x,), (x,), ()),))
    plan = plan.per_image({"x": (1, rows, 8)}, 1) if size else plan
    assert sum(shapes.macs(model, plan).values()) == 2 * 6 * 6 * 4
