"""Several distributions as one: nothing is lost or mixed up between them."""

import torch
from torch import Generator

from mneme.controllers import Bernoulli, Categorical, Gaussian, Joint

N = 64


def test_a_padded_step_without_any_allowed_action_sends_no_gradient() -> None:
    distribution = Joint((Categorical(5), Categorical(2)))
    parameters = torch.randn(N, 7, generator=Generator().manual_seed(0), requires_grad=True)
    masked = distribution.masked(parameters, torch.zeros(N, 7, dtype=torch.bool))
    action = torch.zeros(N, 2, dtype=torch.int64)
    terms = (
        distribution.log_prob(masked, action).exp()
        + distribution.entropy(masked)
        + distribution.kl(masked, masked.detach())
    )
    loss = torch.where(torch.zeros(N, dtype=torch.bool), terms, 0.0).sum()
    (gradient,) = torch.autograd.grad(loss, parameters)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_joint_action_packs_and_unpacks_without_loss() -> None:
    parts = [torch.tensor([2, 0]), torch.tensor([[0.1, -3e7], [1e-20, 0.5]]), torch.tensor([[1, 0], [0, 1]])]
    distribution = Joint((Categorical(2**24), Gaussian(2), Bernoulli(2)))
    parts[0][1] = 2**24 - 1
    packed = distribution.pack(parts)
    assert (
        packed.shape == (2, 5) == (2, *distribution.action_shape)
        and packed.dtype == distribution.action_dtype == torch.float32
    )
    for back, part in zip(distribution.unpack(packed), parts, strict=True):
        assert back.dtype == part.dtype and torch.equal(back, part)
    assert Joint((Categorical(3), Bernoulli(2))).action_dtype == torch.int64


def test_the_parts_of_a_joint_action_take_their_own_noise_and_masks() -> None:
    distribution = Joint((Categorical(3), Bernoulli(2), Categorical(4)))
    generator = Generator().manual_seed(6)
    parameters, uniform = torch.randn(N, 9, generator=generator), torch.rand(N, 4, generator=generator)
    first, second, third = distribution.unpack(distribution.sample(parameters, uniform))
    assert torch.equal(first, Categorical(3).sample(parameters[:, :3], uniform[:, :1]))
    assert torch.equal(second, Bernoulli(2).sample(parameters[:, 3:5], uniform[:, 1:3]))
    assert torch.equal(third, Categorical(4).sample(parameters[:, 5:], uniform[:, 3:]))
    mask = torch.tensor([True, False, True, True, True, True, False])
    assert distribution.masked(parameters, mask).isinf().tolist() == [[False, True] + 6 * [False] + [True]] * N
