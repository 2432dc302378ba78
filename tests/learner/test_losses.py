"""The losses against their definitions, step by step."""

import math

import pytest
import torch

from mneme.learner.losses import clipped_policy_loss, masked_sum, normalized, value_loss


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1.0, -1.2), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5), (0.5, -1.0, 0.8), (1.1, 2.0, -2.2)],
)
def test_clipped_surrogate_is_the_pessimistic_one(ratio: float, advantage: float, expected: float) -> None:
    old = torch.zeros(1, dtype=torch.float64)
    loss = clipped_policy_loss(old + math.log(ratio), old, torch.tensor([advantage], dtype=torch.float64), 0.2)
    assert float(loss.loss) == pytest.approx(expected)
    assert float(loss.kl) == pytest.approx(ratio - 1 - math.log(ratio))
    assert float(loss.clipped) == float(abs(ratio - 1) > 0.2)


def test_the_kl_estimate_averages_to_the_kl() -> None:
    p, q = (
        torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64),
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    )
    estimate = clipped_policy_loss(q.log(), p.log(), torch.ones(3), 0.2).kl  # exact expectation under p
    assert float((p * estimate).sum()) == pytest.approx(float((p * (p / q).log()).sum()))


def test_a_clipped_ratio_gives_no_gradient_only_where_that_is_pessimistic() -> None:
    log_probs = torch.tensor([0.5, 0.5], requires_grad=True)
    clipped_policy_loss(log_probs, torch.zeros(2), torch.tensor([1.0, -1.0]), 0.2).loss.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad[0] == 0.0
    assert log_probs.grad[1] > 0.0


def test_value_clipping_takes_the_larger_error() -> None:
    loss = value_loss(torch.tensor([2.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 2.0]), clip=0.2)
    torch.testing.assert_close(loss, torch.tensor([0.5 * 1.8**2, 0.5 * 1.9**2]))
    torch.testing.assert_close(value_loss(torch.ones(1), torch.zeros(1), torch.zeros(1), None), torch.tensor([0.5]))


def test_padding_may_hold_anything() -> None:
    x = torch.tensor([1.0, math.nan, 2.0], requires_grad=True)
    total = masked_sum(x, torch.tensor([True, False, True]))
    total.backward()
    assert float(total.detach()) == 3.0
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 1.0]


def test_normalised_advantages_and_a_constant_batch() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    x = normalized(torch.tensor([[1.0, 2.0], [6.0, 1e9]]), mask)[mask]
    assert float(x.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(x.std(unbiased=False)) == pytest.approx(1.0, abs=1e-6)
    constant = torch.full((4,), 0.5)
    assert torch.equal(normalized(constant, torch.ones(4, dtype=torch.bool)), torch.zeros(4))
