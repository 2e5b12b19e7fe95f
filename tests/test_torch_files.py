"""Files of PyTorch given where an ONNX file or a program is wanted: what they are, and what to do."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file
from torch import nn

from se_deploy import inspect, onnx_files, torch_files
from se_deploy.errors import BadModel
from se_deploy.frontend import zoo

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # of what users still have


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    network, x = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()).eval(), torch.zeros(1, 1, 4, 4)
    torch.jit.save(torch.jit.trace(network, x), folder / "script.pt")
    torch.save(network.state_dict(), folder / "weights.pth")
    torch.save(network.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(network, folder / "network.pt")
    torch.export.save(torch.export.export(network, (x,)), folder / "program.pt2")
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "hint"),
    [
        ("script.pt", "a TorchScript network", "dynamo=False"),
        ("weights.pth", "what torch.save writes", "--checkpoint"),
        ("old.pth", "what torch.save writes", "--checkpoint"),
        ("network.pt", "what torch.save writes", "--checkpoint"),
        ("program.pt2", "a program of torch.export", "se-deploy export"),
        ("weights.safetensors", "weights without a network", "--checkpoint"),
    ],
)
def test_a_file_of_pytorch_in_the_place_of_onnx_is_named(written, name, kind, hint):
    with pytest.raises(BadModel, match=f"is no ONNX file but {kind}") as caught:
        inspect(written / name)
    assert hint in caught.value.hint


def test_what_is_no_program_is_named_before_torch_reads_it(written, tmp_path):
    other = tmp_path / "script.pt2"
    other.write_bytes((written / "script.pt").read_bytes())
    with pytest.raises(BadModel, match=r"is no program of torch\.export but a TorchScript network"):
        zoo.load(str(other))


@pytest.mark.filterwarnings("ignore")  # the old exporter, the one that takes such files, warns of itself
def test_onnx_comes_of_torchscript_as_the_hint_says(written, tmp_path):
    path, x = tmp_path / "net.onnx", torch.zeros(1, 1, 4, 4)
    torch.onnx.export(torch.jit.load(written / "script.pt"), (x,), path, dynamo=False)
    assert [node.op_type for node in onnx_files.read(path).graph.node] == ["Conv", "Relu"]


def test_a_damaged_archive_is_no_file_of_pytorch(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(b"PK\x03\x04 and no more")
    assert torch_files.kind_of(path) is None
    with pytest.raises(BadModel, match="cannot be read as ONNX"):
        inspect(path)
