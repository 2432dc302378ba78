"""Action distributions against their definitions and torch.distributions."""

import pytest
import torch
from torch import Generator, distributions

from controllers import Categorical

HEAD = Categorical(5)
LOGITS = torch.randn(64, 5, generator=Generator().manual_seed(0)) * 2


def test_samples_have_the_right_frequencies() -> None:
    logits = torch.tensor([0.1, 0.0, 0.5, 0.15, 0.25]).log()
    n = 200_000
    uniform = torch.rand(n, generator=Generator().manual_seed(1))
    frequency = HEAD.sample(logits.expand(n, 5), uniform).bincount(minlength=5) / n
    torch.testing.assert_close(frequency, logits.exp(), rtol=0, atol=5 * 0.5 / n**0.5)
    assert frequency[1] == 0


@pytest.mark.parametrize("uniform", [0.0, 1e-30, 0.5, 1 - 2**-24, 1.0])
def test_an_impossible_action_is_never_sampled_at_the_edges_of_the_noise(uniform: float) -> None:
    for allowed in range(5):
        logits = torch.full((5,), -torch.inf)
        logits[allowed] = 3.0
        assert HEAD.sample(logits.unsqueeze(0), torch.tensor([uniform])) == allowed


@pytest.mark.parametrize("actions", [3, 7, 1000])
def test_noise_next_to_one_gives_a_possible_action(actions: int) -> None:
    logits = torch.randn(512, actions, generator=Generator().manual_seed(2))
    logits[:, -1] = -torch.inf
    for uniform in (1 - 2**-24, 1.0):
        action = Categorical(actions).sample(logits, torch.full((512,), uniform))
        assert action.max() < actions - 1


def test_sampling_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.25, 0.25, 0.5]]).log().expand(5, 3)
    action = Categorical(3).sample(logits, torch.tensor([0.0, 0.24, 0.26, 0.51, 0.99]))
    assert action.tolist() == [0, 0, 1, 2, 2]
    assert action.dtype == torch.int64


def test_densities_match_torch_distributions() -> None:
    p, q = distributions.Categorical(logits=LOGITS), distributions.Categorical(logits=LOGITS.flip(0))
    action = HEAD.sample(LOGITS, torch.rand(64, generator=Generator().manual_seed(3)))
    torch.testing.assert_close(HEAD.log_prob(LOGITS, action), p.log_prob(action))
    torch.testing.assert_close(HEAD.entropy(LOGITS), p.entropy())
    torch.testing.assert_close(HEAD.kl(LOGITS, LOGITS.flip(0)), distributions.kl_divergence(p, q))
    assert torch.equal(HEAD.mode(LOGITS), p.probs.argmax(-1))


def test_kl_to_itself_is_zero() -> None:
    assert torch.equal(HEAD.kl(LOGITS, LOGITS), torch.zeros(64))


def test_leading_axes_are_free() -> None:
    torch.testing.assert_close(HEAD.entropy(LOGITS.view(8, 8, 5)), HEAD.entropy(LOGITS).view(8, 8))
    uniform = torch.rand(64, generator=Generator().manual_seed(4))
    assert torch.equal(HEAD.sample(LOGITS.view(8, 8, 5), uniform.view(8, 8)).view(64), HEAD.sample(LOGITS, uniform))


def test_excluded_actions_leave_values_and_gradients_finite() -> None:
    logits = LOGITS.clone().requires_grad_()
    masked = logits.masked_fill(torch.tensor([False, True, False, False, True]), -torch.inf)
    action = HEAD.sample(masked, torch.rand(64, generator=Generator().manual_seed(5)))
    loss = HEAD.entropy(masked) + HEAD.kl(masked, masked.detach()) + HEAD.log_prob(masked, action)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all() and grad.isfinite().all()
    kept = LOGITS[:, [0, 2, 3]]
    torch.testing.assert_close(HEAD.entropy(masked), distributions.Categorical(logits=kept).entropy())


def test_no_actions_is_refused() -> None:
    with pytest.raises(ValueError, match="number of actions is 0"):
        Categorical(0)
