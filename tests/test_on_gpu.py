"""scripts/on_gpu, rehearsed on the CPU; and its graphs, which are timed in place of TensorRT's."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import project_scripts
import pytest
from needs import TORCH
from onnx import helper, numpy_helper

SCRIPTS = Path(__file__).parents[1] / "scripts"
GRAPHS = sorted((SCRIPTS / "gpu_graphs").glob("*.json.gz"))
SAME_FP32 = {"rtol": 1e-4, "atol": 1e-5}  # the same sums in another order

RNG = np.random.default_rng(0)
INTS = {
    "axes": [2, 3], "starts": [0, 2], "ends": [-1, 9], "sliced": [2, 1], "steps": [1, 2],
    "pads": [0, 0, 0, 1, 0, 0, 0, 0], "shape": [0, -1],
}  # fmt: skip
FLOATS = {
    "w": (8, 4, 3, 3), "b": (8,), "dw": (4, 1, 3, 3), "fc": (5, 4 * 12 * 12), "fcb": (5,), "square": (12, 12),
    "gate": (2, 4, 1, 1), "weights": (30, 4, 3, 3),
}  # fmt: skip
CASES = {
    "Conv": [("Conv", ["x", "w", "b"], {"pads": [0, 1, 1, 0]})],
    "Conv, strided": [
        ("Conv", ["x", "weights"], {"strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [2, 2]})
    ],
    "Conv, depthwise": [("Conv", ["x", "dw"], {"group": 4, "pads": [1, 1, 1, 1]})],
    "MaxPool": [("MaxPool", ["x"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]})],
    "MaxPool, ceil": [("MaxPool", ["x"], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1})],
    "AveragePool": [
        ("AveragePool", ["x"], {"kernel_shape": [12, 12], "pads": [1] * 4, "count_include_pad": 1})
    ],
    "AveragePool, whole map": [("AveragePool", ["x"], {"kernel_shape": [12, 12]})],
    "GlobalAveragePool": [("GlobalAveragePool", ["x"], {})],
    "ReduceMean": [("ReduceMean", ["x"], {"axes": [2, 3], "keepdims": 1})],
    "ReduceSum": [("ReduceSum", ["x", "axes"], {"keepdims": 0})],
    "Relu": [("Relu", ["x"], {})],
    "Sigmoid": [("Sigmoid", ["x"], {})],
    "HardSigmoid": [("HardSigmoid", ["x"], {"alpha": 1 / 6, "beta": 0.5})],
    "HardSigmoid, other": [("HardSigmoid", ["x"], {"alpha": 0.3, "beta": 0.4})],
    "HardSwish": [("HardSwish", ["x"], {})],
    "Clip": [("Clip", ["x", "low", "high"], {})],
    "Clip, above": [("Clip", ["x", "", "high"], {})],
    "Mul and Add": [("Mul", ["x", "gate"], {}), ("Add", ["n0", "x"], {})],
    "MatMul": [("MatMul", ["x", "square"], {})],
    "Gemm": [("Flatten", ["x"], {"axis": 1}), ("Gemm", ["n0", "fc", "fcb"], {"transB": 1})],
    "Concat": [("Relu", ["x"], {}), ("Concat", ["x", "n0"], {"axis": 1})],
    "Reshape": [("Reshape", ["x", "shape"], {})],
    "Transpose": [("Transpose", ["x"], {"perm": [0, 2, 3, 1]})],
    "Cast": [("Cast", ["x"], {"to": 10}), ("Cast", ["n0"], {"to": 1})],
    "Slice": [("Slice", ["x", "starts", "ends", "sliced", "steps"], {})],
    "Slice, short": [("Slice", ["x", "starts", "ends", "sliced"], {})],
    "Pad": [("Pad", ["x", "pads"], {})],
    "SpaceToDepth": [("SpaceToDepth", ["x"], {"blocksize": 2})],
}


def model(steps):
    """A chain of nodes on x; the last of them is y."""
    names = [*(f"n{i}" for i in range(len(steps) - 1)), "y"]
    nodes = [
        helper.make_node(op, taken, [name], **attributes)
        for (op, taken, attributes), name in zip(steps, names, strict=True)
    ]
    constants = [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in INTS.items()]
    constants += [
        numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)
        for name, shape in FLOATS.items()
    ]
    constants += [numpy_helper.from_array(np.float32(v), name) for name, v in (("low", -0.4), ("high", 0.9))]
    read = {name for node in nodes for name in node.input}
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (2, 4, 12, 12))
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [c for c in constants if c.name in read])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@TORCH
@pytest.mark.parametrize("case", CASES)
def test_an_operator_computes_as_onnxruntime_does(case, tmp_path):
    torch = pytest.importorskip("torch")
    made = model(CASES[case])
    onnx.save(made, tmp_path / "net.onnx")
    x = RNG.standard_normal((2, 4, 12, 12)).astype(np.float32)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    weights = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    with project_scripts.loaded("graph_module") as script:
        script.main(str(tmp_path), str(tmp_path / "net.onnx"))
        module = script.Module(script.load(tmp_path / "net.json.gz"), weights)
        (got,) = module(torch.from_numpy(x))
    np.testing.assert_allclose(got.numpy(), want, **SAME_FP32)


def test_thirty_graphs_travel_with_the_script():
    assert len(GRAPHS) == 30
    assert sum(path.stat().st_size for path in GRAPHS) < 200_000


def operators():
    found = set()
    for path in GRAPHS:
        found |= {node["op"] for node in json.loads(gzip.decompress(path.read_bytes()))["nodes"]}
    return found


@TORCH
def test_the_module_knows_every_operator_of_the_graphs():
    with project_scripts.loaded("graph_module") as script:
        assert not {op for op in operators() if not hasattr(script.Module, f"_{op}")}


@TORCH
@pytest.mark.slow
def test_a_rehearsal_goes_through_every_step_and_takes_up_where_it_ended(tmp_path):
    output = tmp_path / "out.json"
    command = [SCRIPTS / "on_gpu", "--rehearse", "--minutes", "30", "--output", output]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(output.read_text())
    steps = said["steps"]
    assert (said["rehearsed"], list(steps)) == (True, ["cuda", "rewrites", "rtx", "onnxruntime", "tensorrt"])
    assert "no CUDA driver" in steps["cuda"]["calls"]["opened"]
    assert [row["form"] for row in steps["rewrites"]["rows"]] == ["fp16", "ours.bdynamic", "ours.b1"]
    assert steps["rewrites"]["complete"]
    assert "| mobilenetv3_small_100 | 1 | replayed |" in done.stdout
    profiles = steps["onnxruntime"]["profile"]
    assert all("artifacts" in profiles[precision] for precision in ("fp32", "fp16", "int8"))
    assert steps["onnxruntime"]["parity"]["fp32"]["passed"]
    again = subprocess.run(
        [*command, "--step", "rewrites"], env=environment, check=False, capture_output=True, text=True
    )
    assert (again.returncode, again.stderr) == (0, "")  # nothing is run once more
    assert json.loads(output.read_text()) == said
