import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from se_deploy.networks import NETWORKS
from se_deploy.networks.autoencoder import L2Pool, Latent, negative_elbo, reconstruction_loss


def images(count=4):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def small(name, **options):
    torch.manual_seed(0)
    return NETWORKS[name].build(side=16, width=4, code=6, **options)


def test_the_pool_is_the_two_norm_of_each_window():
    x = torch.randn(2, 3, 6, 8)
    torch.testing.assert_close(L2Pool()(x), nn.LPPool2d(2, 2)(x), rtol=1e-5, atol=1e-5)
    zeros = torch.zeros(1, 1, 2, 2, requires_grad=True)
    L2Pool()(zeros).sum().backward()
    assert bool(torch.isfinite(zeros.grad).all())


def test_the_vae_draws_in_training_and_answers_with_its_mean_in_eval():
    network, x = small("se_vae"), images()
    first, second = network(x), network(x)
    assert not torch.equal(first, second)
    network.eval()
    torch.testing.assert_close(network(x), network(x), rtol=0, atol=0)
    torch.testing.assert_close(network(x), network.decode(network.encode(x).mean), rtol=0, atol=0)


def test_a_sampling_vae_draws_in_eval_too():
    network, x = small("se_vae", sample=True).eval(), images()
    assert not torch.equal(network(x), network(x))


def test_the_drawn_code_follows_its_distribution():
    network = small("se_vae")
    latent = Latent(torch.full((20_000, 1), 2.0), torch.full((20_000, 1), 0.5).log() * 2)
    code = network.draw(latent)
    assert code.mean().item() == pytest.approx(2.0, abs=0.02)
    assert code.std().item() == pytest.approx(0.5, abs=0.02)


def test_the_penalties_add_what_they_say():
    network, x = small("se_autoencoder").eval(), images()
    plain = reconstruction_loss(network, x)
    code = network.encode(x)
    torch.testing.assert_close(
        reconstruction_loss(network, x, l1=0.5), plain + 0.5 * code.abs().sum(1).mean()
    )
    torch.testing.assert_close(
        reconstruction_loss(network, x, l2=0.5), plain + 0.5 * code.square().sum(1).mean()
    )
    torch.testing.assert_close(plain, (network(x) - x).square().sum((1, 2, 3)).mean())


def test_the_divergence_is_the_closed_form_and_zero_only_at_the_unit_normal():
    network, x = small("se_vae").eval(), images()
    latent = network.encode(x)
    normal = torch.distributions.Normal(latent.mean, torch.exp(0.5 * latent.log_variance))
    closed = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    losses = []
    for beta in (0.0, 1.0):
        torch.manual_seed(7)
        losses.append(negative_elbo(network, x, beta=beta))
    torch.testing.assert_close(losses[1] - losses[0], closed, rtol=1e-3, atol=1e-3)
    assert closed > 0
    with torch.no_grad():
        network.encoder.code.weight.zero_()
        network.encoder.code.bias.zero_()
    torch.manual_seed(7)
    without = negative_elbo(network, x, beta=0.0)
    torch.manual_seed(7)
    torch.testing.assert_close(negative_elbo(network, x, beta=1.0), without)


@pytest.mark.parametrize(
    ("name", "loss"), [("se_autoencoder", reconstruction_loss), ("se_vae", negative_elbo)]
)
def test_training_lowers_the_loss(name, loss):
    network = small(name)
    x = torch.stack([(torch.arange(16) % (n + 2) < 1).float().expand(1, 16, 16) for n in range(16)])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        value = loss(network, x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]
