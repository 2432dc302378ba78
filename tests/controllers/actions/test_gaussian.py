"""Real numbers: quantiles, the squashed tails and the limits of the standard deviation."""

import math

import pytest
import torch
from torch import distributions

from controllers import Gaussian


@pytest.mark.parametrize("squash", [False, True])
def test_gaussian_samples_are_quantiles(squash: bool) -> None:
    head, n = Gaussian(2, squash), 1001
    parameters = torch.tensor([1.0, -2.0, 0.5, -1.0]).expand(n, 4)
    uniform = torch.linspace(1e-4, 1 - 1e-4, n).unsqueeze(-1).expand(n, 2)
    normal = distributions.Normal(parameters[:, :2], parameters[:, 2:].exp())
    torch.testing.assert_close(normal.cdf(head.sample(parameters, uniform)), uniform, rtol=0, atol=1e-6)


def test_a_squashed_gaussian_takes_the_median() -> None:
    parameters = torch.tensor([[2.0, 0.0]])
    head = Gaussian(1, squash=True)
    torch.testing.assert_close(head.mode(parameters), head.sample(parameters, torch.tensor([[0.5]])))


def test_squashed_log_probabilities_stay_finite_far_out() -> None:
    head, parameters = Gaussian(1, squash=True), torch.tensor([[0.0, 0.0]] * 4)
    far = torch.tensor([[-60.0], [-9.0], [9.0], [60.0]])
    exact = distributions.Normal(0, 1).log_prob(far) + 2 * far.abs() - math.log(4)  # as 1 - tanh² goes to 4 exp(-2|u|)
    torch.testing.assert_close(head.log_prob(parameters, far), exact.squeeze(-1))


def test_the_widest_squashed_entropy_is_right_to_two_hundredths() -> None:
    mean = torch.linspace(0, 8, 33, dtype=torch.float64)
    entropy = Gaussian(1, squash=True).entropy(torch.stack([mean, torch.full_like(mean, 2.0)], -1))
    normal = distributions.Normal(mean.unsqueeze(-1), math.exp(2))
    u = torch.linspace(-60, 70, 100_001, dtype=torch.float64)
    slope = 2 * math.log(2) - 2 * torch.logaddexp(u, -u)
    expected = normal.entropy().squeeze(-1) + torch.trapezoid(normal.log_prob(u).exp() * slope, u)
    torch.testing.assert_close(entropy, expected, rtol=0, atol=0.02)


def test_standard_deviations_are_clamped() -> None:
    head = Gaussian(1)
    extreme, limits = torch.tensor([[0.0, -50.0], [0.0, 50.0]]), torch.tensor([[0.0, -5.0], [0.0, 2.0]])
    assert torch.equal(head.entropy(extreme), head.entropy(limits))
    assert torch.equal(head.log_prob(extreme, torch.ones(2, 1)), head.log_prob(limits, torch.ones(2, 1)))
