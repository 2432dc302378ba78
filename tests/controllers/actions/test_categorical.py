"""One of several choices: exact masks, and noise at its edges."""

import pytest
import torch
from torch import Generator, Tensor, distributions

from mneme.controllers import Categorical

HEAD = Categorical(5)
N, LAST = 64, 1 - 2.0**-24  # lanes, and the largest float32 below 1


def gradients(x: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(x.sum(), inputs, retain_graph=True, materialize_grads=True)


@pytest.mark.parametrize("allowed", [[0], [1, 2], [0, 3, 4], [4], [0, 1, 2, 3, 4]], ids=str)
def test_a_masked_categorical_is_the_categorical_over_the_allowed_actions(allowed: list[int]) -> None:
    generator = Generator().manual_seed(0)
    p, q = (torch.randn(N, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.zeros(N, 5, dtype=torch.bool)
    mask[:, allowed] = True
    action = HEAD.sample(HEAD.masked(p, mask), torch.rand(N, 1, generator=generator))
    assert set(action.tolist()) == set(allowed)
    kept = torch.tensor([allowed.index(a) for a in action.tolist()])
    few_p, few_q = (distributions.Categorical(logits=x[:, allowed]) for x in (p, q))
    assert not HEAD.masked(p, mask).softmax(-1)[~mask].any()
    pairs = [
        (HEAD.log_prob(HEAD.masked(p, mask), action), few_p.log_prob(kept)),
        (HEAD.entropy(HEAD.masked(p, mask)), few_p.entropy()),
        (HEAD.kl(HEAD.masked(p, mask), HEAD.masked(q, mask)), distributions.kl_divergence(few_p, few_q)),
    ]
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected)
        got, wanted = (
            torch.autograd.grad(x.sum(), (p, q), retain_graph=True, materialize_grads=True) for x in (actual, expected)
        )
        torch.testing.assert_close(got, wanted)


def test_categorical_samples_have_the_right_frequencies() -> None:
    logits = torch.tensor([0.1, 0.0, 0.5, 0.15, 0.25]).log()
    n = 200_000
    uniform = torch.rand(n, 1, generator=Generator().manual_seed(1))
    frequency = HEAD.sample(logits.expand(n, 5), uniform).bincount(minlength=5) / n
    torch.testing.assert_close(frequency, logits.exp(), rtol=0, atol=5 * 0.5 / n**0.5)
    assert frequency[1] == 0


@pytest.mark.parametrize("uniform", [0.0, 1e-30, 0.5, LAST, 1.0])
def test_an_impossible_action_is_never_sampled_at_the_edges_of_the_noise(uniform: float) -> None:
    for allowed in range(5):
        logits = torch.full((5,), -torch.inf)
        logits[allowed] = 3.0
        assert HEAD.sample(logits.unsqueeze(0), torch.tensor([[uniform]])) == allowed


@pytest.mark.parametrize("actions", [3, 7, 1000])
def test_noise_next_to_one_gives_a_possible_action(actions: int) -> None:
    logits = torch.randn(512, actions, generator=Generator().manual_seed(2))
    logits[:, -1] = -torch.inf
    for uniform in (LAST, 1.0):
        action = Categorical(actions).sample(logits, torch.full((512, 1), uniform))
        assert action.max() < actions - 1


def test_categorical_sampling_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.25, 0.25, 0.5]]).log().expand(5, 3)
    action = Categorical(3).sample(logits, torch.tensor([[0.0], [0.24], [0.26], [0.51], [0.99]]))
    assert action.tolist() == [0, 0, 1, 2, 2]
