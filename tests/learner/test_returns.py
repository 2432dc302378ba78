"""Returns against slow loops over one lane at a time, written from the definitions."""

import pytest
import torch
from torch import Tensor

from mneme.learner.returns import gae, vtrace


def case(seed: int, B: int = 5, T: int = 17) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    valid = torch.rand(B, T, generator=g) < 0.9
    terminated = (torch.rand(B, T, generator=g) < 0.15) & valid
    truncated = (torch.rand(B, T, generator=g) < 0.15) & ~terminated & valid
    return {
        "rewards": torch.randn(B, T, generator=g, dtype=torch.float64),
        "values": torch.randn(B, T + 1, generator=g, dtype=torch.float64),
        "final_values": torch.randn(B, T, generator=g, dtype=torch.float64) * truncated,
        "terminated": terminated,
        "truncated": truncated,
        "valid": valid,
    }


def ends(c: dict[str, Tensor], b: int, t: int) -> bool:
    return bool(c["terminated"][b, t] or c["truncated"][b, t])


def after(c: dict[str, Tensor], b: int, t: int) -> float:
    if c["terminated"][b, t]:
        return 0.0
    return float(c["final_values"][b, t] if c["truncated"][b, t] else c["values"][b, t + 1])


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_gae_is_the_sum_of_discounted_errors_up_to_the_episodes_end(lam: float, seed: int) -> None:
    c, gamma = case(seed), 0.97
    got = gae(*case(seed).values(), gamma=gamma, lam=lam)
    B, T = c["rewards"].shape
    for b in range(B):
        for t in range(T):
            advantage, weight = 0.0, 1.0
            for k in range(t, T):
                if not c["valid"][b, k]:
                    break
                advantage += weight * float(c["rewards"][b, k] + gamma * after(c, b, k) - c["values"][b, k])
                weight *= gamma * lam
                if ends(c, b, k):
                    break
            assert float(got.advantages[b, t]) == pytest.approx(advantage, abs=1e-12)
            assert float(got.targets[b, t]) == pytest.approx(advantage + float(c["values"][b, t]), abs=1e-12)


def test_truncation_bootstraps_from_the_true_final_observation_not_from_the_next_episode() -> None:
    no, yes = torch.tensor([[False, False]]), torch.tensor([[True, False]])
    values, final = torch.tensor([[0.0, 100.0, 0.0]]), torch.tensor([[7.0, 0.0]])
    got = gae(torch.zeros(1, 2), values, final, no, yes, ~no, gamma=0.5, lam=0.9)
    assert float(got.advantages[0, 0]) == pytest.approx(3.5)


def test_nothing_passes_through_a_step_that_is_not_valid() -> None:
    """The step before it bootstraps from what it observed; its own numbers go nowhere."""
    no, valid = torch.zeros(1, 3, dtype=torch.bool), torch.tensor([[True, False, True]])
    values, rewards = torch.tensor([[1.0, 4.0, 0.5, 0.0]]), torch.tensor([[1.0, 1e9, 2.0]])
    got = gae(rewards, values, torch.zeros(1, 3), no, no, valid, gamma=0.5, lam=0.9)
    assert got.advantages.tolist() == [[1.0 + 0.5 * 4.0 - 1.0, 0.0, 2.0 - 0.5]]


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_vtrace_with_equal_policies_is_gae(lam: float) -> None:
    c = case(0)
    on_policy = gae(*c.values(), gamma=0.97, lam=lam)
    got = vtrace(torch.zeros_like(c["rewards"]), *c.values(), gamma=0.97, lam=lam, rho_clip=1.0, c_clip=1.0)
    torch.testing.assert_close(got.advantages, on_policy.advantages, atol=1e-12, rtol=0)
    torch.testing.assert_close(got.targets, on_policy.targets, atol=1e-12, rtol=0)
    assert torch.equal(got.weights, on_policy.weights)


@pytest.mark.parametrize("seed", range(3))
def test_vtrace_matches_the_papers_sum(seed: int) -> None:
    """Espeholt et al. 2018, eq. 1: v_s = V_s + sum_t gamma^(t-s) (prod_{i=s}^{t-1} c_i) rho_t delta_t."""
    c, gamma, rho_clip, c_clip = case(seed), 0.97, 1.2, 0.8
    g = torch.Generator().manual_seed(100 + seed)
    log_ratio = torch.randn(c["rewards"].shape, generator=g, dtype=torch.float64)
    ratio = log_ratio.exp()
    got = vtrace(log_ratio, *c.values(), gamma=gamma, lam=1.0, rho_clip=rho_clip, c_clip=c_clip)
    B, T = c["rewards"].shape

    def target(b: int, s: int) -> float:
        total, weight = float(c["values"][b, s]), 1.0
        for t in range(s, T):
            if not c["valid"][b, t]:
                break
            delta = float(c["rewards"][b, t] + gamma * after(c, b, t) - c["values"][b, t])
            total += weight * min(rho_clip, float(ratio[b, t])) * delta
            weight *= gamma * min(c_clip, float(ratio[b, t]))
            if ends(c, b, t):
                break
        return total

    for b in range(B):
        for t in range(T):
            assert float(got.targets[b, t]) == pytest.approx(target(b, t), abs=1e-10)
            following = after(c, b, t) if ends(c, b, t) or t == T - 1 else target(b, t + 1)
            advantage = float(c["rewards"][b, t] + gamma * following - c["values"][b, t]) * bool(c["valid"][b, t])
            assert float(got.advantages[b, t]) == pytest.approx(advantage, abs=1e-10)
            assert float(got.weights[b, t]) == min(rho_clip, float(ratio[b, t]))
