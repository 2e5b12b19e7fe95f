"""The census against PyTorch: each SE module's own output says which tensor of the graph it is.

A hook keeps what every SE module gave for one input; the exported graph is run on the same input with the
outputs of all found blocks made visible. A block is right where its tensor is a module's, one to one, so
that no name and no pattern enters the answer.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from se_graphs import read, run

from se_deploy import se_blocks

onnxsim = pytest.importorskip("onnxsim")
torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "UserWarning", "FutureWarning", "torch.jit.TracerWarning")
]
NETWORKS = json.loads((Path(__file__).parent.parent / "goldens" / "census_networks.json").read_text())
FAST = {
    "dynamo20": ["timm:test_byobnet"],
    "torchscript17": ["torchvision:mobilenet_v3_small", "timm:regnety_002", "timm:starnet_s1"],
}
EXPORTERS = ("dynamo18", "dynamo20", "torchscript17", "torchscript20")
# TorchScript's exporter writes no Unfold of computed size
NOT_WRITTEN = {("timm:haloregnetz_b", e) for e in EXPORTERS if e.startswith("torchscript")}
SAME = 1e-3  # of the tensor's largest value: float32 in two implementations


@pytest.fixture(scope="module")
def score(request):
    """Count right, missed and wrong blocks by exporter, and print them at the end."""
    totals = {}
    yield totals
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    terminal.write_line(f"\n{'exporter':22} networks blocks  recall precision")
    for exporter, t in sorted(totals.items()):
        recall = t["right"] / (t["right"] + t["missed"]) if t["right"] + t["missed"] else 1.0
        precision = t["right"] / (t["right"] + t["wrong"]) if t["right"] + t["wrong"] else 1.0
        blocks = t["right"] + t["missed"]
        terminal.write_line(f"{exporter:22} {t['networks']:8} {blocks:6} {recall:7.4f} {precision:9.4f}")


def is_se(module):
    names = {
        "timm.layers.squeeze_excite.SEModule",
        "timm.layers.squeeze_excite.EffectiveSEModule",
        "timm.layers.squeeze_excite.SqueezeExciteCl",
        "timm.models._efficientnet_blocks.SqueezeExcite",
        "timm.models.senet.SEModule",
        "timm.models.hgnet.EseModule",
        "torchvision.ops.misc.SqueezeExcitation",
    }
    known = any(f"{c.__module__}.{c.__qualname__}" in names for c in type(module).__mro__)
    return known and not getattr(module, "add_maxpool", False)


def make(name, size):
    library, _, plain = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        network = torchvision.models.get_model(plain, weights=None)
    else:
        any_size = plain.startswith(("fastvit", "shvit"))  # their constructors take none
        sized = {"img_size": size} if re.search("vit|mlp|coat", plain) and not any_size else {}
        network = timm.create_model(plain, pretrained=False, **sized)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.6, 1.4)  # zero at the end of a residual branch otherwise
    return network.eval()


def modules_outputs(network, x):
    outputs = []
    handles = [
        module.register_forward_hook(lambda _m, _i, y: outputs.append(y.detach().clone().numpy()))
        for module in network.modules()
        if is_se(module)
    ]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return outputs


def exported(network, x, exporter, *, static):
    opset = int(exporter[-2:])
    path = io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        if exporter.startswith("dynamo"):
            free = None if static else ({0: torch.export.Dim("batch", min=1, max=4096)},)
            program = torch.onnx.export(
                network, (x,), dynamo=True, opset_version=opset, dynamic_shapes=free, verbose=False
            )
            return program.model_proto
        torch.onnx.export(
            network,
            (x,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            dynamic_axes=None if static else {"x": {0: "batch"}},
        )
    return onnx.load_from_string(path.getvalue())


def judge(proto, x, expected, totals):
    """Match the blocks that the census finds with the modules' outputs, one to one."""
    model = read(proto)
    blocks = se_blocks.detect(model).se
    by_name = {v.name: v for node in model.graph for v in node.outputs}
    ends = [by_name[b.output] if b.kind != "residual-se" else _end(model, b) for b in blocks]
    model.graph.outputs.extend(v for v in ends if not v.is_graph_output())
    names = [v.name for v in model.graph.outputs]
    values = dict(zip(names, run(model, x.numpy()), strict=True))
    left = list(expected)
    wrong = []
    for end in ends:
        y = values[end.name]
        twin = next((i for i, z in enumerate(left) if _same(y, z)), None)
        if twin is None:
            wrong.append(end.name)
        else:
            del left[twin]
    totals.update(right=len(ends) - len(wrong), missed=len(left), wrong=len(wrong), networks=1)
    return wrong, len(left)


def _end(model, block):
    return next(n for n in model.graph if n.name == block.nodes[-1]).outputs[0]


def _same(a, b):
    return a.shape == b.shape and np.abs(a - b).max() <= SAME * np.abs(b).max()


def check(name, exporter, totals, *, simplified=False):
    size, static = NETWORKS[name]["size"], NETWORKS[name].get("static", False)
    network = make(name, size)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = modules_outputs(network, x)
    proto = exported(network, x, exporter, static=static)
    assert judge(proto, x, expected, totals.setdefault(exporter, Counter())) == ([], 0)
    if simplified:
        proto, _ = onnxsim.simplify(proto)
        assert judge(proto, x, expected, totals.setdefault(f"{exporter}+onnxsim", Counter())) == ([], 0)


@pytest.mark.parametrize(("exporter", "name"), [(e, n) for e, names in FAST.items() for n in names])
def test_each_block_is_a_module(exporter, name, score):
    check(name, exporter, score)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exporter", "name"), [(e, n) for n in sorted(NETWORKS) for e in EXPORTERS if (n, e) not in NOT_WRITTEN]
)
def test_each_block_is_a_module_in_every_network(exporter, name, score):
    check(name, exporter, score, simplified=True)
