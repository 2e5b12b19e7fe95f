from __future__ import annotations

import pytest

pytest.importorskip("torch")

import dataclasses
import sys

import numpy as np
import onnx
import torch
from torch import nn

from se_deploy import graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.errors import ExportFailed
from se_deploy.frontend import simplify, torch_export, zoo
from se_deploy.schema import input_spec


class Gate(nn.Module):
    """A convolution and an SE block in the spelling that is copied most: `view` and two Linears."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        b, c, _, _ = x.shape
        y = nn.functional.adaptive_avg_pool2d(x, 1).view(b, c)
        return x * self.fc2(self.fc1(y).relu()).sigmoid().view(b, c, 1, 1)


class Stubborn(nn.Module):
    """What neither exporter takes: ONNX has no operator for it."""

    def forward(self, x):
        return torch.linalg.svdvals(x)


def network(module, size=(3, 8, 8)):
    torch.manual_seed(0)
    image = input_spec.InputSpec("input", *size, (0.0,) * size[0], (1.0,) * size[0])
    return zoo.Network("test", module.eval(), (torch.randn(2, *size),), ("output",), image, "random")


@pytest.mark.parametrize(
    ("opset", "batch", "by"),
    [
        (20, None, "dynamo"),
        (17, None, "torchscript"),
        pytest.param(18, 1, "dynamo", marks=pytest.mark.slow),
    ],
)
def test_the_written_graph_computes_what_pytorch_does(opset, batch, by, tmp_path):
    net = network(Gate())
    made = torch_export.export(net, opset=opset, batch=batch)
    assert (made.exporter, graph.opset(made.model)) == (by, opset)
    assert graph.dims(made.model.graph.inputs[0]) == (batch, 3, 8, 8)
    assert [v.name for v in made.model.graph.outputs] == ["output"]
    assert input_spec.read(made.model.metadata_props) == net.image
    graph.save(made.model, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    x = np.random.default_rng(0).standard_normal((batch or 5, 3, 8, 8)).astype(np.float32)
    with OrtRuntime(optimize=False).open(tmp_path / "m.onnx") as session, torch.no_grad():
        got = session.run({"input": x})["output"]
        want = net.module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # the same FP32 sums in another order


class Overwriting(nn.Module):
    """Two layers that write in place; where `reads`, what they overwrote is read once more."""

    def __init__(self, *, reads):
        super().__init__()
        self.conv, self.first, self.reads = nn.Conv2d(3, 4, 3), nn.Hardswish(inplace=True), reads
        self.second = nn.LeakyReLU(0.3, inplace=True)

    def forward(self, x):
        y = self.conv(x)
        z = self.second(self.first(y) * 2)
        return y + z if self.reads else z


@pytest.mark.parametrize("reads", [pytest.param(False, marks=pytest.mark.slow), True])
def test_layers_that_write_in_place_are_exported_as_they_compute(reads):
    net = network(Overwriting(reads=reads))
    made = torch_export.export(net)
    assert made.exporter == "dynamo"
    assert net.module.first.inplace, "the network itself stays as it was"
    assert net.module.second.inplace
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    with OrtRuntime(optimize=False).open(made.model) as session, torch.no_grad():
        got = session.run({"input": x})["output"]
        want = net.module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # the same FP32 sums in another order


class Bounded(nn.Module):
    """A bound that small inputs never reach, in place, on a map that is read once more."""

    def __init__(self):
        super().__init__()
        self.bound = nn.ReLU6(inplace=True)

    def forward(self, x):
        y = x.abs()
        return self.bound(y) + y


def test_a_bound_that_no_example_reaches_is_exported_as_it_overwrites():
    net = network(Bounded())
    made = torch_export.export(net)
    x = np.full((2, 3, 8, 8), 100, np.float32)
    with OrtRuntime(optimize=False).open(made.model) as session:
        assert (session.run({"input": x})["output"] == 12).all()  # 6 + 6; 106 where the layer wrote elsewhere


def test_a_failed_export_leaves_the_layers_as_they_were():
    module = nn.Sequential(nn.Hardswish(inplace=True), Stubborn())
    net = network(module)
    with pytest.raises(ExportFailed):
        torch_export.export(net)
    assert module[0].inplace


def test_the_file_holds_no_trace_of_the_machine_it_was_made_on(tmp_path):
    made = torch_export.export(network(Gate()))
    graph.save(made.model, tmp_path / "m.onnx")
    assert b".py" not in (tmp_path / "m.onnx").read_bytes()


def test_an_opset_below_dynamo_says_who_wrote_it():
    made = torch_export.export(network(Gate()), opset=17)
    assert "TorchScript" in made.warnings[0]


def test_what_no_exporter_takes_names_both_reasons():
    net = dataclasses.replace(network(nn.Identity()), module=Stubborn())
    with pytest.raises(ExportFailed, match=r"dynamo: .*; torchscript: ") as caught:
        torch_export.export(net)
    assert "--batch 1" in caught.value.hint


def test_an_opset_that_no_exporter_writes_is_refused():
    with pytest.raises(ExportFailed, match="opset 12"):
        torch_export.export(dataclasses.replace(network(nn.Identity()), module=Stubborn()), opset=12)


def test_simplify_folds_shape_arithmetic_and_keeps_the_function():
    given = torch_export.export(network(Gate()), opset=17).model
    made = simplify.simplify(given)
    assert made.warnings == ()
    assert made.nodes_before == given.graph.num_nodes() > made.model.graph.num_nodes()
    assert "Shape" not in graph.ops(made.model)
    assert graph.dims(made.model.graph.inputs[0]) == (None, 3, 8, 8)
    assert made.model.metadata_props == given.metadata_props


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "import os; os.abort()", "open(sys.argv[2], 'w')"])
def test_a_simplifier_that_dies_leaves_the_graph_as_it_was(monkeypatch, ending):
    given = torch_export.export(network(Gate()), opset=17).model
    monkeypatch.setattr(simplify, "_SIMPLIFY", f"import sys\n{ending}")
    made = simplify.simplify(given)
    assert made.model is given
    assert "onnxsim" in made.warnings[0]


class Bessel(nn.Module):
    """An operator that no exporter writes, for which TorchScript dumps its graph from C++."""

    def forward(self, x):
        return torch.special.bessel_j0(x).mean((2, 3))


def test_a_failed_export_writes_nothing_to_stdout(capfd):
    with pytest.raises(ExportFailed, match="torchscript"):
        torch_export.export(network(Bessel()), opset=17)
    assert capfd.readouterr().out == ""
    sys.stdout.write("still there\n")
    assert capfd.readouterr().out == "still there\n"


class Forked(nn.Module):
    """Takes another way where the image is bright."""

    def forward(self, x):
        return x * 2 if x.mean() > 0 else x


def test_a_condition_that_a_trace_decides_once_is_said():
    made = torch_export.export(network(Forked()), opset=17)
    (said,) = [text for text in made.warnings if "condition" in text]
    assert "test_torch_export.py:" in said
    assert "/" not in said
    assert not [w for w in torch_export.export(network(Gate()), opset=17).warnings if "condition" in w]
