"""Real numbers: quantiles, squashed entropies and tails, and the limits of the standard deviation."""

import math

import pytest
import torch
from torch import Tensor, distributions

from mneme.controllers import Gaussian


@pytest.mark.parametrize("squash", [False, True])
def test_gaussian_samples_are_quantiles(squash: bool) -> None:
    distribution, n = Gaussian(2, squash), 1001
    parameters = torch.tensor([1.0, -2.0, 0.5, -1.0]).expand(n, 4)
    uniform = torch.linspace(1e-4, 1 - 1e-4, n).unsqueeze(-1).expand(n, 2)
    normal = distributions.Normal(parameters[:, :2], parameters[:, 2:].exp())
    torch.testing.assert_close(normal.cdf(distribution.sample(parameters, uniform)), uniform, rtol=0, atol=1e-6)


def test_a_squashed_gaussian_takes_the_median() -> None:
    parameters = torch.tensor([[2.0, 0.0]])
    distribution = Gaussian(1, squash=True)
    torch.testing.assert_close(distribution.mode(parameters), distribution.sample(parameters, torch.tensor([[0.5]])))


def test_squashed_log_probabilities_stay_finite_far_out() -> None:
    distribution, parameters = Gaussian(1, squash=True), torch.tensor([[0.0, 0.0]] * 4)
    far = torch.tensor([[-60.0], [-9.0], [9.0], [60.0]])
    exact = distributions.Normal(0, 1).log_prob(far) + 2 * far.abs() - math.log(4)  # as 1 - tanh² goes to 4 exp(-2|u|)
    torch.testing.assert_close(distribution.log_prob(parameters, far), exact.squeeze(-1))


def squashed_entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """A fine Riemann sum of -p log p, where p is the density of tanh(u): [B], [B] -> [B]."""
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    u = mean.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * z
    log_derivative = 2 * math.log(2) - 2 * torch.logaddexp(u, -u)
    weight = torch.exp(-0.5 * z**2) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    return 0.5 * math.log(2 * math.pi * math.e) + log_std + (log_derivative * weight).sum(-1)


@pytest.mark.parametrize("std", [0.012, 0.1, 0.4, 0.6, 0.66, 0.67, 0.7, 1.0, 2.0, 3.0, math.exp(1.5)])
def test_squashed_entropies_and_their_gradients_are_those_of_a_fine_sum(std: float) -> None:
    mean = torch.cat([torch.linspace(-3, 8, 23), torch.tensor([20.0, 1e4])]).double()
    parameters = torch.stack([mean, torch.full_like(mean, math.log(std))], -1).requires_grad_()
    actual, expected = Gaussian(1, squash=True).entropy(parameters), squashed_entropy(*parameters.unbind(-1))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    got, wanted = (torch.autograd.grad(entropy.sum(), parameters)[0] for entropy in (actual, expected))
    torch.testing.assert_close(got, wanted, rtol=0, atol=3e-6)
    torch.testing.assert_close(
        Gaussian(1, squash=True).entropy(parameters.float()), actual.float(), rtol=1e-6, atol=4e-6
    )


def test_an_entropy_bonus_widens_a_squashed_normal_no_further_than_the_widest_spread_of_its_tanh() -> None:
    """The entropy is largest at a deviation of 0.9, where it is that of a uniform number less 0.01 nats."""
    log_std = torch.linspace(-4.9, 1.9, 69, dtype=torch.float64)
    entropy = Gaussian(1, squash=True).entropy(torch.stack([torch.zeros_like(log_std), log_std], -1))
    best = int(entropy.argmax())
    assert 0.8 < log_std[best].exp() < 0.95 and 0.005 < math.log(2) - entropy[best] < 0.02
    assert (entropy[: best + 1].diff() > 0).all() and (entropy[best:].diff() < 0).all()


def test_standard_deviations_are_the_networks_between_the_bends_and_keep_within_the_limits() -> None:
    distribution, mean = Gaussian(1), torch.zeros(5, dtype=torch.float64)

    def log_std(x: Tensor) -> Tensor:
        return distribution.entropy(torch.stack([mean[: len(x)], x], -1)) - 0.5 * math.log(2 * math.pi * math.e)

    between = torch.tensor([-4.5, -1.0, 0.0, 0.7, 1.5], dtype=torch.float64)
    torch.testing.assert_close(log_std(between), between)
    far = torch.tensor([-1e30, -50.0, 50.0, 1e30], dtype=torch.float64)
    assert (log_std(far) >= -5).all() and (log_std(far) <= 2).all()
    torch.testing.assert_close(log_std(far)[[0, 3]], torch.tensor([-5.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("x", [-100.0, -6.0, -5.0, -4.5, 1.5, 2.0, 3.0, 100.0])
def test_a_standard_deviation_beyond_the_limits_comes_back(squash: bool, x: float) -> None:
    """Whatever is asked of it, there is a gradient, and it is that of finite differences."""
    distribution, action = Gaussian(1, squash), torch.tensor([[0.3]])
    parameters = torch.tensor([[0.2, x]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[0.1, -1.0]], dtype=torch.float64)
    for value in (
        distribution.log_prob(parameters, action),
        distribution.entropy(parameters),
        distribution.kl(other, parameters),
    ):
        (gradient,) = torch.autograd.grad(value.sum(), parameters)
        assert abs(gradient[0, 1]) > 1e-6
    for function in (
        lambda p: distribution.log_prob(p, action),
        distribution.entropy,
        lambda p: distribution.kl(p, other),
    ):
        assert torch.autograd.gradcheck(function, (parameters,), eps=1e-5, atol=1e-4)
