"""ECAPA-TDNN, SE-Res2Net-50 and the scSE U-Net: what they compute, and that every block leaves PyTorch."""

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from test_export_networks import give_statistics
from torch import nn

from se_deploy import graph, se_blocks
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.frontend import torch_export, zoo
from se_deploy.networks import SqueezeExcite, accounting, ecapa, res2net, unet
from se_deploy.signature import Feeding

FP32_REORDERED = {"rtol": 1e-4, "atol": 1e-5}  # a whole network of fp32 sums in another order
SMALL_ECAPA = {"channels": 32, "scale": 4, "squeezed": 8, "aggregated": 48, "attention": 16, "embedding": 12}
SMALL_RES2NET = {"planes": 8, "width": 32, "scale": 4, "num_classes": 5, "ratio": 4}
SMALL_UNET = {"width": 8, "num_classes": 3}
# name, arguments, sizes behind the batch that one file takes, kind and (channels, hidden units) of its blocks
CASES = {
    "ecapa_tdnn": (SMALL_ECAPA, [(80, 40), (80, 23)], "se", [(32, 8)] * 3),
    "ecapa_tdnn_1024": ({**SMALL_ECAPA, "channels": 64}, [(80, 30)], "se", [(64, 8)] * 3),
    "se_res2net50": (
        SMALL_RES2NET, [(3, 224, 224)], "se",
        [(c, c // 4) for c, count in ((32, 3), (64, 4), (128, 6), (256, 3)) for _ in range(count)],
    ),
    "scse_unet": (SMALL_UNET, [(1, 32, 48), (1, 21, 35)], "scse", [(8, 4)] * 8),
}  # fmt: skip
QUICK = {("ecapa_tdnn", 17), ("scse_unet", 17)}  # at 17 TorchScript's exporter writes, at 20 dynamo's


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        pytest.param(name, opset, marks=() if (name, opset) in QUICK else pytest.mark.slow)
        for name in CASES
        for opset in (17, 20)
        if opset == 17 or name in {"ecapa_tdnn", "scse_unet"}  # the others are as these, and slower
    ],
)
def test_every_block_is_found_and_free_sizes_stay_free(name, opset):
    arguments, sizes, kind, blocks = CASES[name]
    network = zoo.load(f"se_deploy:{name}", model_args=arguments)
    give_statistics(network.module)
    made = torch_export.export(network, opset=opset)
    found = se_blocks.detect(made.model).blocks
    assert {block.kind for block in found} == {kind}
    assert [(block.channels, block.reduced) for block in found] == blocks
    assert len(blocks) == sum(isinstance(part, SqueezeExcite) for part in network.module.modules())
    (taken,) = made.model.graph.inputs
    assert len(graph.dims(taken)) == 1 + len(sizes[0])
    with OrtRuntime(threads=1, optimize=False).open(made.model) as session, torch.inference_mode():
        for batch, size in zip((3, 1), sizes, strict=False):
            x = torch.rand(batch, *size)
            (got,) = session.run({taken.name: x.numpy()}).values()
            torch.testing.assert_close(torch.from_numpy(got), network.module(x), **FP32_REORDERED)


def test_a_recording_has_one_embedding_whatever_its_length():
    torch.manual_seed(0)
    network = ecapa.ecapa_tdnn(**SMALL_ECAPA).eval()
    for frames in (1, 7, 200):
        assert network(torch.randn(2, 80, frames)).shape == (2, 12)


def test_even_weights_give_the_mean_and_the_deviation():
    pool = ecapa.AttentiveStatistics(6, 4)
    nn.init.zeros_(pool.score.weight)
    nn.init.zeros_(pool.score.bias)
    x = torch.randn(2, 6, 50)
    expected = torch.cat([x.mean(2), x.std(2, correction=0)], 1)
    torch.testing.assert_close(pool(x), expected, rtol=1e-5, atol=1e-6)


def test_a_frame_that_draws_all_attention_is_what_is_pooled():
    torch.manual_seed(0)
    pool = ecapa.AttentiveStatistics(3, 4)
    x = torch.randn(1, 3, 9)
    x[:, :, 4] += 5
    with torch.no_grad():
        pool.hidden.weight.zero_()
        pool.hidden.weight[:, :3] = 1  # tanh of the frame's own sum
        pool.hidden.bias.fill_(-9)
        pool.score.weight.fill_(100)
    torch.testing.assert_close(pool(x)[:, :3], x[:, :, 4], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pool(x)[:, 3:], torch.full((1, 3), 1e-2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("opens", [None, False, True], ids=["ecapa", "res2net", "res2net opens a stage"])
def test_scales_are_convolved_one_after_the_other(opens):
    """Equation 1 of the Res2Net paper, with every convolution a multiplication by two."""

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    if opens is None:
        layer, x = ecapa.Res2Layer(8, 4, dilation=2).eval(), torch.randn(1, 8, 5)
        layer.layers = nn.ModuleList(Twice() for _ in range(3))
    else:
        layer, x = res2net.MultiScale(2, 4, 1, opens=opens).eval(), torch.randn(1, 8, 5, 5)
        layer.convs = nn.ModuleList(Twice() for _ in range(3))
    a, b, c, d = x.chunk(4, 1)
    if opens:
        parts = [nn.AvgPool2d(3, 1, 1)(a), 2 * b, 2 * c, 2 * d]
    else:
        parts = [a, 2 * b, 2 * (c + 2 * b), 2 * (d + 2 * (c + 2 * b))]
    torch.testing.assert_close(layer(x), torch.cat(parts, 1))


def test_each_block_of_ecapa_starts_from_the_sum_of_all_before():
    network = ecapa.ecapa_tdnn(**SMALL_ECAPA).eval()
    seen = []
    for part in (network.first, *network.blocks):
        part.register_forward_hook(lambda _, taken, made: seen.append((taken[0], made)))
    network(torch.randn(1, 80, 11))
    outputs = [made for _, made in seen]
    for index in (1, 2, 3):
        torch.testing.assert_close(seen[index][0], sum(outputs[:index]))


def test_channels_and_pixels_are_recalibrated_side_by_side():
    torch.manual_seed(0)
    block = unet.SCSE(6, {"ratio": 2})
    x = torch.randn(2, 6, 4, 5)
    per_pixel = torch.sigmoid(torch.einsum("nchw,c->nhw", x, block.pixel.weight.flatten()) + block.pixel.bias)
    torch.testing.assert_close(block(x), block.channel(x) + x * per_pixel[:, None])


def test_scse_costs_what_the_paper_says():
    """arXiv:1808.08127: C^2 + C more weights for each of eight blocks, 3.3e4 in all, about 1.5 %."""
    with torch.device("meta"):
        network = unet.scse_unet()
        plain = sum(part.numel() for part in network.parameters()) - 8 * (64**2 + 64)
    pixels = sum(m.pixel.weight.numel() for m in network.modules() if isinstance(m, unet.SCSE))
    added = accounting.excitation_weights(network) + pixels
    assert (added, round(added / 1e4, 1)) == (8 * (64**2 + 64), 3.3)
    assert round(plain / 1e6, 1) == 2.1
    assert added / plain == pytest.approx(0.015, abs=0.002)


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="not a multiple of the scale, 8"):
        ecapa.ecapa_tdnn(channels=60)
    with pytest.raises(ValueError, match="placement 'pre': one of standard, none"):
        res2net.se_res2net50(placement="pre")
    with pytest.raises(ValueError, match="4 axes: one of 1, 2, 3"):
        SqueezeExcite(8, axes=4)


@pytest.mark.parametrize("form", ["conv", "linear"])
@pytest.mark.parametrize("axes", [1, 3])
def test_a_block_of_signals_and_clips_is_the_block_of_images(axes, form):
    torch.manual_seed(0)
    image = SqueezeExcite(8, ratio=2, norm=True, depth=3).eval()
    other = SqueezeExcite(8, ratio=2, norm=True, depth=3, axes=axes, form=form).eval()
    other.load_state_dict(image.state_dict())
    x = torch.randn(2, 8, 6, 4)
    shape = (2, 8, 24) if axes == 1 else (2, 8, 2, 3, 4)
    torch.testing.assert_close(other(x.reshape(shape)).reshape(x.shape), image(x), rtol=1e-5, atol=1e-6)


def test_a_network_with_free_sizes_says_how_it_is_fed():
    speech = zoo.load("se_deploy:ecapa_tdnn", model_args=SMALL_ECAPA)
    assert (str(speech.inputs[0]), speech.image) == ("feats:Nx80xT", None)
    masks = zoo.load("se_deploy:scse_unet", model_args=SMALL_UNET)
    assert str(masks.inputs[0]) == "input:Nx1xHxW"
    assert masks.image is not None
    assert masks.image.shape == (1, 256, 256)
    planned = Feeding(shapes={"feats": (1, 80, 50)})
    one = zoo.load("se_deploy:ecapa_tdnn", model_args=SMALL_ECAPA, feeding=planned)
    assert np.shape(one.examples[0]) == (2, 80, 50), "torch.export freezes a batch of 1"
    frozen = zoo.load("se_deploy:ecapa_tdnn", model_args=SMALL_ECAPA, input_size=(80, 30))
    assert np.shape(frozen.examples[0]) == (2, 80, 30)
    assert frozen.inputs[0].dims == ("N", 80, 30)
