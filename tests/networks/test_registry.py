import pytest

pytest.importorskip("torch")

import copy
import functools

import torch
from torch import nn

from se_deploy import networks
from se_deploy.networks import NETWORKS, accounting, inception, res2net, resnet, vgg
from se_deploy.networks.accounting import Stage

NAMES = [
    "se_resnet20",
    "se_resnet56",
    "se_resnet18",
    "se_resnet34",
    "se_resnet50",
    "se_resnet101",
    "se_resnet152",
    "se_resnext50_32x4d",
    "se_resnext101_32x4d",
    "senet154",
    "se_bn_inception",
    "se_inception_v3",
    "se_inception_small",
    "se_vgg16",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "adaptive_se_resnet20",
    "deep_se_resnet20",
    "conv_se_resnet20",
    "se_autoencoder",
    "se_vae",
    "se_coatnet_small",
    "se_res2net50",
    "ecapa_tdnn",
    "ecapa_tdnn_1024",
    "scse_unet",
]
described = functools.cache(networks.describe)
SMALL = [name for name, entry in NETWORKS.items() if entry.input_size[1] == 32]

HU = "arXiv:1709.01507, table 2"
HU_154 = "arXiv:1709.01507, section 6.2; Caffe weights of hujie-frank/SENet"
CADENE = "pretrained-models.pytorch, which holds the authors' Caffe weights"
MOBILE = "arXiv:1905.02244, tables 3 and 4"
ECAPA = "arXiv:2005.07143, table 1"
# name, exact parameters, published parameters in millions, published GMACs, source
PUBLISHED = [
    ("se_resnet50", 28_088_024, 28.1, 3.87, HU),
    ("se_resnet101", 49_326_872, 49.3, 7.60, HU),
    ("se_resnet152", 66_821_848, 66.8, 11.32, HU),
    ("se_resnext50_32x4d", 27_559_896, 27.6, 4.25, HU),
    ("se_resnext101_32x4d", 48_955_416, 49.0, 8.00, HU),
    ("senet154", 115_088_984, 115.1, 20.7, HU_154),
    ("se_resnet18", 11_778_592, 11.8, None, "timm legacy_seresnet18"),
    ("se_resnet34", 21_958_868, 22.0, None, "timm legacy_seresnet34"),
    ("se_bn_inception", None, None, 2.04, HU),
    ("se_vgg16", None, None, 15.48, HU),
    ("mobilenet_v3_small", 2_542_856, 2.5, 0.056, MOBILE),
    ("mobilenet_v3_large", 5_483_032, 5.4, 0.219, MOBILE),
    ("ecapa_tdnn", 6_191_104, 6.2, None, ECAPA),
    ("ecapa_tdnn_1024", 14_657_472, 14.7, None, ECAPA),
    ("scse_unet", 2_086_876, 2.1, None, "arXiv:1808.08127, and 3.3e4 of scSE"),
]
LARGE = {"se_resnet101", "se_resnet152", "se_resnext101_32x4d", "senet154"}  # the like of smaller ones
PUBLISHED_MACS = 0.02  # they are rounded to two or three digits, and do not all count squeezes alike
PUBLISHED_PARAMS = 0.02  # two digits: "2.5 M", and "5.4 M" for 5.48 M


def test_every_promised_network_ships_under_its_own_name():
    assert set(NAMES) <= set(NETWORKS)
    assert all(name == entry.name == entry.build.__name__ for name, entry in NETWORKS.items())


@pytest.mark.parametrize(
    ("name", "exact", "millions", "gmacs", "source"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (row[0] in LARGE), id=row[0]) for row in PUBLISHED],
)
def test_counts_are_the_published_ones(name, exact, millions, gmacs, source):
    found = described(name)
    if exact is not None:
        assert found.params == exact, source
        assert found.params / 1e6 == pytest.approx(millions, rel=PUBLISHED_PARAMS), source
    if gmacs is not None:
        assert found.macs / 1e9 == pytest.approx(gmacs, rel=PUBLISHED_MACS), source


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("se_resnet50", 3.87),
        pytest.param("se_resnet152", 11.32, marks=pytest.mark.slow),
        ("se_bn_inception", 2.04),
        ("se_vgg16", 15.48),
    ],
)
def test_macs_agree_to_the_digit_where_the_count_is_hu_et_als(name, published):
    assert round(described(name).macs / 1e9, 2) == published


@pytest.mark.parametrize(
    ("build", "size", "params", "gmacs", "source"),
    [
        (resnet.se_resnet50, 224, 25_557_032, 3.86, "ResNet-50: torchvision's count, " + HU),
        (inception.se_inception_v3, 299, 23_834_568, 5.71, "Inception-v3: torchvision, without its head"),
        (inception.se_bn_inception, 224, 11_285_224, 2.03, "BN-Inception: " + CADENE + " less its biases"),
        (vgg.se_vgg16, 224, 138_361_768, 15.47, "VGG-16 with BatchNorm: torchvision's less its biases"),
        (res2net.se_res2net50, 224, 25_699_120, 4.26, "Res2Net-50 26w x 4s: timm's count; arXiv:1904.01169"),
    ],
)
def test_without_blocks_the_networks_are_the_plain_ones(build, size, params, gmacs, source):
    with torch.device("meta"):
        plain = build(placement="none")
    found = accounting.count(plain, (3, size, size))
    assert (found.params, found.blocks) == (params, 0), source
    assert round(found.macs / 1e9, 2) == gmacs, source


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_computes_learns_and_keeps_the_batch_apart(name):
    torch.manual_seed(0)
    entry = NETWORKS[name]
    network = entry.build()
    x = torch.rand(3, *entry.input_size)
    network(x).square().mean().backward()
    unused = [key for key, value in network.named_parameters() if value.grad is None]
    assert unused == []
    network.eval()
    with torch.no_grad():
        together, alone = network(x), network(x[1:2])
    assert together.shape[1:] == ((len(entry.labels),) if entry.labels else entry.input_size)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_description_counts_the_real_network(name):
    network = NETWORKS[name].build()
    found = described(name)
    assert found.params == sum(p.numel() for p in network.parameters())
    assert found.blocks == sum(isinstance(m, networks.SqueezeExcite) for m in network.modules()) > 0
    assert found.macs == accounting.count(network, NETWORKS[name].input_size).macs
    assert network.training


@pytest.mark.parametrize("ratio", [2, 4, 8, 16])
def test_hu_et_als_formula_is_what_a_network_has(ratio):
    with torch.device("meta"):
        network = NETWORKS["se_resnet50"].build(ratio=ratio)
    stages = accounting.stages(network)
    assert stages == (Stage(3, 256), Stage(4, 512), Stage(6, 1024), Stage(3, 2048))
    assert accounting.excitation_weights(network) == accounting.extra_parameters(stages, ratio)


def test_the_ratio_of_sixteen_costs_se_resnet50_two_and_a_half_million():
    # arXiv:1709.01507, section 4: "~2.5 million additional parameters"
    with torch.device("meta"):
        stages = accounting.stages(NETWORKS["se_resnet50"].build())
    assert round(accounting.extra_parameters(stages, 16) / 1e6, 1) == 2.5


def test_the_blocks_of_se_res2net_cost_what_those_of_se_resnet_do():
    """The paper has no count with blocks: it is Res2Net-50's, Hu et al.'s formula, and the biases."""
    with torch.device("meta"):
        network, plain = NETWORKS["se_res2net50"].build(), res2net.se_res2net50(placement="none")
    stages = accounting.stages(network)
    assert stages == (Stage(3, 256), Stage(4, 512), Stage(6, 1024), Stage(3, 2048))
    biases = sum(stage.blocks * (stage.channels + stage.channels // 16) for stage in stages)
    count = [sum(part.numel() for part in each.parameters()) for each in (network, plain)]
    assert count[0] == count[1] + accounting.extra_parameters(stages, 16) + biases


@pytest.mark.parametrize("layers", [2, 3, 4, 6])
def test_the_deep_formula_is_what_a_network_has(layers):
    network = NETWORKS["deep_se_resnet20"].build(depth=layers, ratio=4)
    found = accounting.deep_extra_parameters(accounting.stages(network), 4, layers)
    assert accounting.excitation_weights(network) == found
    if layers == 2:
        assert found == accounting.extra_parameters(accounting.stages(network), 4)


def test_an_excitation_of_one_layer_has_no_formula():
    with pytest.raises(ValueError, match="at least two"):
        accounting.deep_extra_parameters([Stage(1, 8)], 4, 1)


@pytest.mark.parametrize(
    ("placement", "blocks"),
    [("standard", 9), ("pre", 9), ("post", 9), ("identity", 9), ("inner", 9), ("per_conv", 18), ("none", 0)],
)
def test_placements_differ_in_function_and_not_in_count(placement, blocks):
    torch.manual_seed(0)
    network = resnet.se_resnet20(placement=placement)
    assert accounting.count(network, (1, 32, 32)).blocks == blocks
    assert network.eval()(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_placements_are_where_the_paper_draws_them():
    """With every gate at one half, each placement scales what figure 5 of the paper says."""

    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 6)
    convs = (resnet._Conv(4, 3), resnet._Conv(4, 3))
    blocks = {
        placement: resnet.ResidualBlock(4, convs, se=lambda _: Half(), placement=placement).eval()
        for placement in ("none", "standard", "pre", "post", "identity")
    }
    plain = blocks["none"]
    for block in blocks.values():
        block.load_state_dict(copy.deepcopy(plain.state_dict()))
    branch = plain.branch
    expected = {
        "none": torch.relu(branch(x) + x),
        "standard": torch.relu(branch(x) / 2 + x),
        "pre": torch.relu(branch(x / 2) + x),
        "post": torch.relu(branch(x) + x) / 2,
        "identity": torch.relu(branch(x) + x / 2),
    }
    for placement, block in blocks.items():
        torch.testing.assert_close(block(x), expected[placement])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("se_resnet20", {"placement": "behind"}, "per_conv"),
        ("se_resnet50", {"placement": "behind"}, "identity"),
        ("se_vgg16", {"placement": "pre"}, "per_conv"),
        ("se_inception_v3", {"placement": "pre"}, "none"),
        ("se_autoencoder", {"down": "blur"}, "space_to_depth"),
        ("se_vae", {"up": "blur"}, "pixel_shuffle"),
        ("se_vae", {"side": 30}, "multiple of 8"),
        ("se_coatnet_small", {"side": 28}, "multiple of 8"),
    ],
)
def test_unknown_variants_are_refused_with_the_known_ones(name, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        NETWORKS[name].build(**options)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_misspelt_argument_is_refused(name):
    with torch.device("meta"), pytest.raises(TypeError, match="rato"):
        NETWORKS[name].build(rato=4)
