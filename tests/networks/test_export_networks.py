"""Every network, and every kind of convolution and resampling, leaves PyTorch with its function."""

import project_scripts
import pytest

pytest.importorskip("torch")

import itertools
from typing import get_args

import torch
from torch import nn

from se_deploy import se_blocks
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.backends.tensorrt.planner import start_planner
from se_deploy.frontend import torch_export, zoo
from se_deploy.networks import NETWORKS, SqueezeExcite, freeze
from se_deploy.networks.autoencoder import Down, Up
from se_deploy.targets import resolve_target

FP32_REORDERED = {"rtol": 1e-4, "atol": 1e-5}  # a whole network of fp32 sums in another order
TORCHSCRIPT, DYNAMO = 17, 20  # the opsets at which each exporter is the one that writes

SMALL = [name for name, entry in NETWORKS.items() if entry.input_size[1] == 32]
LARGE = [name for name in NETWORKS if name not in SMALL]


def give_statistics(module):
    """Let BatchNorm do something: a fresh one is nearly the identity and hides mistakes."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)


def assert_exports(network, opset, batches=(1, 3)):
    """Export with a dynamic batch, run in ONNX Runtime unoptimized, compare; give the graph."""
    give_statistics(network.module)
    exported = torch_export.export(network, opset=opset)
    assert exported.exporter == ("torchscript" if opset == TORCHSCRIPT else "dynamo")
    with OrtRuntime(threads=1, optimize=False).open(exported.model) as session, torch.inference_mode():
        for batch in batches:
            x = torch.rand(batch, *network.examples[0].shape[1:])
            (found,) = session.run({network.input_names[0]: x.numpy()}).values()
            torch.testing.assert_close(torch.from_numpy(found), network.module(x), **FP32_REORDERED)
    return exported.model


def around(module, size):
    """Wrap a module as what `zoo.load` gives."""
    torch.manual_seed(0)
    return zoo.Network(
        spec="test",
        module=module.eval(),
        examples=(torch.rand(2, *size),),
        output_names=("output",),
        image=None,
        weights="random",
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "se_resnet56")) for n in SMALL],  # as se_resnet20
)
def test_a_small_network_exports_with_a_free_batch(name):
    network = zoo.load(f"se_deploy:{name}")
    model = assert_exports(network, TORCHSCRIPT)
    blocks = sum(isinstance(part, SqueezeExcite) for part in network.module.modules())
    assert len(se_blocks.detect(model).blocks) == blocks


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, "mobilenet_v3_small", "se_resnet18"])
def test_a_network_exports_through_dynamo(name):
    network = zoo.load(f"se_deploy:{name}")
    model = assert_exports(network, DYNAMO)
    blocks = sum(isinstance(part, SqueezeExcite) for part in network.module.modules())
    assert len(se_blocks.detect(model).blocks) == blocks


@pytest.fixture(scope="module")
def plan_networks():
    """The script whose table is in the README."""
    with project_scripts.loaded("plan_networks") as module:
        yield module


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_network_exports_with_its_blocks_and_plans_in_fp16(name, plan_networks):
    planner = start_planner("tensorrt-rtx", resolve_target("sm86"))
    try:
        row = plan_networks.row(name, TORCHSCRIPT, 0, planner)
    finally:
        planner.close()
    assert row.found == row.blocks > 0
    # No rewrite is searched for here: a canonical squeeze is split, a very large one is summed up in FP32.
    assert row.fused + row.split + row.fallback == row.judged == (0 if name == "scse_unet" else row.blocks)
    assert row.kernels > row.blocks


@pytest.mark.parametrize(
    ("down", "up"), list(itertools.zip_longest(get_args(Down), get_args(Up), fillvalue="nearest"))
)
@pytest.mark.parametrize("name", ["se_autoencoder", "se_vae"])
def test_every_resampling_exports(name, down, up):
    options = {"down": down, "up": up, "width": 4, "code": 6, "side": 16}
    network = zoo.load(f"se_deploy:{name}", model_args=options, input_size=(1, 16, 16))
    assert_exports(network, TORCHSCRIPT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("down", "up"), list(itertools.zip_longest(get_args(Down), get_args(Up), fillvalue="nearest"))
)
def test_every_resampling_exports_through_dynamo(down, up):
    options = {"down": down, "up": up, "width": 4, "code": 6, "side": 16}
    network = zoo.load("se_deploy:se_vae", model_args=options, input_size=(1, 16, 16))
    assert_exports(network, DYNAMO)


@pytest.mark.parametrize("padding", ["valid", "same", 1])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups"),
    [
        (1, 1, 1),
        (3, 1, 1),
        (4, 1, 1),
        (2, 1, 4),
        (3, 2, 2),
        (4, 2, 8),
        (5, 3, 1),
        ((1, 5), 1, 8),
        ((4, 3), 2, 1),
    ],
)
def test_every_convolution_beside_a_block_exports(kernel, stride, groups, padding):
    if padding == "same" and stride > 1:
        with pytest.raises(ValueError, match="strided"):
            nn.Conv2d(8, 16, kernel, stride, padding)
        return
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(8, 16, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        SqueezeExcite(16, ratio=4, form="linear" if groups == 1 else "conv"),
        nn.ConvTranspose2d(16, 8, kernel, stride, groups=groups),
    )
    model = assert_exports(around(module, (8, 12, 11)), TORCHSCRIPT)
    assert len(se_blocks.detect(model).blocks) == 1


@pytest.mark.parametrize("opset", [TORCHSCRIPT, pytest.param(DYNAMO, marks=pytest.mark.slow)])
def test_an_adaptive_network_is_exported_frozen_and_says_so(opset):
    network = zoo.load("se_deploy:adaptive_se_resnet20", model_args={"ratio": 2})
    assert [found.channels for found in network.frozen] == [16] * 3 + [32] * 3 + [64] * 3
    assert all(found.ratio == found.channels / found.hidden for found in network.frozen)
    model = assert_exports(network, opset)
    assert [block.reduced for block in se_blocks.detect(model).blocks] == [f.hidden for f in network.frozen]
    assert freeze(network.module) == ()
