"""Networks of several inputs, signals, clips and programs reach ONNX with the declared sizes free."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from torch import nn
from torch_nets import NETS

from se_deploy import graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.errors import BadData, BadInput
from se_deploy.frontend import examples, torch_export, zoo
from se_deploy.signature import Feeding, parse

MORE = '''
class Told(Two):
    def example_inputs(self):
        return {"image": torch.zeros(1, 3, 12, 12), "meta": torch.ones(1, 7)}


class Picky(Two):
    """Takes heights that are multiples of 96 only."""

    def forward(self, image, meta):
        if image.shape[2] % 96:
            raise ValueError("no")
        return super().forward(image, meta)
'''

CASES = [
    ("Speech", ["feats:Nx16xT"], [{"feats": (3, 16, 50)}, {"feats": (1, 16, 21)}]),
    ("Clip", ["clip:Nx3xTxHxW"], [{"clip": (2, 3, 5, 9, 11)}]),
    ("Two", ["meta:Nx7", "image:Nx3xHxW"], [{"image": (2, 3, 9, 10), "meta": (2, 7)}]),  # in any order
    ("Two", ["image:4x3x8x8", "meta:4x7"], [{"image": (4, 3, 8, 8), "meta": (4, 7)}]),  # nothing is free
]


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS + MORE)
    monkeypatch.chdir(tmp_path)
    return "nets.py"


def declared(*texts, **fields):
    return Feeding(inputs=tuple(map(parse, texts)), **fields)


def arrays(path, image, meta):
    np.savez(path, image=np.zeros(image, np.float32), meta=np.zeros(meta, np.float32))


@pytest.mark.parametrize("opset", [17, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "inputs", "shapes"), CASES)
def test_both_exporters_keep_what_is_free(nets, name, inputs, shapes, opset):
    network = zoo.load(f"{nets}:{name}", feeding=declared(*inputs))
    made = torch_export.export(network, opset=opset)
    assert made.exporter == ("torchscript" if opset == 17 else "dynamo")
    rng = np.random.default_rng(0)
    with OrtRuntime(optimize=False).open(made.model) as session:
        for one in shapes:
            feeds = {key: rng.standard_normal(shape, np.float32) for key, shape in one.items()}
            (got,) = session.run(feeds).values()
            with torch.no_grad():
                want = network.module(*(torch.from_numpy(feeds[key]) for key in network.input_names))
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_a_module_says_itself_what_it_is_fed(nets):
    network = zoo.load(f"{nets}:Told")
    assert [str(one) for one in network.inputs] == ["image:Nx3x12x12", "meta:Nx7"]
    assert [tuple(x.shape) for x in network.examples] == [(2, 3, 12, 12), (2, 7)], "a batch of 1 is repeated"
    assert network.image is None


def test_example_arrays_say_shapes_and_sizes(nets, tmp_path):
    np.savez(
        tmp_path / "one.npz", image=np.zeros((3, 3, 10, 14), np.float32), meta=np.zeros((3, 7), np.float32)
    )
    network = zoo.load(f"{nets}:Two", feeding=Feeding(example=tmp_path / "one.npz"))
    assert [str(one) for one in network.inputs] == ["image:Nx3x10x14", "meta:Nx7"]
    free = declared("image:Nx3xHxW", "meta:Nx7", example=tmp_path / "one.npz")
    network = zoo.load(f"{nets}:Two", feeding=free)
    assert tuple(network.examples[0].shape) == (3, 3, 10, 14)
    assert network.warnings[1:] == (), "the example says every size"


def test_sizes_that_nobody_gave_are_tried_and_said(nets):
    network = zoo.load(f"{nets}:Picky", feeding=declared("image:Nx3xHxW", "meta:Nx7"))
    assert network.examples[0].shape[2] == 96
    assert any("H, W = 96 was chosen" in text for text in network.warnings)
    given = declared("image:Nx3xHxW", "meta:Nx7", shapes={"image": (2, 3, 192, 5)})
    assert tuple(zoo.load(f"{nets}:Picky", feeding=given).examples[0].shape) == (2, 3, 192, 5)
    with pytest.raises(BadInput, match="none of the sizes") as e:
        zoo.load(f"{nets}:Picky", feeding=declared("image:Nx4xHxW", "meta:Nx7"))
    assert "--opt-shapes" in e.value.hint


def test_examples_that_contradict_the_declaration_are_refused(nets, tmp_path):
    np.savez(
        tmp_path / "one.npz", image=np.zeros((3, 3, 10, 14), np.float32), meta=np.zeros((2, 7), np.float32)
    )
    with pytest.raises(BadInput, match="disagree on N: 3 and 2"):
        zoo.load(f"{nets}:Two", feeding=declared("image:Nx3xHxW", "meta:Nx7", example=tmp_path / "one.npz"))
    with pytest.raises(BadInput, match="declared as meta:Nx8"):
        zoo.load(f"{nets}:Two", feeding=declared("image:Nx3xHxW", "meta:Nx8", example=tmp_path / "one.npz"))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04junk")
    with pytest.raises(BadData, match=r"bad\.npz"):
        zoo.load(f"{nets}:Two", feeding=Feeding(example=tmp_path / "bad.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, 4])
def test_programs_are_exported_with_their_own_free_sizes(tmp_path, batch):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.line = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(7, 8)

        def forward(self, image, meta):
            return torch.relu(self.conv(image)).mean((2, 3)) + self.line(meta)

    n, h = torch.export.Dim("n"), torch.export.Dim("h", min=2, max=512)
    program = torch.export.export(
        Two().eval(),
        (torch.randn(2, 3, 16, 12), torch.randn(2, 7)),
        dynamic_shapes={"image": {0: n, 2: h}, "meta": {0: n}},
    )
    torch.export.save(program, tmp_path / "two.pt2")
    network = zoo.load(str(tmp_path / "two.pt2"))
    assert [str(one) for one in network.inputs] == ["image:Nx3xd1x12", "meta:Nx7"]
    made = torch_export.export(network, batch=batch)
    assert [graph.dims(value) for value in made.model.graph.inputs] == [(batch, 3, None, 12), (batch, 7)]
    x = {"image": np.ones((batch or 5, 3, 31, 12), np.float32), "meta": np.ones((batch or 5, 7), np.float32)}
    with OrtRuntime(optimize=False).open(made.model) as session:
        (got,) = session.run(x).values()
    want = network.module(*(torch.from_numpy(x[name]) for name in ("image", "meta")))
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_an_example_may_have_its_bytes_in_the_other_order():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    one = examples._declared("x", array.astype(">f4"))
    assert one.dtype == "float32"
    (tensor,) = examples._tensors([one], {"x": array.astype(">f4")}, {"N": 2}, seed=0)
    np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (torch.ones(1), ["output"]),
        ((torch.ones(1), None), ["output"]),
        ((torch.ones(1), None, [torch.ones(2), torch.ones(3)]), ["output_0", "output_1", "output_2"]),
        ({"logits": torch.ones(1), "loss": None}, ["logits"]),
        ({"logits": torch.ones(1), "maps": (torch.ones(2), torch.ones(3))}, ["logits", "maps_0", "maps_1"]),
    ],
)
def test_every_tensor_that_a_network_gives_has_a_name_and_nothing_else_has(answer, names):
    assert list(examples.output_names(answer)) == names
    assert [len(tensor) for tensor in examples.tensors_of(answer)] == list(range(1, len(names) + 1))


@pytest.mark.parametrize("answer", [None, (), {"loss": None}, 3, (torch.ones(1), "text")])
def test_a_network_that_gives_no_tensors_is_refused(answer):
    class Silent(torch.nn.Module):
        def forward(self, x):
            return answer if x is not None else x

    with pytest.raises(BadInput, match="returns"):
        examples.answer_of(Silent(), (torch.ones(1),), "nets.py:Silent")
